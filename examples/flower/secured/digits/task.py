"""The model and the data: softmax regression on scikit-learn's digits, one part of them per client."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

CLASSES, PIXELS = 10, 64


def load_data(partition_id: int, num_partitions: int) -> tuple[np.ndarray, ...]:
    """Pixels in [0, 1] and labels of one client: training part, test part."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(labels))[partition_id::num_partitions]
    pixels, labels = pixels[order] / 16.0, labels[order]
    cut = int(0.8 * len(order))
    return pixels[:cut], labels[:cut], pixels[cut:], labels[cut:]


def create_model(weights: list[np.ndarray] | None = None) -> LogisticRegression:
    """The model with these weights, or with zeros."""
    model = LogisticRegression(max_iter=5, warm_start=True, C=1.0)
    model.classes_ = np.arange(CLASSES)
    model.coef_, model.intercept_ = weights or [np.zeros((CLASSES, PIXELS)), np.zeros(CLASSES)]
    return model


def get_weights(model: LogisticRegression) -> list[np.ndarray]:
    """What is federated: coefficients and intercepts."""
    return [model.coef_, model.intercept_]
