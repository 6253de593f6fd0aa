"""Krum and multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant SGD")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.geometry import squared_distances
from triskele_server.rules.registry import Options, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


def _selected(rows: int, options: Options) -> int:
    return min(int(options.get("num_nodes_to_select", 1)), rows)


@rule("multi-krum", selected=_selected, minimum={"num_malicious_nodes": 0, "num_nodes_to_select": 1})
def multi_krum(
    gram: ReplicatedTensor, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1
) -> ReplicatedTensor:
    """1 for each of the rows with the smallest scores, else 0; ties to the lower index.

    A row's score is the sum of its max(1, n - f - 2) smallest squared distances to other rows, f =
    `num_malicious_nodes`. Options and defaults as in Flower's MultiKrum.
    """
    distances = squared_distances(gram)
    # A row's distance 0 to itself is its smallest and adds nothing: one more neighbour, itself, is taken.
    neighbours = max(1, gram.size(0) - num_malicious_nodes - 2) + 1
    scores = (distances.smallest(neighbours) * distances).sum(-1)
    selected: ReplicatedTensor = scores.smallest(num_nodes_to_select)
    return selected


@rule("krum", selected=lambda rows, options: 1, minimum={"num_malicious_nodes": 0})
def krum(gram: ReplicatedTensor, *, num_malicious_nodes: int = 0) -> ReplicatedTensor:
    """1 for the row with the smallest score, as multi-Krum's.

    Alone it would open one participant's update, so a minimum cohort of 2 refuses it; a stage such as `nnm` in front
    makes its row a mean of many.
    """
    selected: ReplicatedTensor = multi_krum(gram, num_malicious_nodes=num_malicious_nodes)
    return selected
