"""Matrices of updates that lie exactly on the encoding's grid: what a party gets is what an oracle gets.

Stochastic rounding leaves a multiple of C / 2^20 as it is. C is a power of two, so rows are exact float64 numbers and,
up to d about 10^5, so are their inner products: identical rows and tied distances are tied in plaintext too.
"""

from __future__ import annotations

import numpy as np

CLIP = 2.0
ONE = 1 << 20  # the clip norm in ring units

KINDS = (
    "around a direction",
    "independent",
    "two clusters",
    "twins",
    "zero rows",
    "one dominates",
    "colluders",
    "little is enough",
    "lengths from 2^-14 to 1",
)
"""Kinds in which no rule's answer hangs on an exact tie between different rows."""

EXTREMES = ("identical", "all zero")


def malicious(n: int) -> int:
    """f: a fifth of the rows, at least one."""
    return max(1, n // 5)


def matrix(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    """float64 [n, d] on the grid, the largest norm just below C. The malicious rows are the first f."""
    rng = np.random.default_rng([seed, n, d, (KINDS + EXTREMES).index(kind)])
    f = malicious(n)
    honest = rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
    rows = honest * rng.uniform(0.3, 1, (n, 1))
    if kind == "independent":
        rows = rng.normal(size=(n, d)) * rng.uniform(0.3, 1, (n, 1))
    elif kind == "two clusters":
        rows[:f] = (rng.normal(size=d) - rows.mean(0)) * 1.5 + 0.1 * rng.normal(size=(f, d))
    elif kind == "twins":
        rows[n // 2 : 2 * (n // 2)] = rows[: n // 2]
    elif kind == "zero rows":
        rows[[1, n - 2]] = 0
    elif kind == "one dominates":
        rows[f:] *= 2.0**-7
        rows[:f] = rows[f : 2 * f] * 0.9
        rows[0] = -honest[0]
    elif kind == "colluders":
        rows[:f] = -2 * rows[f:].mean(0)
    elif kind == "little is enough":
        rows[:f] = rows[f:].mean(0) - 1.2 * rows[f:].std(0)
    elif kind == "lengths from 2^-14 to 1":
        rows = honest / np.linalg.norm(honest, axis=1, keepdims=True) * 2.0 ** -np.linspace(14, 0, n)[:, None]
    elif kind == "identical":
        rows[:] = rows[0]
    elif kind == "all zero":
        rows[:] = 0
    return on_grid(rows)


def on_grid(rows: np.ndarray, norm: float = 0.95) -> np.ndarray:
    """The rows scaled so that the largest norm is about `norm` C, and rounded to multiples of C / 2^20."""
    largest = np.sqrt((rows**2).sum(1)).max()
    return np.round(rows * (norm * ONE / max(largest, 1e-300))) * (CLIP / ONE)
