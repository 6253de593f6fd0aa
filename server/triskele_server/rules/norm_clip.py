"""Norm clipping to the round's median norm (compare Sun et al. 2019, "Can you really backdoor federated learning?")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele_server.rules.registry import SCALE_BITS, Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


@rule("norm-clip", coefficient_bits=SCALE_BITS)
def norm_clip(gram: ReplicatedTensor) -> Scaled:
    """Sum w_i min(1, m / |x_i|) x_i / sum w_i, m the median norm (even n: the mean of the two middle norms).

    The median and the factors stay secret.
    """
    squared = gram.diagonal()
    rows = squared.size(0)
    low, high = squared.order_statistics((rows - 1) // 2, rows // 2)
    roots = squared.stack([low, high]).sqrt()
    median = (roots[0] + roots[1]) / 2
    # Above the median: with equal middle norms that is "greater than both", else "greater than the lower one".
    above = squared.gt((low + high) / 2)
    factor = (squared.inv_sqrt() * median).rescale(SCALE_BITS)
    return Scaled(np.ones(rows, np.int64), (factor - 1) * above + 1)
