"""How the cost grows: several sizes in one federation, and exponents fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from triskele_server.benchmark.measure import Comparison
from triskele_server.benchmark.scene import Scene

DATA_PATH = ("upload", "sketch", "combine", "release")
"""The phases that touch every word of every update."""


def sizes(scene: Scene) -> list[Scene]:
    """The scene, and halves and quarters of its participants and of its dimension; smallest first."""
    counts = sorted({max(6, scene.participants // by) for by in (4, 2, 1)})
    dimensions = sorted({max(1000, scene.dimension // by) for by in (4, 2, 1)})
    return [replace(scene, participants=n, dimension=d) for n in counts for d in dimensions]


@dataclass(frozen=True)
class Growth:
    """`exponent` of n·d in the seconds of the data path; of how much the filter's seconds differ with d alone."""

    exponent: float
    plain_exponent: float
    filter_spread: dict[int, float]  # participants -> largest by smallest filter time over the dimensions


def growth(measured: Sequence[Comparison]) -> Growth:
    """Least squares in logarithms over all sizes."""
    size = np.log([c.scene.participants * c.scene.dimension for c in measured])
    secure = np.log([sum(c.phases.get(name, 0.0) for name in DATA_PATH) for c in measured])
    plain = np.log([c.plain.times.wall for c in measured])
    spread: dict[int, list[float]] = {}
    for c in measured:
        spread.setdefault(c.scene.participants, []).append(c.phases.get("filter", 0.0))
    return Growth(
        float(np.polyfit(size, secure, 1)[0]),
        float(np.polyfit(size, plain, 1)[0]),
        {n: max(seconds) / max(min(seconds), 1e-3) for n, seconds in spread.items()},
    )
