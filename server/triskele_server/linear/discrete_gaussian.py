"""The discrete Gaussian N_Z(0, sigma^2) over the integers, sampled exactly (Canonne, Kamath, Steinke 2020).

P(x) is proportional to exp(-x^2 / (2 sigma^2)). The sampler is Karney's for the discrete normal distribution ("Sampling
exactly from the normal distribution", 2016, algorithm D) at mean 0 and whole sigma: integers and comparisons only, no
floating point and no table that ends somewhere, so what comes out is the distribution itself, not nearly it. The
Bernoulli trials of probability exp(-a) are those of Canonne, Kamath, Steinke (algorithm 1).

    1. k >= 0 with probability proportional to exp(-k/2); keep it with exp(-k(k-1)/2): exp(-k^2/2) in all.
    2. A sign s and j uniform in {0, ..., sigma - 1}; -0 is thrown away.
    3. Keep s (k sigma + j) with exp(-k j/sigma) exp(-j^2 / (2 sigma^2)); else from the start.

A rejected attempt takes as long as it takes: the time of one sample depends on the sample. What can be seen is the time
of a whole vector, a sum over all its coordinates; nothing here is indexed by a secret.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray

from triskele.keystream import KeyStream
from triskele.ring import Words
from triskele_server.linear.shares import chunks

MAX_SIGMA = 1 << 56  # k sigma + j stays far below 2^63: k > 100 has probability exp(-5000)

_BLOCK = 1 << 16  # samples from one part of the key stream
_BLOCK_COUNTERS = 1 << 64  # AES blocks between two parts: no part reads into the next one
_WORDS_EACH = 20  # 64-bit words that a sample takes, about
_NONE_LEFT = -1

_Random = NDArray[np.uint64]
_Scale = tuple[np.uint64, np.uint64, np.uint64]


def discrete_gaussian(key: bytes, sigma: int, length: int, executor: Executor | None = None) -> Words:
    """int64 [length] of independent samples from N_Z(0, sigma^2), a function of the 16-byte `key`.

    Raises ValueError unless 1 <= sigma <= MAX_SIGMA.
    """
    if not 1 <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma {sigma} is not in 1 to {MAX_SIGMA}")
    each = executor.map if executor is not None else map
    samples = np.empty(length, np.int64)
    ranges = list(chunks(length, _BLOCK))
    for (start, stop), block in zip(ranges, each(partial(_block, key, sigma), ranges), strict=True):
        samples[start:stop] = block
    return samples


def _block(key: bytes, sigma: int, span: tuple[int, int]) -> Words:
    start, stop = span
    stream = KeyStream(key, block=start // _BLOCK * _BLOCK_COUNTERS)
    samples, filled = np.empty(stop - start, np.int64), 0
    left = np.empty(0, np.uint64)
    scale = _scale(sigma)
    while filled < len(samples):
        # What an unfinished sample has read it reads again: starting it anew would favour those that take few words.
        fresh = stream.words((len(samples) - filled) * _WORDS_EACH + 64).view(np.uint64)
        left = np.concatenate([left, fresh])
        filled, used = _fill(samples, filled, left, scale)
        left = left[used:]
    return samples


def _scale(sigma: int) -> _Scale:
    """sigma, m = floor((2^64 - 1) / sigma), and m sigma: a word below that is in one of sigma classes of m words."""
    each = ((1 << 64) - 1) // sigma
    return np.uint64(sigma), np.uint64(each), np.uint64(each * sigma)


@numba.njit(nogil=True, cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba ships no types
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
    """True with probability 1 / number, from 1 to 2^32 - 1; without a division nearly always (Lemire 2019)."""
    while at < words.shape[0]:
        product = (words[at] >> np.uint64(32)) * number
        at += 1
        low = product & np.uint64(0xFFFFFFFF)
        if low >= number or low >= (np.uint64(1 << 32) - number) % number:
            return product >> np.uint64(32) == np.uint64(0), at
    return False, _NONE_LEFT


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _exp_half(words: _Random, at: int) -> tuple[bool, int]:
    """True with probability exp(-1/2)."""
    n = np.uint64(0)
    going = True
    while going and at >= 0:
        n += np.uint64(1)
        going, at = _one_in(words, at, np.uint64(2) * n)  # probability 1/2 / n
    return n % np.uint64(2) == np.uint64(1), at


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _exp_minus(words: _Random, at: int, below: np.uint64, limit: np.uint64, halved_square: bool) -> tuple[bool, int]:
    """True with probability exp(-x), or exp(-x^2 / 2); x = j / sigma, `below` = j m and `limit` = sigma m."""
    n = np.uint64(0)
    going = True
    while going and at >= 0:
        n += np.uint64(1)
        word, at = _word_below(words, at, limit)
        going = word < below  # probability x
        if going and at >= 0 and halved_square:
            word, at = _word_below(words, at, limit)
            going = word < below
        divisor = np.uint64(2) * n if halved_square else n
        if going and at >= 0 and divisor > np.uint64(1):
            going, at = _one_in(words, at, divisor)
    return n % np.uint64(2) == np.uint64(1), at


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _fill(samples: Words, filled: int, words: _Random, scale: _Scale) -> tuple[int, int]:
    """Draw until `samples` is full or the words run out: how many are filled, how many words those took."""
    used, at = 0, 0
    while filled < samples.shape[0] and at >= 0:
        kept, value, at = _attempt(words, at, scale)
        if kept and at >= 0:
            samples[filled] = value
            filled += 1
            used = at
    return filled, used


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _whole_part(words: _Random, at: int) -> tuple[bool, int, int]:
    """Step 1: whether to keep k, k, and the place after the words it took; _NONE_LEFT if they ran out."""
    k = 0
    kept, at = _exp_half(words, at)
    while kept and at >= 0:
        k += 1
        kept, at = _exp_half(words, at)
    kept = True
    for _ in range(k * (k - 1)):
        if kept and at >= 0:
            kept, at = _exp_half(words, at)
    return kept, k, at


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _attempt(words: _Random, at: int, scale: _Scale) -> tuple[bool, int, int]:
    """Steps 1 to 3 once: whether it gave a sample, the sample, and the place after the words it took."""
    sigma, each, limit = scale
    kept, k, at = _whole_part(words, at)
    if at < 0 or not kept:
        return False, 0, at
    word, at = _word_below(words, at, limit)
    if at < 0 or at >= words.shape[0]:
        return False, 0, _NONE_LEFT
    j = word // each
    negative = words[at] & np.uint64(1) == np.uint64(1)
    at += 1
    if negative and k == 0 and j == np.uint64(0):
        return False, 0, at
    below = j * each
    for _ in range(k):
        if kept and at >= 0:
            kept, at = _exp_minus(words, at, below, limit, False)
    if kept and at >= 0:
        kept, at = _exp_minus(words, at, below, limit, True)
    size = np.int64(k) * np.int64(sigma) + np.int64(j)
    return kept, -size if negative else size, at  # type: ignore[return-value]  # numba's int is int64
