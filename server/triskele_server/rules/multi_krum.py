"""Multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triskele.task import RuleOption
from triskele_server.rules.registry import rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


def _selected(rows: int, options: Mapping[str, RuleOption]) -> int:
    return min(int(options.get("num_nodes_to_select", 1)), rows)


@rule("multi-krum", selected=_selected, minimum={"num_malicious_nodes": 0, "num_nodes_to_select": 1})
def multi_krum(
    gram: ReplicatedTensor, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1
) -> ReplicatedTensor:
    """1 for each of the rows with the smallest scores, else 0; ties to the lower index.

    A row's score is the sum of its max(1, n - f - 2) smallest squared distances to other rows, f =
    `num_malicious_nodes`. Options and defaults as in Flower's MultiKrum.
    """
    rows = gram.size(0)
    norms = gram.diagonal()
    distances = norms.unsqueeze(0) + norms.unsqueeze(1) - gram * 2
    # A row's distance 0 to itself is its smallest and adds nothing: one more neighbour, itself, is taken.
    neighbours = max(1, rows - num_malicious_nodes - 2) + 1
    scores = (distances.smallest(neighbours) * distances).sum(-1)
    selected: ReplicatedTensor = scores.smallest(num_nodes_to_select)
    return selected
