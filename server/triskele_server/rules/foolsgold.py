"""FoolsGold (Fung et al. 2020, "The limitations of federated learning in Sybil settings"), without its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele_server.rules.geometry import cosines
from triskele_server.rules.registry import WEIGHT_BITS, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_LEAST = 2.0**-10  # a row's largest similarity counts as at least this much
_DOUBLE = 2.0**-20  # honesty below it is none: two rows that point the same way
_EDGE = 0.25  # |2 w - 1| beyond which the logit's bound is reached: ln(0.625 / 0.375) > 0.5


@rule("foolsgold", giving="fractions", rejects=True)
def foolsgold(gram: ReplicatedTensor) -> ReplicatedTensor:
    """Low weights for rows that are similar to another one: algorithm 1 of the paper on this round's updates alone.

    v_i = max_j cos_ij over the others; cos_ij shrinks by v_i / v_j where v_i < v_j; w_i = 1 - max_j cos_ij over max w;
    then ln(w / (1 - w)) + 1/2, all clipped to [0, 1].
    """
    rows = gram.size(0)
    diagonal = np.eye(rows, dtype=np.int64)
    similarity = cosines(gram) * (1 - diagonal) - diagonal * 2
    largest = _at_least(similarity.max(), _LEAST)
    column, row = largest.unsqueeze(1), largest.unsqueeze(0)
    pardoned = similarity * ((column / row - 1) * column.lt(row) + 1)
    honesty = _at_most_one(_at_least(-pardoned.max() + 1, 0.0))
    best = honesty.max()
    # Where every row has a double nobody is honest: what is left then is rounding, and is not to be blown up to 1.
    honesty = _at_most_one(honesty / best) * (-best.lt(_DOUBLE) + 1)
    # ln(w / (1 - w)) = 2 artanh(y), y = 2 w - 1; beyond _EDGE the result is clipped anyway.
    y = _at_least(honesty * 2 - 1, -_EDGE)
    y = y - _at_least(y - _EDGE, 0.0)
    square = y.square()
    series = ((square * (1 / 7) + 1 / 5) * square + 1 / 3) * square + 1
    return _at_most_one(_at_least(y * series * 2 + 0.5, 0.0)).rescale(WEIGHT_BITS)


def _at_least(x: ReplicatedTensor, bound: float) -> ReplicatedTensor:
    excess = x - bound
    kept: ReplicatedTensor = excess * (-excess.lt(0) + 1) + bound
    return kept


def _at_most_one(x: ReplicatedTensor) -> ReplicatedTensor:
    excess = x - 1
    kept: ReplicatedTensor = excess * excess.lt(0) + 1
    return kept
