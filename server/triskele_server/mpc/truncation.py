"""Products that are truncated: two rounds, in which party 0 waits for nobody.

A product's parts are shared again with shares 0 and 1 drawn, so that party 0 knows their sum beforehand; what it gives
for the truncation goes out at once, too.
"""

from __future__ import annotations

import torch

from triskele_server.mpc.arithmetic import add, reshare, truncate
from triskele_server.mpc.session import Session, Shares


def product_part(x: Shares, y: Shares) -> torch.Tensor:
    """This party's part of the element-wise product (shapes broadcast), not yet masked."""
    return x.first * (y.first + y.second) + x.second * y.first


def matmul_part(x: Shares, y: Shares) -> torch.Tensor:
    """The same of the matrix product."""
    return x.first @ (y.first + y.second) + x.second @ y.first


def multiply_truncated(session: Session, x: Shares, y: Shares, bits: int, plus: torch.Tensor | None = None) -> Shares:
    """x y / 2^bits for products in [-2^62, 2^62), shapes broadcast; see `reshare_truncated`."""
    return reshare_truncated(session, product_part(x, y), bits, plus)


def reshare_truncated(session: Session, part: torch.Tensor, bits: int, plus: torch.Tensor | None = None) -> Shares:
    """Shares of z / 2^bits, 0 < bits <= 62, for z in [-2^62, 2^62), the sum of the parties' parts. Two rounds.

    The error is in (-1, 1] units. `plus` is this party's part of a word that is added to the quotient.
    """
    if plus is None:
        return truncate(session, reshare(session, "part", part), bits)
    both = reshare(session, "part", torch.stack(torch.broadcast_tensors(part, plus)))
    quotient = truncate(session, Shares(both.first[0], both.second[0]), bits)
    return add(quotient, Shares(both.first[1], both.second[1]))
