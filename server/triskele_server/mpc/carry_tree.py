"""The local steps of boolean.py's carry tree, on arrays of numbers.

A word is 16 digits of four bits, a narrow one 4. A place (of one digit, or of four neighbours) has two bits: g, whether
it gives off a carry by itself, and p, whether it passes one on. A node of the tree takes four places, numbered from the
lowest, into one:

    g = g_3 + p_3 g_2 + p_3 p_2 g_1 + p_3 p_2 p_1 g_0        p = p_3 p_2 p_1 p_0        (mod 2; no two terms are 1)

Each bit is m xor l, m known to two parties and l to the dealer, so that a product of bits is a sum of products of m's
and l's: with the dealer's shares of the products of two l's or more, 15 for g and 7 more for p, the two parties get
shares of g and p on their own. `lane` bits stand side by side: four nodes of the first level, the one of the last.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from triskele.ring import Words

Array = NDArray[Any]
WIDE, NARROW = 64, 16  # bits of a word
COLUMNS = {
    WIDE: 23,
    NARROW: 5,
}  # of 16 bits, dealt for a comparison: digits, the first level's products, the last one's

_jit = numba.njit(nogil=True, cache=True)


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def _place(digit: int, digits: int) -> int:
    """Where a digit's bit stands: the first nibble is for the lowest digit of each of the four nodes."""
    return 4 * (digit & 3) + (digit >> 2) if digits == 16 else digit


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def _products(g: int, p: int, lane: int) -> tuple[int, int]:
    """What the dealer gives for nodes with masks g and p: 16 products, then 6."""
    one = (1 << lane) - 1
    p0, p1, p2, p3 = p & one, p >> lane & one, p >> 2 * lane & one, p >> 3 * lane & one
    g0, g1, g2 = g & one, g >> lane & one, g >> 2 * lane & one
    p32, p31, p21 = p3 & p2, p3 & p1, p2 & p1
    p321 = p32 & p1
    low = p32 | p31 << lane | p21 << 2 * lane | p321 << 3 * lane
    low |= (p3 & g2) << 4 * lane | (p3 & g1) << 5 * lane | (p2 & g1) << 6 * lane | (p32 & g1) << 7 * lane
    low |= (p3 & g0) << 8 * lane | (p2 & g0) << 9 * lane | (p1 & g0) << 10 * lane | (p32 & g0) << 11 * lane
    low |= (p31 & g0) << 12 * lane | (p21 & g0) << 13 * lane | (p321 & g0) << 14 * lane | (p3 & p0) << 15 * lane
    high = (p2 & p0) | (p1 & p0) << lane | (p32 & p0) << 2 * lane | (p31 & p0) << 3 * lane
    return low, high | (p21 & p0) << 4 * lane | (p321 & p0) << 5 * lane


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def dealt(words: Words, masks: Array, last_masks: Array, out: Array) -> None:
    """What the dealer gives for its summands [n] with the masks of the places: out [n, columns], to be shared.

    A digit's column has bit j set where the digit is j or more, 0 < j < 16.
    """
    digits = 16 if out.shape[1] == 23 else 4
    width = 4 * digits
    for i in range(len(words)):
        aligned = words[i] << (65 - width)  # without the top bit, which is no part of the carry
        for digit in range(digits):
            out[i, digit] = (2 << (aligned >> (64 - width + 4 * digit) & 15)) - 2
        if digits == 16:
            low, high = _products(masks[i] & 0xFFFF, masks[i] >> 16 & 0xFFFF, 4)
            for k in range(4):
                out[i, 16 + k] = low >> 16 * k
            out[i, 20], out[i, 21] = high, high >> 16
        low, _ = _products(last_masks[i] & 15, last_masks[i] >> 4, 1)
        out[i, -1] = (low & 0x7FFF) | (words[i] >> (width - 1) & 1) << 15


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def first_places(words: Words, shares: Array, one: int, masks: Array, out: Array) -> None:
    """This party's masked part of g and p of every digit, [n]; g below, p above.

    `words` are the other summand, `shares` the party's part of what was dealt, `one` its part of 1.
    """
    digits = 16 if shares.shape[1] == 23 else 4
    for i in range(len(words)):
        aligned = words[i] << (65 - 4 * digits)
        g, p = 0, 0
        for digit in range(digits):
            # The digits' sum is 16 or more where the dealer's is 16 - d or more, and 15 where it is just 15 - d.
            other = aligned >> (64 - 4 * digits + 4 * digit) & 15
            column = (np.int64(shares[i, digit]) & 0xFFFE) | one
            gives = column >> (16 - other) & 1
            place = _place(digit, digits)
            g |= gives << place
            p |= ((column >> (15 - other) & 1) ^ gives) << place
        out[i] = (g | p << digits) ^ masks[i]


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def _thrice(m: tuple[int, int, int], x: tuple[int, int], products: tuple[int, ...], dealt: int, lane: int) -> int:
    """A share of p_3 p_2 p_1 x, x = (m0, l0); `products` are shares of those of the l's without l0, 1 the first."""
    m0, l0 = x
    one = (1 << lane) - 1
    none, l3, l2, l1, l32, l31, l21, l321 = products
    none = (m0 & none) ^ l0
    l3 = (m0 & l3) ^ (dealt & one)
    l2 = (m0 & l2) ^ (dealt >> lane & one)
    l1 = (m0 & l1) ^ (dealt >> 2 * lane & one)
    l32 = (m0 & l32) ^ (dealt >> 3 * lane & one)
    l31 = (m0 & l31) ^ (dealt >> 4 * lane & one)
    l21 = (m0 & l21) ^ (dealt >> 5 * lane & one)
    l321 = (m0 & l321) ^ (dealt >> 6 * lane & one)
    m3, m2, m1 = m
    none, l2, l1, l21 = (m3 & none) ^ l3, (m3 & l2) ^ l32, (m3 & l1) ^ l31, (m3 & l21) ^ l321
    none, l1 = (m2 & none) ^ l2, (m2 & l1) ^ l21
    return (m1 & none) ^ l1


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def _node(
    known: tuple[int, int], masks: tuple[int, int], dealt: tuple[int, int], one: int, lane: int
) -> tuple[int, int]:
    """This party's parts of g and p of the nodes."""
    full = (1 << lane) - 1
    (mg, mp), (lg, lp), (low, high) = known, masks, dealt
    m = mp >> 3 * lane & full, mp >> 2 * lane & full, mp >> lane & full
    l3, l2, l1 = lp >> 3 * lane & full, lp >> 2 * lane & full, lp >> lane & full
    l32, l31, l21, l321 = low & full, low >> lane & full, low >> 2 * lane & full, low >> 3 * lane & full
    products = one, l3, l2, l1, l32, l31, l21, l321
    m3, m2, _ = m
    g = ((mg >> 3 * lane) & one) ^ (lg >> 3 * lane & full)
    mx, lx = mg >> 2 * lane & full, lg >> 2 * lane & full
    g ^= (m3 & ((mx & one) ^ lx)) ^ (mx & l3) ^ (low >> 4 * lane & full)
    mx, lx = mg >> lane & full, lg >> lane & full
    without = (m3 & ((mx & one) ^ lx)) ^ (mx & l3) ^ (low >> 5 * lane & full)
    g ^= (m2 & without) ^ (m3 & ((mx & l2) ^ (low >> 6 * lane & full))) ^ (mx & l32) ^ (low >> 7 * lane & full)
    g ^= _thrice(m, (mg & full, lg & full), products, low >> 8 * lane, lane)
    p = _thrice(m, (mp & full, lp & full), products, (low >> 15 * lane & full) | high << lane, lane)
    return g, p


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def next_places(known: Array, shares: Array, one: int, masks: tuple[Array, Array], out: Array) -> None:
    """This party's part of g (low nibble) and p of the four nodes of the first level, [n], under the second mask."""
    for i in range(len(known)):
        m, mask = np.int64(known[i]), np.int64(masks[0][i])
        low = np.int64(0)
        for k in range(4):
            low |= (np.int64(shares[i, 16 + k]) & 0xFFFF) << 16 * k
        high = (np.int64(shares[i, 20]) & 0xFFFF) | (np.int64(shares[i, 21]) & 0xFFFF) << 16
        bits = (m & 0xFFFF, m >> 16 & 0xFFFF), (mask & 0xFFFF, mask >> 16 & 0xFFFF)
        g, p = _node(*bits, (low, high), 15 * one, 4)
        out[i] = (g | p << 4) ^ masks[1][i]


@_jit  # type: ignore[untyped-decorator]  # numba ships no types
def top_bits(known: Array, shares: Array, one: int, masks: tuple[Array, Array], out: Array) -> None:
    """This party's part of the last carry plus the dealer's top bit, [n], under the second mask."""
    for i in range(len(known)):
        m, mask, column = np.int64(known[i]), np.int64(masks[0][i]), np.int64(shares[i, -1])
        carry, _ = _node((m & 15, m >> 4), (mask & 15, mask >> 4), (column & 0x7FFF, np.int64(0)), one, 1)
        out[i] = carry ^ (column >> 15 & 1) ^ masks[1][i]
