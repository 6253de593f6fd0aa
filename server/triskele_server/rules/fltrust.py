"""FLTrust (Cao et al. 2021, "FLTrust: Byzantine-robust federated learning via trust bootstrapping")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.geometry import cosines
from triskele_server.rules.registry import MAX_SCALE_BITS, SCALE_BITS, WEIGHT_BITS, Scaled, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


@rule("fltrust", giving="fractions", rejects=True, scale_bits=MAX_SCALE_BITS, reference="root")
def fltrust(gram: ReplicatedTensor) -> Scaled:
    """Sum t_i (|r| / |x_i|) x_i / sum t_i, t_i = max(0, cos(x_i, r)); r, the last row, is the root's and not averaged.

    |r| / |x_i| is at most 2^15: shorter rows are mostly rounding noise. A zero row has trust 0.
    """
    similarity = cosines(gram)[-1, :-1]
    trust = similarity * (-similarity.lt(0) + 1)
    norms = gram.diagonal()
    scale = norms[-1].root_ratio(norms[:-1], SCALE_BITS)
    return Scaled(trust.rescale(WEIGHT_BITS), scale)
