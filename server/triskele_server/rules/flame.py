"""FLAME (Nguyen et al. 2022, "FLAME: taming backdoors in federated learning"), without the paper's noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from triskele_server.rules.geometry import cosines
from triskele_server.rules.norm_clip import median_clip_factors
from triskele_server.rules.registry import Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_DIGITS = 11  # of the threshold, to base 4
_UNIT_BITS = 20  # the threshold is found to 2^-20: distances closer than that count as equal


@rule("flame", scale_bits=0)
def flame(gram: ReplicatedTensor) -> Scaled:
    """Sum over the majority cluster of min(1, m / |x_i|) x_i, divided by the cluster's size; m the median norm of all.

    The cluster is the connected component with more than n/2 members of the graph {1 - cos(x_i, x_j) <= threshold},
    at the smallest threshold that has one (single linkage). Threshold, distances and cluster stay secret.
    """
    return Scaled(majority_cluster(-cosines(gram) + 1), median_clip_factors(gram))


def majority_cluster(distances: ReplicatedTensor) -> ReplicatedTensor:
    """0/1 integers [n]: membership in the majority component; distances [n, n] symmetric, in [0, 4).

    The threshold is found digit by digit, three candidates at a time.
    """
    rows = distances.size(0)
    low, high = np.triu_indices(rows, k=1)
    edges = distances[low, high]
    place = np.zeros((rows, rows), np.int64)
    place[low, high] = place[high, low] = np.arange(len(low))

    def members(units: ReplicatedTensor) -> ReplicatedTensor:
        """Membership bits [t, n] in a component with more than n/2 members, for thresholds [t]."""
        threshold = (units * 2 + 1).times_power_of_two(-(_UNIT_BITS + 1))  # half a unit above
        joined = -(threshold.unsqueeze(-1) - edges).lt(0) + 1
        diagonal = np.eye(rows, dtype=np.int64)
        graph = joined[:, place] * (1 - diagonal) + diagonal
        return graph.closure().sum(-1).count_above(rows // 2)

    found = edges.sum() * 0
    found = found.times_power_of_two(found.fraction_bits).reshape(1)
    for digit in reversed(range(1, _DIGITS)):
        step = 4**digit
        candidates = found + np.array([1, 2, 3]) * step - 1
        too_small = -members(candidates).sum(-1).count_above(0).sum() + 3
        found = found + too_small * step
    # Of the last digit's four the first that has one: the fourth does.
    last = members(found + np.arange(4))
    has_one = last[:3].sum(-1).count_above(0)
    first = has_one.cat([has_one[:1], has_one[1:] - has_one[:-1], -has_one[2:] + 1])
    chosen: ReplicatedTensor = (last * first.unsqueeze(-1)).sum(0)
    return chosen
