"""The rules in plain numpy on dequantised updates, and updates that lie exactly on the encoding's grid."""

from __future__ import annotations

import numpy as np

ONE = 1 << 20  # the clip norm C in ring units


def on_grid(rows: np.ndarray, norm: float = 0.95) -> np.ndarray:
    """Integer rows whose largest norm is about `norm` C (never above C)."""
    scale = norm * ONE / max(np.sqrt((rows**2).sum(1)).max(), 1e-300)
    return np.round(rows * scale).astype(np.int64)


def gaussian(n: int, d: int, seed: int, spread: float = 0.5) -> np.ndarray:
    """n rows around a common direction, on the grid, with norms that differ."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=d) + spread * rng.normal(size=(n, d))) * rng.uniform(0.3, 1, (n, 1))
    return on_grid(rows)


def squared_distances(words: np.ndarray) -> np.ndarray:
    """Exact integers [n, n]."""
    x = words.astype(np.float64)
    if words.shape[1] * 2.0 ** (2 * np.log2(max(np.abs(words).max(), 1) + 1)) < 2**52:
        gram = (x @ x.T).astype(np.int64)
    else:
        gram = np.stack([(words * row).sum(1) for row in words])
    norms = np.diag(gram)
    return norms[:, None] + norms[None, :] - 2 * gram


def krum_scores(words: np.ndarray, malicious: int) -> np.ndarray:
    """Each row's sum of its max(1, n - f - 2) smallest squared distances to other rows, in ring units."""
    distances = squared_distances(words)
    n = len(words)
    others = [np.sort(np.delete(distances[i], i)) for i in range(n)]
    return np.array([row[: max(1, n - malicious - 2)].sum() for row in others])


def multi_krum(words: np.ndarray, malicious: int, selected: int) -> np.ndarray:
    """Accept mask: the smallest scores, ties to the lower index."""
    accepted = np.zeros(len(words), bool)
    accepted[np.argsort(krum_scores(words, malicious), kind="stable")[:selected]] = True
    return accepted


def norm_clip(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum w min(1, m / |x|) x / sum w, m the median norm."""
    norms = np.sqrt((updates**2).sum(1))
    median = np.median(norms)
    factors = np.minimum(1, median / np.where(norms > 0, norms, 1))
    return weighted_mean(updates * factors[:, None], weights)


def weighted_mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum w x / sum w."""
    return (updates * np.asarray(weights, float)[:, None]).sum(0) / np.sum(weights)
