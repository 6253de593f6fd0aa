"""Centered clipping (Karimireddy et al. 2021, "Learning from history for Byzantine robust optimization")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele_server.rules.geometric_median import squared_distances_to
from triskele_server.rules.registry import SCALE_BITS, Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_PLACES = 26
_LEAST, _MOST = 2.0**-16, 4.0  # of tau in units of the clip norm
_MAX_ROWS_BITS = 8  # a coefficient times n is at most n


@rule(
    "centered-clip",
    giving="public",
    scale_bits=_MAX_ROWS_BITS,
    reference="previous",
    minimum={"iterations": 1, "tau": 0.0},
)
def centered_clip(gram: ReplicatedTensor, *, clip_norm: float, iterations: int = 1, tau: float = 0.0) -> Scaled:
    """v <- v + (1/n) sum (x_i - v) min(1, tau / |x_i - v|), from v = the previous aggregate, the last row.

    `tau` is in the units of the updates; 0 means the clip norm. v is kept as n times its coefficients.
    """
    radius = min(max((tau or clip_norm) / clip_norm, _LEAST), _MOST) ** 2
    rows = gram.size(0) - 1
    last = np.zeros(rows + 1)
    last[-1] = rows
    scaled = (gram.diagonal() * 0).times_power_of_two(gram.fraction_bits - _PLACES) + last
    for _ in range(iterations):
        distances = squared_distances_to(gram, scaled.div(rows))[:-1]
        outside = distances.gt(radius)
        ratio = (distances * 0 + radius).root_ratio(distances, _PLACES)  # at most 1 where a row is outside
        factors = (ratio - 1) * outside + 1
        kept = (-factors.sum() + rows).div(rows)
        scaled = scaled * kept
        scaled = scaled.cat([scaled[:-1] + factors, scaled[-1:]])
    positive = (scaled * (-scaled.lt(0) + 1)).rescale(SCALE_BITS)
    return Scaled(np.ones(rows, np.int64), positive[:-1], positive[-1])
