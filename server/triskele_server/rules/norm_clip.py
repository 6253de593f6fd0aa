"""Norm clipping to a fixed bound, to the round's median norm (compare Sun et al. 2019, "Can you really backdoor
federated learning?"), or to a bound that follows a quantile from round to round (rules/adaptive_bound.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele.task import FRACTION_BITS
from triskele_server.rules.geometry import median_squared_norms
from triskele_server.rules.registry import SCALE_BITS, Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_PLACES = 26
_LEAST, _MOST = 2.0**-16, 2.0  # of the bound in units of the clip norm


@rule(
    "norm-clip",
    giving="public",
    scale_bits=0,
    norms_only=True,
    minimum={"bound": 0.0, "quantile": 0.0, "learning_rate": 0.0, "count_noise": 0.0},
    moves_alone=lambda options: options.get("bound", 0.0) != 0.0,
    counts=lambda options: options.get("quantile", 0.0) != 0.0,
)
def norm_clip(
    gram: ReplicatedTensor,
    *,
    clip_norm: float,
    adapted_bound: int,
    bound: float = 0.0,
    quantile: float = 0.0,
    learning_rate: float = 0.2,  # this and the next: rules/adaptive_bound.py
    count_noise: float = 0.0,
) -> Scaled:
    """Sum w_i min(1, m / |x_i|) x_i / sum w_i, m the bound in the units of the updates.

    0 means the median norm of the round (even n: the mean of the two middle norms). Median and factors stay secret.
    With a quantile m is `adapted_bound`, in units of 2^-20 of the clip norm, and the rows that are no longer are
    counted.
    """
    ones = np.ones(gram.size(0), np.int64)
    if quantile:
        factors, longer = clip_factors(gram, adapted_bound / (1 << FRACTION_BITS))
        return Scaled(ones, factors, counted=-longer + 1)
    return Scaled(ones, clip_factors(gram, bound / clip_norm)[0] if bound else median_clip_factors(gram))


def median_clip_factors(gram: ReplicatedTensor) -> ReplicatedTensor:
    """min(1, m / |x_i|) for each row, SCALE_BITS fraction bits."""
    low, high, longer = median_squared_norms(gram)
    ratios = gram.stack([low, high]).unsqueeze(1).root_ratio(gram.diagonal())
    factor = (ratios[0] + ratios[1]).times_power_of_two(-1).truncated(SCALE_BITS)  # at most 1 where a row is longer
    return (factor - 1) * longer + 1


def clip_factors(gram: ReplicatedTensor, bound: float) -> tuple[ReplicatedTensor, ReplicatedTensor]:
    """min(1, bound / |x_i|) for each row, SCALE_BITS fraction bits, and whether it is longer than the bound, 0 or 1.

    The bound is in units of the clip norm.
    """
    square = min(max(bound, _LEAST), _MOST) ** 2
    norms = gram.diagonal()
    longer = norms.gt(square)
    factor = (norms * 0 + square).root_ratio(norms, _PLACES).truncated(SCALE_BITS)  # at most 1 where a row is longer
    return (factor - 1) * longer + 1, longer
