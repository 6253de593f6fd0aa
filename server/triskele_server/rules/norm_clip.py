"""Norm clipping to the round's median norm (compare Sun et al. 2019, "Can you really backdoor federated learning?")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele_server.rules.geometry import median_squared_norms
from triskele_server.rules.registry import SCALE_BITS, Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


@rule("norm-clip", giving="public", scale_bits=0)
def norm_clip(gram: ReplicatedTensor) -> Scaled:
    """Sum w_i min(1, m / |x_i|) x_i / sum w_i, m the median norm (even n: the mean of the two middle norms).

    The median and the factors stay secret.
    """
    return Scaled(np.ones(gram.size(0), np.int64), median_clip_factors(gram))


def median_clip_factors(gram: ReplicatedTensor) -> ReplicatedTensor:
    """min(1, m / |x_i|) for each row, SCALE_BITS fraction bits."""
    low, high, longer = median_squared_norms(gram)
    ratios = gram.stack([low, high]).unsqueeze(1).root_ratio(gram.diagonal())
    factor = (ratios[0] + ratios[1]).times_power_of_two(-1).truncated(SCALE_BITS)  # at most 1 where a row is longer
    return (factor - 1) * longer + 1
