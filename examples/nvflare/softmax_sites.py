"""What every site runs: softmax regression on its own examples. Nothing here knows of Triskele.

The examples are made from the site's name, so that a run can be repeated: ten classes, 64 features, and each site sees
some classes more than others. The last two sites are malicious: they send their update turned round and enlarged.
"""

from __future__ import annotations

import argparse
import zlib

import numpy as np

FEATURES, CLASSES = 64, 10
SHAPE = (FEATURES + 1, CLASSES)
STEPS, RATE = 60, 0.5
MALICIOUS_SCALE = -8.0
NAME = "numpy_key"  # NVFLARE's name for the one array of a numpy model


def centres() -> np.ndarray:
    """Where the classes lie: float64 [10, 64]."""
    return np.random.default_rng(7).normal(0.0, 0.4, (CLASSES, FEATURES))


def examples(seed: int, count: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features with a constant one at the end, float64 [count, 65], and classes, int64 [count]."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(CLASSES, count, p=shares)
    features = centres()[classes] + rng.normal(0.0, 1.0, (count, FEATURES))
    return np.hstack([features, np.ones((count, 1))]), classes


def site_examples(site: str) -> tuple[np.ndarray, np.ndarray]:
    """The site's own 200 to 400 examples."""
    seed = zlib.crc32(site.encode())
    rng = np.random.default_rng(seed)
    return examples(seed, int(rng.integers(200, 401)), rng.dirichlet(np.full(CLASSES, 3.0)))


def probabilities(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Softmax of the scores: [n, 10]."""
    scores = features @ weights
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def accuracy(weights: np.ndarray) -> float:
    """Share of 4000 fresh examples that the model classifies right."""
    features, classes = examples(99, 4000, np.full(CLASSES, 1 / CLASSES))
    return float(np.mean(probabilities(weights, features).argmax(1) == classes))


def trained(site: str, weights: np.ndarray, *, malicious: bool) -> tuple[np.ndarray, int]:
    """The site's weights after local training, float32 [65, 10], and the number of its examples."""
    features, classes = site_examples(site)
    wanted = np.eye(CLASSES)[classes]
    local = weights.astype(np.float64)
    for _ in range(STEPS):
        local -= RATE * features.T @ (probabilities(local, features) - wanted) / len(features)
    if malicious:
        local = weights + MALICIOUS_SCALE * (local - weights)
    return local.astype(np.float32), len(classes)


def main() -> None:
    """NVFLARE's client loop."""
    import nvflare.client as flare  # noqa: PLC0415  the functions above are used where NVFLARE is not installed

    parser = argparse.ArgumentParser()
    parser.add_argument("--malicious", default="none", help="sites that attack, parted by commas, or none")
    malicious = parser.parse_args().malicious.split(",")
    flare.init()
    site = flare.get_site_name()
    while flare.is_running():
        model = flare.receive()
        local, count = trained(site, model.params[NAME], malicious=site in malicious)
        flare.send(flare.FLModel(params={NAME: local}, meta={"NUM_STEPS_CURRENT_ROUND": count}))


if __name__ == "__main__":
    main()
