"""Products that are truncated before they are shared again: two rounds, where a product and a truncation take three.

The parts of a product are an additive three-way sharing. Parties 0 and 1 show each other their masked parts, so both
know c, and party 2 alone knows the rest r of z = c + r mod 2^64. To parties 0 and 1 c is uniform: each lacks one of
the two masks in it. The wrap is found as in arithmetic.truncate.
"""

from __future__ import annotations

import torch

from triskele_server.mpc.arithmetic import LIMIT_BITS, reshare
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
    shape = tuple(part.shape)
    masked = part + session.randomness.zero_sum(shape)
    if session.party == 2:
        bit = _top(masked)
        session.send(session.next, "rest-top", bit - session.randomness.with_previous(shape, torch.int64))
        quotient = masked >> bits
    else:
        peer = session.next if session.party == 0 else session.previous
        session.send(peer, "part", masked)
        # z + 2^62 is in [0, 2^63): the sum of c and r wraps where either has its top bit set.
        c = masked + session.receive(peer, "part", masked) + (1 << LIMIT_BITS)
        if session.party == 0:
            bit = session.receive(session.previous, "rest-top", c)
            # The sum of two floors is 1 too low but for the carry of the low bits, which is nearly always 1.
            quotient = (c >> bits) + (1 - (1 << (LIMIT_BITS - bits)))
        else:
            bit = session.randomness.with_next(shape, torch.int64)
            quotient = torch.zeros_like(c)
        quotient = quotient + ((_top(c) * bit) << (64 - bits))
    return reshare(session, "quotient", quotient if plus is None else quotient + plus)


def _top(word: torch.Tensor) -> torch.Tensor:
    return (word < 0).long()
