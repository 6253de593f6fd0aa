"""The weighted sum y = sum_i w_i x_i on shares, streamed in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from triskele.ring import Ring, Words
from triskele_server.linear.shares import CHUNK_WORDS, HeldShare, SharePair, chunks


def combine_public(shares: Sequence[HeldShare], weights: Sequence[int], dimension: int) -> Words:
    """One share of y for public integer weights: words [dimension]. Two parties compute each share and compare."""
    ring = shares[0].ring
    total, words = np.zeros(dimension, ring.dtype), np.empty(CHUNK_WORDS, ring.dtype)
    streams = [share.stream(0) for share in shares]
    for start, stop in chunks(dimension):
        part = words[: stop - start]
        for stream, weight in zip(streams, _factors(weights, ring), strict=True):
            stream.read_into(part)
            _add_multiple(total[start:stop], part, weight)
    return total


def combine_secret(rows: Sequence[SharePair], weights: Sequence[tuple[int, int]], dimension: int) -> Words:
    """This party's additive part of y for secret weights given by its two shares of each: words [dimension].

    Re-randomise before sending: the part alone says something about the shares of the others.
    """
    ring = rows[0].first.ring
    total, words = np.zeros(dimension, ring.dtype), np.empty((2, CHUNK_WORDS), ring.dtype)
    streams = [(row.first.stream(0), row.second.stream(0)) for row in rows]
    factors = _factors([a for a, _ in weights], ring), _factors([b for _, b in weights], ring)
    for start, stop in chunks(dimension):
        first, second = words[0, : stop - start], words[1, : stop - start]
        for (of_first, of_second), w_first, w_second in zip(streams, *factors, strict=True):
            of_first.read_into(first)
            of_second.read_into(second)
            _add_cross_terms(total[start:stop], first, second, w_first, w_second)
    return total


def _factors(weights: Sequence[int], ring: Ring) -> Words:
    """Weights or shares of them, mod 2^bits of the ring."""
    return ring.reduced(np.array(weights, np.int64))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _add_multiple(total: Words, words: Words, weight: np.signedinteger[Any]) -> None:
    for t in range(total.shape[0]):
        total[t] += weight * words[t]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _add_cross_terms(
    total: Words, first: Words, second: Words, w_first: np.signedinteger[Any], w_second: np.signedinteger[Any]
) -> None:
    both = w_first + w_second
    for t in range(total.shape[0]):
        total[t] += both * first[t] + w_first * second[t]
