"""Divide and conquer (Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine"), by powers of the Gram matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.registry import Options, ceil_log2, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_SQUARINGS = 13  # 8192 steps of the power iteration
_PLACES = 26
_LARGEST_PLACES = 59


def _kept(rows: int, options: Options) -> int:
    malicious, fraction = int(options.get("num_malicious_nodes", 0)), float(options.get("filter_fraction", 1.0))
    return max(1, rows - int(fraction * malicious))


@rule("dnc", selected=_kept, minimum={"num_malicious_nodes": 0, "filter_fraction": 0.0})
def dnc(gram: ReplicatedTensor, *, num_malicious_nodes: int = 0, filter_fraction: float = 1.0) -> ReplicatedTensor:
    """1 for the rows whose part in the top singular direction of the centred updates is smallest, else 0.

    The int(filter_fraction * num_malicious_nodes) largest are dropped, among equals those with the higher index. One
    pass over all coordinates: the paper's random subsets of coordinates are not functions of the Gram matrix. A row's
    part is u_i^2, u the top eigenvector of the centred Gram matrix C: the diagonal of a high power of C, up to scale.
    """
    rows = gram.size(0)
    # Rows are at most 1.1 sqrt(4) long, in clip norms, wherever they come from: rows^2 times that stays below 2^62.
    gram = gram.rescale(min(gram.fraction_bits, _LARGEST_PLACES - 2 * ceil_log2(rows)))
    sums = gram.sum(-1)
    centred = gram * (rows * rows) - (sums.unsqueeze(0) + sums.unsqueeze(1)) * rows + sums.sum()
    power = _unit_trace(centred.rescale(max(_PLACES, centred.fraction_bits - 2 * ceil_log2(rows))))
    for _ in range(_SQUARINGS):
        power = _unit_trace(power.matmul(power))
    kept = _kept(rows, {"num_malicious_nodes": num_malicious_nodes, "filter_fraction": filter_fraction})
    smallest: ReplicatedTensor = power.diagonal().smallest(kept)
    return smallest


def _unit_trace(matrix: ReplicatedTensor) -> ReplicatedTensor:
    """A positive semi-definite matrix times a power of four, as integers with a trace in [2^24, 2^26)."""
    words = matrix.times_power_of_two(matrix.fraction_bits)
    scaled: ReplicatedTensor = words * words.diagonal().sum().leading_power()  # the trace is in [2^60, 2^62) now
    return scaled.times_power_of_two(_PLACES - 62).rescale(0)
