"""Protocols on additive shares mod 2^64 (Araki et al. 2016; conversions after ABY3, Mohassel and Rindal 2018).

Every function is run by all three parties together. Nothing here opens, branches on or indexes by a secret.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from triskele.ids import PARTIES
from triskele_server.mpc.session import Session, Shares

LIMIT_BITS = 62  # truncation is right for values in [-2^62, 2^62)


def constant(session: Session, value: torch.Tensor) -> Shares:
    """Trivial shares of a public tensor: share 0 is the value."""
    zero = torch.zeros_like(value)
    return Shares(value if session.party == 0 else zero, value if session.party == 2 else zero)


def add(x: Shares, y: Shares) -> Shares:
    """x + y, local."""
    return Shares(x.first + y.first, x.second + y.second)


def reshare(session: Session, label: str, part: torch.Tensor) -> Shares:
    """Replicated shares of the value whose additive parts the parties hold. One word per element from each party.

    Party 0 deals its part to the others, who `pool` the value: one round if party 0 is ahead of them (it waits for
    nobody here), two if not.
    """
    dealt = deal(session, label, part if session.party == 0 else None, part)
    return pool(session, label, part + (dealt.first if session.party == 1 else dealt.second))


def reshare_at_once(session: Session, label: str, part: torch.Tensor) -> Shares:
    """The same in one round whoever is ahead; party 0 sends two words per element.

    All parts, masked with a sharing of zero, go to parties 1 and 2; what party 0 sends is less shares 0 and 1, so that
    the sum is share 2.
    """
    own = _drawn_share(session, part)
    masked = part + session.randomness.zero_sum(tuple(part.shape), part.dtype)
    if session.party == 0:
        masked = masked - (own.first + own.second)
        for peer in (session.next, session.previous):
            session.send(peer, label, masked)
        return own
    peer = session.next if session.party == 1 else session.previous
    session.send(peer, label, masked)
    received = session.receive_all({peer: label, PARTIES[0]: label}, masked)
    return _with_third(session, own, masked + received[0] + received[1])


def multiply(session: Session, x: Shares, y: Shares) -> Shares:
    """Element-wise product (shapes broadcast). One round."""
    return reshare(session, "mul", x.first * (y.first + y.second) + x.second * y.first)


def matmul(session: Session, x: Shares, y: Shares) -> Shares:
    """Matrix product. One round, one word per element of the result."""
    return reshare(session, "matmul", x.first @ (y.first + y.second) + x.second @ y.first)


def deal(session: Session, label: str, value: torch.Tensor | None, like: torch.Tensor) -> Shares:
    """Shares of a value that party 0 alone knows (the others pass None); share 2 is zero. One word to party 2."""
    shape = tuple(like.shape)
    if session.party == 0 and value is not None:
        mask = session.randomness.with_next(shape, like.dtype)
        session.send(session.previous, label, value - mask)
        return Shares(value - mask, mask)
    zero = torch.zeros_like(like)
    if session.party == 1:
        return Shares(session.randomness.with_previous(shape, like.dtype), zero)
    return Shares(zero, session.receive(session.next, label, like, ahead=True))


def pool(session: Session, label: str, part: torch.Tensor) -> Shares:
    """As `reshare` for a value in which party 0 has no part (its `part` gives the shape only). One round.

    Shares 0 and 1 are drawn, so party 0 sends nothing. Parties 1 and 2 learn share 2: each sends its part less the
    share that the other does not hold, which masks it.
    """
    return begin_pool(session, label, part)()


def begin_pool(session: Session, label: str, part: torch.Tensor, *, ahead: bool = False) -> Callable[[], Shares]:
    """`pool` up to where it waits; what is returned waits. `ahead`: for what was sent before something waited for."""
    own = _drawn_share(session, part)
    if session.party == 0:
        return lambda: own
    peer = session.next if session.party == 1 else session.previous
    masked = part - (own.first + own.second)
    session.send(peer, label, masked)
    return lambda: _with_third(session, own, masked + session.receive(peer, label, masked, ahead=ahead))


def _drawn_share(session: Session, like: torch.Tensor) -> Shares:
    """Shares 0 (of parties 2 and 0) and 1 (of parties 0 and 1), drawn; zero where this party also holds share 2."""
    shape, zero = tuple(like.shape), torch.zeros_like(like)
    first = session.randomness.with_previous(shape, like.dtype) if session.party != 2 else zero
    second = session.randomness.with_next(shape, like.dtype) if session.party != 1 else zero
    return Shares(first, second)


def _with_third(session: Session, own: Shares, third: torch.Tensor) -> Shares:
    return Shares(own.first, third) if session.party == 1 else Shares(third, own.second)


def two_summands(session: Session, x: Shares) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """x as a sum of two words: x_0 + x_1, known to party 0, and x_2, known to parties 1 and 2."""
    if session.party == 0:
        return x.first + x.second, None
    return None, x.second if session.party == 1 else x.first


def times_known(session: Session, dealt: Shares, factor: torch.Tensor | None) -> torch.Tensor:
    """This party's additive part of a dealt value (share 2 is zero) times a factor that parties 1 and 2 know."""
    if factor is None:
        return torch.zeros_like(dealt.first)
    return (dealt.first if session.party == 1 else dealt.second) * factor


def bit_to_word(
    session: Session, bits: Shares, combine: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Shares:
    """Additive int64 shares of XOR-shared bits (the lowest one of each element). Two rounds.

    `combine` is a public linear map applied to the additive parts before they are re-shared, so that a sum of many
    bits travels as one word.
    """
    like = torch.empty(bits.shape, dtype=torch.int64)
    known, v = _known_bits(session, bits)
    u = deal(session, "bit", known, like)
    part = times_known(session, u, 1 - 2 * v if v is not None else None)  # u xor v = u (1 - 2 v) + v
    if session.party == 1 and v is not None:
        part = part + v
    return pool(session, "bit", combine(part) if combine is not None else part)


def times_bit(session: Session, bits: Shares, x: Shares) -> Shares:
    """x where the XOR-shared bit (the lowest of an element) is 1, else 0; equal shapes. Two rounds.

    u is party 0's part of the bit and v that of parties 1 and 2, s = 1 - 2 v, and D = x_0 + x_1, which party 0 knows:
    (u xor v) (D + x_2) = s (u D + u x_2) + v (D + x_2). Party 0 deals u and u D; D is dealt already.
    """
    like = torch.empty((2, *x.shape), dtype=torch.int64)
    u, v = _known_bits(session, bits)
    dealt = deal(session, "select", torch.stack([u, u * (x.first + x.second)]) if u is not None else None, like)
    part = torch.zeros_like(x.first)
    if v is not None:
        mine, third, (u_part, product) = (
            (x.first, x.second, dealt.first) if session.party == 1 else (x.second, x.first, dealt.second)
        )
        part = (1 - 2 * v) * (product + u_part * third) + v * mine
        if session.party == 1:
            part = part + v * third
    return pool(session, "select", part)


def _known_bits(session: Session, bits: Shares) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """XOR-shared bits as u xor v: u of party 0, v of parties 1 and 2, both 0 or 1 in an int64."""
    if session.party == 0:
        return ((bits.first ^ bits.second) & 1).long(), None
    return None, ((bits.second if session.party == 1 else bits.first) & 1).long()


def truncate(session: Session, x: Shares, bits: int, low_carry: Shares | None = None) -> Shares:
    """x / 2^bits for x in [-2^62, 2^62). Two rounds.

    Without `low_carry` (0 or 1: whether the two summands' low bits carry) the error is in (-1, 1] units, its mean
    2^-bits; with it the result is the exact floor (see boolean.floor_shift, which computes it).

    With y = x + 2^62 in [0, 2^63) and y = a + b - c 2^64, c is "the top bit of a or that of b" (were exactly one of
    them set without a wrap, y would be 2^63 or more), so the wrap costs one product of bits known to their holders
    and the large error of local truncation cannot occur.
    """
    offset = torch.tensor(1 << LIMIT_BITS)
    y = add(x, constant(session, offset.expand(x.shape)))
    a, b = two_summands(session, y)
    like = torch.empty(x.shape, dtype=torch.int64)
    shifted = deal(session, "shift", a >> bits if a is not None else None, like)
    top = deal(session, "shift-top", _top(a) if a is not None else None, like)
    part = times_known(session, top, _top(b) << (64 - bits) if b is not None else None)
    if session.party == 1 and b is not None:
        part = part + shifted.first + (b >> bits)
    elif session.party == 2:
        part = part + shifted.second
    result = pool(session, "shift", part)
    # Without the carry of the low bits the sum of two floors is 1 too low on average.
    carry = low_carry if low_carry is not None else constant(session, torch.ones(x.shape, dtype=torch.int64))
    correction = constant(session, torch.full(x.shape, -(1 << (LIMIT_BITS - bits)), dtype=torch.int64))
    return add(add(result, carry), correction)


def _top(word: torch.Tensor) -> torch.Tensor:
    return (word < 0).long()
