"""Coordinate-wise median and trimmed mean (Yin et al. 2018, "Byzantine-robust distributed learning")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.registry import CoordinateSum, Options, coordinate_wise

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


def _comparisons(rows: int, options: Options) -> int:
    return rows * (rows - 1) // 2 + 3 * rows  # each pair once, then each rank with two or three bounds


@coordinate_wise("median", comparisons=_comparisons)
def median(columns: ReplicatedTensor) -> CoordinateSum:
    """The median of each row of integers [coordinates, n]; even n: the mean of the two middle ones."""
    rows = columns.size(-1)
    if rows % 2:
        return CoordinateSum(columns.order_statistics(rows // 2)[0], 1)
    low, high = columns.order_statistics(rows // 2 - 1, rows // 2)
    return CoordinateSum(low + high, 2)


@coordinate_wise("trimmed-mean", comparisons=_comparisons, minimum={"num_malicious_nodes": 0})
def trimmed_mean(columns: ReplicatedTensor, *, num_malicious_nodes: int = 0) -> CoordinateSum:
    """The mean of each row of integers [coordinates, n] without its f smallest and its f largest values."""
    rows = columns.size(-1)
    trimmed = min(num_malicious_nodes, (rows - 1) // 2)
    below = columns.rank_below(trimmed, rows - trimmed)
    return CoordinateSum((columns * (below[1] - below[0])).sum(-1), rows - 2 * trimmed)
