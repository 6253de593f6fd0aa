"""The discrete Gaussian N_Z(0, sigma^2) over the integers, sampled exactly, for sigma = 4 s with a whole number s.

P(x) is proportional to exp(-x^2 / (2 sigma^2)). Rejection from a staircase whose steps are s wide; Karney's algorithm D
("Sampling exactly from the normal distribution", 2016) has steps of sigma:

    1. k >= 0 with probability proportional to exp(-k^2/32).
    2. A sign, and j uniform in {0, ..., s - 1}; -0 is thrown away.
    3. Keep it with probability exp(-y (2k + y) / 32), y = j/s; else from the start.

What is kept, k s + j with its sign, had the probability exp(-(k + y)^2/32), and k + y is 4 |x| / sigma.

Step 1 compares a uniform number u in [0, 1) with the cumulated probabilities F_k, which are irrational. The first 64
bits of u are drawn, the first 64 bits of the F_k are known, rounded down. They decide unless they are the same, once in
2^58 draws; then more bits of both are taken until they differ. So no bit is rounded away, and the table ends nowhere.

Step 3 is the Bernoulli trial of Canonne, Kamath, Steinke ("The discrete Gaussian for differential privacy", 2020,
algorithm 1): exp(-a) for 0 <= a <= 1 is the probability that in trials of probabilities a/1, a/2, a/3, ... the number
of the first failure is odd. Trial n here succeeds if three independent ones do, of probabilities y, (2k + y)/32, 1/n.
The second is whether i, uniform in {0, ..., 31}, is below 2k, or is 2k and one more trial of probability y succeeds.
Where k is 16 or more, each 16 of it are a factor exp(-y) by itself. Integers and comparisons only, no floating point.

A rejected attempt takes as long as it takes: the time of one sample depends on the sample. What can be seen is the time
of a whole vector, a sum over all its coordinates; nothing here is indexed by a secret.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from decimal import Decimal, localcontext
from functools import cache
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from triskele.keystream import KeyStream
from triskele.ring import Words
from triskele_server.linear.shares import chunks

STEPS: Final = 4  # of a standard deviation: sigma is a multiple of it
MAX_SIGMA: Final = 1 << 56  # k s + j stays far below 2^63: k > 400 has probability exp(-5000)

_BLOCK = 1 << 16  # samples from one part of the key stream
_BLOCK_COUNTERS = 1 << 64  # AES blocks between two parts: no part reads into the next one
_WORDS_EACH = 5  # 64-bit words that a sample takes, about
_TABLE_BITS = 64  # of u and the F_k, at first
_NONE_LEFT = -1
_UNDECIDED = -1
_GUARD = 80  # bits by which the F_k are computed more precisely than they are used

_Random = NDArray[np.uint64]
_Scale = tuple[np.uint64, np.uint64, np.uint64, _Random, np.uint64]


def discrete_gaussian(key: bytes, sigma: int, length: int) -> Words:
    """int64 [length] of independent samples from N_Z(0, sigma^2), a function of the 16-byte `key`.

    Raises ValueError unless sigma is a multiple of STEPS up to MAX_SIGMA.
    """
    if not STEPS <= sigma <= MAX_SIGMA or sigma % STEPS:
        raise ValueError(f"sigma {sigma} is not a multiple of {STEPS} up to {MAX_SIGMA}")
    samples = np.empty(length, np.int64)
    for start, stop in chunks(length, _BLOCK):
        samples[start:stop] = _block(key, sigma, start, stop)
    return samples


def _block(key: bytes, sigma: int, start: int, stop: int) -> Words:
    stream = KeyStream(key, block=start // _BLOCK * _BLOCK_COUNTERS)
    samples, filled = np.empty(stop - start, np.int64), 0
    left = np.empty(0, np.uint64)
    scale, whole = _scale(sigma // STEPS), _UNDECIDED
    while filled < len(samples):
        filled, used, undecided = _fill(samples, filled, left, scale, whole)
        left = left[used:]
        if undecided:
            whole = decided(int(left[0]) >> 64 - _TABLE_BITS, _TABLE_BITS, stream)
            continue
        whole = _UNDECIDED if used else whole
        # What an unfinished attempt has read it reads again: starting it anew would favour those that take few words.
        fresh = stream.words((len(samples) - filled) * _WORDS_EACH + 64).view(np.uint64)
        left = np.concatenate([left, fresh])
    return samples


@cache
def boundaries(bits: int) -> tuple[int, ...]:
    """floor(2^bits F_k) for k = 0, 1, ..., up to the first that is 2^bits - 1: step 1's cumulated probabilities.

    Decimal's exp is correctly rounded. With what is left out of the infinite sum the error stays below 2^-(_GUARD - 4).
    """
    with localcontext() as context:
        context.prec = (bits + _GUARD) // 3 + 4
        count = math.isqrt(23 * (bits + _GUARD)) + 1  # exp(-count^2/32) < 2^-(bits + _GUARD), as 23 > 32 ln 2
        heights = [(-Decimal(k * k) / 32).exp() for k in range(count)]
        unit, error = (1 << bits) / sum(heights, Decimal(0)), Decimal(2) ** (4 - _GUARD)
        found, cumulated = [-1], Decimal(0)
        while found[-1] != (1 << bits) - 1:
            cumulated += heights[len(found) - 1]
            least, most = (int(cumulated * unit + x) for x in (-error, error))
            if least != most:
                raise ArithmeticError(f"F_{len(found) - 1} is too near to a multiple of 2^-{bits}")
            found.append(least)
    return tuple(found[1:])


def decided(first: int, bits: int, stream: KeyStream) -> int:
    """Step 1's k for a u whose first `bits` bits are those of an F_k: the following ones are read from `stream`."""
    while True:
        first, bits = first << 64 | int(stream.words(1).view(np.uint64)[0]), bits + 64
        table = boundaries(bits)
        k = bisect_left(table, first)
        if table[k] != first:
            return k


def _scale(width: int) -> _Scale:
    """s, m = floor((2^64 - 1) / s), and m s: a word below that is in one of s classes of m words.

    Then step 1's table, and by how many bits a word is longer than its entries.
    """
    each = ((1 << 64) - 1) // width
    table = np.array(boundaries(_TABLE_BITS), np.uint64)
    return np.uint64(width), np.uint64(each), np.uint64(each * width), table, np.uint64(64 - _TABLE_BITS)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _fill(samples: Words, filled: int, words: _Random, scale: _Scale, whole: int) -> tuple[int, int, bool]:
    """Draw until `samples` is full, the words run out, or a word of step 1 decides nothing.

    How many are filled, how many words that took, whether the next word decides nothing. `whole`: step 1's k of the
    first attempt, if its word decided nothing.
    """
    _, _, _, table, unused = scale
    at = 0
    while filled < samples.shape[0] and at < words.shape[0]:
        k = whole if at == 0 and whole != _UNDECIDED else _whole_part(words[at] >> unused, table)
        if k == _UNDECIDED:
            return filled, at, True
        kept, value, after = _attempt(words, at + 1, k, scale)
        if after < 0:
            break
        at = after
        if kept:
            samples[filled] = value
            filled += 1
    return filled, at, False


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _whole_part(bits: np.uint64, table: _Random) -> int:
    """Step 1: k, or _UNDECIDED if the bits are those of an F_k."""
    k = 0
    while bits > table[k]:  # ends: no bits are above the last ones
        k += 1
    return _UNDECIDED if bits == table[k] else k


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _attempt(words: _Random, at: int, k: int, scale: _Scale) -> tuple[bool, int, int]:
    """Steps 2 and 3: whether it is kept, the sample, the place after the words it took; _NONE_LEFT if they ran out."""
    width, each, limit, _, _ = scale
    word, at = _word_below(words, at, limit)
    if at < 0 or at >= words.shape[0]:
        return False, 0, _NONE_LEFT
    j = word // each
    negative = words[at] & np.uint64(1) == np.uint64(1)
    at += 1
    if negative and k == 0 and j == np.uint64(0):
        return False, 0, at
    below = j * each
    kept = True
    for _ in range(k // 16):
        if kept and at >= 0:
            kept, at = _exp_minus(words, at, below, limit, np.uint64(32))
    if kept and at >= 0:
        kept, at = _exp_minus(words, at, below, limit, np.uint64(2 * (k % 16)))
    size = np.int64(k) * np.int64(width) + np.int64(j)
    return kept, -size if negative else size, at  # type: ignore[return-value]  # numba's int is int64


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _exp_minus(words: _Random, at: int, below: np.uint64, limit: np.uint64, twice: np.uint64) -> tuple[bool, int]:
    """True with probability exp(-y (twice + y) / 32) for twice < 32, exp(-y) for 32; y = below / limit."""
    n = np.uint64(0)
    going = True
    while going and at >= 0:
        n += np.uint64(1)
        if at >= words.shape[0]:
            return False, _NONE_LEFT
        i = words[at] & np.uint64(31)
        at += 1
        going = i <= twice
        if going and i == twice:
            word, at = _word_below(words, at, limit)
            going = word < below
        if going and at >= 0:
            word, at = _word_below(words, at, limit)
            going = word < below
        if going and at >= 0 and n > np.uint64(1):
            going, at = _one_in(words, at, n)
    return n % np.uint64(2) == np.uint64(1), at


@numba.njit(nogil=True, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _word_below(words: _Random, at: int, limit: np.uint64) -> tuple[np.uint64, int]:
    """A word below `limit`, uniform, and the place after it; _NONE_LEFT if there was none."""
    while at < words.shape[0]:
        word = words[at]
        at += 1
        if word < limit:
            return word, at
    return np.uint64(0), _NONE_LEFT


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _one_in(words: _Random, at: int, number: np.uint64) -> tuple[bool, int]:
    """True with probability 1 / number, from 2 to 2^32 - 1; without a division nearly always (Lemire 2019)."""
    while at < words.shape[0]:
        product = (words[at] >> np.uint64(32)) * number
        at += 1
        low = product & np.uint64(0xFFFFFFFF)
        if low >= number or low >= (np.uint64(1 << 32) - number) % number:
            return product >> np.uint64(32) == np.uint64(0), at
    return False, _NONE_LEFT
