"""Federated logistic regression on handwritten digits."""
