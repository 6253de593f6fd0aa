"""Federated training under attack, with the rules of the three parties: `make robustness`, docs/robustness.md."""
