"""What the rules read off a secret Gram matrix of rows x_1, ..., x_n, in units of the clip norm.

Every squared norm is at most 1.21 and has 40 to 44 fraction bits; zero rows, equal rows and rows of any length are
allowed. Nothing is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor


def cosines(gram: ReplicatedTensor) -> ReplicatedTensor:
    """cos(x_i, x_j) [n, n] with 28 fraction bits, right to 2^-25; 0 where a row is zero, else exactly 1 to itself.

    Symmetric. Equal angles may come out 2^-25 apart.
    """
    return gram.cosines()


def squared_distances(gram: ReplicatedTensor) -> ReplicatedTensor:
    """|x_i - x_j|^2 [n, n], exact in the places of the Gram matrix."""
    norms = gram.diagonal()
    distances: ReplicatedTensor = norms.unsqueeze(0) + norms.unsqueeze(1) - gram * 2
    return distances


def median_squared_norms(gram: ReplicatedTensor) -> tuple[ReplicatedTensor, ReplicatedTensor, ReplicatedTensor]:
    """The two middle squared norms (equal if n is odd), and per row whether it comes after them: (low, high, longer).

    `longer` is 0 or 1. Rows of equal norm come in the order of their index, so a row that is as long as the median
    may count as longer.
    """
    norms = gram.diagonal()
    rows = norms.size(0)
    middle = (rows - 1) // 2, rows // 2
    bounds = sorted({*middle, *(place + 1 for place in middle)})
    compared = norms.rank_below(*bounds)
    below = {bound: compared[k] for k, bound in enumerate(bounds)}
    found = (norms.stack([below[place + 1] - below[place] for place in middle]) * norms).sum(-1)
    return found[0], found[1], -below[(rows + 1) // 2] + 1
