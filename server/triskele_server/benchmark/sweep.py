"""How the cost grows: several sizes in one federation, and exponents fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from triskele_server.benchmark.measure import Comparison
from triskele_server.benchmark.scene import Scene

DATA_PATH = ("upload", "sketch", "combine", "release")
"""The phases that touch every word of every update."""

LEAST_DIMENSION: Final = 100
"""So few parameters that a round takes what its participants take: connections, calls, signatures, files."""


def sizes(scene: Scene) -> list[Scene]:
    """The scene, halves and quarters of its participants and of its dimension, and hardly any; smallest first."""
    counts = sorted({max(6, scene.participants // by) for by in (4, 2, 1)})
    dimensions = sorted({LEAST_DIMENSION} | {max(1000, scene.dimension // by) for by in (4, 2, 1)})
    return [replace(scene, participants=n, dimension=d) for n in counts for d in dimensions]


@dataclass(frozen=True)
class Growth:
    """Exponents of n·d, and of how much the filter's seconds differ with d alone.

    `exponent` is that of the data path's seconds beyond what as many participants take with hardly any parameters,
    `plain_exponent` of the plaintext round's beyond the same; `whole_exponent` is that of secure rounds as they are.
    """

    exponent: float
    plain_exponent: float
    whole_exponent: float
    filter_spread: dict[int, float]  # participants -> largest by smallest filter time over the dimensions


def growth(measured: Sequence[Comparison]) -> Growth:
    """Least squares in logarithms over all sizes; of each number of participants one has `LEAST_DIMENSION`."""
    least = {c.scene.participants: c for c in measured if c.scene.dimension == LEAST_DIMENSION}
    larger = [c for c in measured if c.scene.dimension != LEAST_DIMENSION]

    def beyond_the_least(seconds: Callable[[Comparison], float]) -> list[float]:
        return [max(seconds(c) - seconds(least[c.scene.participants]), 1e-3) for c in larger]

    spread: dict[int, list[float]] = {}
    for c in larger:
        spread.setdefault(c.scene.participants, []).append(c.phases.get("filter", 0.0))
    return Growth(
        _exponent(larger, beyond_the_least(_data_path)),
        _exponent(larger, beyond_the_least(lambda c: c.plain_wall)),
        _exponent(larger, [c.secure.times.wall for c in larger]),
        {n: max(seconds) / max(min(seconds), 1e-3) for n, seconds in spread.items()},
    )


def _data_path(c: Comparison) -> float:
    return sum(c.phases.get(name, 0.0) for name in DATA_PATH)


def _exponent(measured: Sequence[Comparison], seconds: Sequence[float]) -> float:
    size = np.log([c.scene.participants * c.scene.dimension for c in measured])
    return float(np.polyfit(size, np.log(seconds), 1)[0])
