"""Protocols on XOR shares of bits: AND, and the two adders that comparisons and bit conversion stand on.

A sharing x = x_0 + x_1 + x_2 is the sum of two words, x_0 + x_1 known to party 0 and x_2 known to parties 1 and 2,
so its bits are those of one binary addition of two inputs.
"""

from __future__ import annotations

import torch

from triskele_server.mpc.arithmetic import LIMIT_BITS, add, bit_to_word, constant, pool_bits, truncate, two_summands
from triskele_server.mpc.session import Session, Shares


def _index_swap(i: int, j: int) -> tuple[int, int]:
    """Shift and mask that exchange bits i < j of the index of every bit of a 64-bit word."""
    mask = sum(1 << p for p in range(64) if p >> i & 1 and not p >> j & 1)
    return (1 << j) - (1 << i), mask


_SWAPS = (_index_swap(0, 5), _index_swap(1, 4), _index_swap(2, 3))
_HALF = {torch.int64: torch.int32, torch.int32: torch.int16, torch.int16: torch.uint8}


def xor(x: Shares, y: Shares) -> Shares:
    """x xor y, local."""
    return Shares(x.first ^ y.first, x.second ^ y.second)


def masked(x: Shares, mask: int) -> Shares:
    """x and a public mask, local."""
    return Shares(x.first & mask, x.second & mask)


def flipped(session: Session, x: Shares) -> Shares:
    """The complement of one-bit values, local."""
    return xor(x, constant(session, torch.ones_like(x.first)))


def conjunction(session: Session, x: Shares, y: Shares) -> Shares:
    """x and y, bit by bit. One round."""
    part = _conjunction_part(x, y)
    part = part ^ session.randomness.zero_xor(tuple(part.shape), part.dtype)
    return Shares(part, session.pass_back("and", part))


def _conjunction_part(x: Shares, y: Shares) -> torch.Tensor:
    return (x.first & (y.first ^ y.second)) ^ (x.second & y.first)


def any_bit(session: Session, bits: Shares) -> Shares:
    """Whether any of the one-bit values along the last dimension is set: ceil(log2) rounds."""
    while bits.shape[-1] > 1:
        half = bits.shape[-1] // 2
        low, high, odd = (_part(bits, *s) for s in ((0, half), (half, 2 * half), (2 * half, None)))
        both = xor(xor(low, high), conjunction(session, low, high))
        bits = Shares(torch.cat([both.first, odd.first], -1), torch.cat([both.second, odd.second], -1))
    return Shares(bits.first[..., 0], bits.second[..., 0])


def _part(x: Shares, start: int, stop: int | None) -> Shares:
    return Shares(x.first[..., start:stop].contiguous(), x.second[..., start:stop].contiguous())


def _inputs(
    session: Session, a: torch.Tensor | None, b: torch.Tensor | None, like: torch.Tensor
) -> tuple[Shares, Shares]:
    """XOR shares of a word of party 0 (share 2 is zero) and of a word of parties 1 and 2 (it is share 2)."""
    zero = torch.zeros_like(like)
    shape = tuple(like.shape)
    if session.party == 0 and a is not None:
        mask = session.randomness.with_next(shape, torch.int64)
        session.send(session.previous, "word", a ^ mask)
        return Shares(a ^ mask, mask), Shares(zero, zero)
    if session.party == 1 and b is not None:
        return Shares(session.randomness.with_previous(shape, torch.int64), zero), Shares(zero, b)
    received = session.receive(session.next, "word", like)
    return Shares(zero, received), Shares(b if b is not None else zero, zero)


def _generated(session: Session, x: Shares, y: Shares) -> Shares:
    """x and y of `_inputs`, of whose conjunction party 0 has no part. One round."""
    return pool_bits(session, "and", _conjunction_part(x, y))


def _bit_reversal_permuted(word: torch.Tensor) -> torch.Tensor:
    """Bit p moves to the place whose six-bit index is p's read backwards: neighbours become the halves of the word."""
    for shift, mask in _SWAPS:
        moved = ((word >> shift) ^ word) & mask
        word = word ^ moved ^ (moved << shift)
    return word


def _rotated(word: torch.Tensor) -> torch.Tensor:
    return (word << 1) | ((word >> 63) & 1)


def top_bit_of_sum(session: Session, a: torch.Tensor | None, b: torch.Tensor | None, like: torch.Tensor) -> Shares:
    """Bit 63 of a + b, as uint8 XOR shares in {0, 1}. Eight rounds, 25 bytes per element and party.

    A carry tree over bits 0 to 62. The words are rotated by one (bit 63 takes the place below bit 0, where only
    its propagate bit is used) and permuted by bit reversal, so that in every level the pairs to combine are the
    two halves of a word and each level works on words of half the size.
    """
    a = _bit_reversal_permuted(_rotated(a)) if a is not None else None
    b = _bit_reversal_permuted(_rotated(b)) if b is not None else None
    x, y = _inputs(session, a, b, like)
    propagate = xor(x, y)
    top = Shares((propagate.first & 1).to(torch.uint8), (propagate.second & 1).to(torch.uint8))
    generate = masked(_generated(session, x, y), ~1)
    while generate.first.dtype != torch.uint8:
        generate, propagate = _combined_halves(session, generate, propagate)
    for width in (4, 2, 1):
        generate, propagate = _combined_bits(session, generate, propagate, width)
    return xor(top, masked(generate, 1))


def _combined_halves(session: Session, generate: Shares, propagate: Shares) -> tuple[Shares, Shares]:
    """One level: the high half's carry generation and propagation taken together with the low half's."""
    g_low, g_high = _halves(generate)
    p_low, p_high = _halves(propagate)
    left = Shares(torch.stack([p_high.first, p_high.first]), torch.stack([p_high.second, p_high.second]))
    right = Shares(torch.stack([g_low.first, p_low.first]), torch.stack([g_low.second, p_low.second]))
    both = conjunction(session, left, right)
    return xor(g_high, Shares(both.first[0], both.second[0])), Shares(both.first[1], both.second[1])


def _halves(x: Shares) -> tuple[Shares, Shares]:
    half = _HALF[x.first.dtype]
    first, second = (t.contiguous().unsqueeze(-1).view(half) for t in (x.first, x.second))
    return Shares(first[..., 0], second[..., 0]), Shares(first[..., 1], second[..., 1])


def _combined_bits(session: Session, generate: Shares, propagate: Shares, width: int) -> tuple[Shares, Shares]:
    """One level inside a byte of 2 * width bits; generate and propagate of the result share one byte on the wire."""
    mask = (1 << width) - 1

    def packed(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (low & mask) | ((high & mask) << width)

    left = Shares(*(packed(p >> width, p >> width) for p in (propagate.first, propagate.second)))
    right = Shares(packed(generate.first, propagate.first), packed(generate.second, propagate.second))
    both = conjunction(session, left, right)
    high = Shares((generate.first >> width) & mask, (generate.second >> width) & mask)
    return xor(high, masked(both, mask)), Shares((both.first >> width) & mask, (both.second >> width) & mask)


def sign_bit(session: Session, x: Shares) -> Shares:
    """Whether x, read as a signed word, is negative; uint8 XOR shares."""
    a, b = two_summands(session, x)
    return top_bit_of_sum(session, a, b, torch.empty(x.shape, dtype=torch.int64))


def is_zero(session: Session, x: Shares) -> Shares:
    """Whether a word is 0; uint8 XOR shares in {0, 1}. Seven rounds; 10 bytes per element, and 8 from party 0.

    x = a + b is 0 where a and -b agree in every bit: a tree of conjunctions, each level on words of half the size.
    """
    a, b = two_summands(session, x)
    # The complement of -b is b - 1.
    u, v = _inputs(session, a, b - 1 if b is not None else None, torch.empty(x.shape, dtype=torch.int64))
    equal = xor(u, v)
    while equal.first.dtype != torch.uint8:
        equal = conjunction(session, *_halves(equal))
    for width in (4, 2, 1):
        equal = conjunction(session, *(masked(part, (1 << width) - 1) for part in (equal, _shifted(equal, width))))
    return masked(equal, 1)


def _shifted(x: Shares, distance: int) -> Shares:
    return Shares(x.first >> distance, x.second >> distance)


def floor_shift(session: Session, x: Shares, bits: int) -> Shares:
    """floor(x / 2^bits), exact, for x in [-2^62, 2^62): the low bits' carry comes from a comparison circuit."""
    offset = constant(session, torch.full(x.shape, 1 << LIMIT_BITS, dtype=torch.int64))
    a, b = two_summands(session, add(x, offset))
    low = (1 << bits) - 1

    def aligned(word: torch.Tensor | None) -> torch.Tensor | None:
        return (word & low) << (63 - bits) if word is not None else None

    carry = top_bit_of_sum(session, aligned(a), aligned(b), torch.empty(x.shape, dtype=torch.int64))
    return truncate(session, x, bits, low_carry=bit_to_word(session, carry))
