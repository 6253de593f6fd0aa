"""Nearest-neighbour mixing (Allouah et al. 2023, "Fixing by mixing")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.geometry import squared_distances
from triskele_server.rules.registry import Mixing, pre_aggregation

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


@pre_aggregation("nnm", minimum={"num_malicious_nodes": 0})
def nnm(gram: ReplicatedTensor, *, num_malicious_nodes: int = 0) -> Mixing:
    """Row i becomes the mean of its n - f nearest rows, itself among them; ties to the lower index."""
    neighbours = max(1, gram.size(0) - num_malicious_nodes)
    return Mixing(squared_distances(gram).smallest(neighbours), neighbours)
