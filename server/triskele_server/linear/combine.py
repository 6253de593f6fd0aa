"""The weighted sum y = sum_i w_i x_i on shares, streamed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numba
import numpy as np

from triskele.ring import Ring, Words
from triskele_server.linear.shares import HeldShare, SharePair, chunks

_Range = tuple[int, int]


def combine_public(
    shares: Sequence[HeldShare], weights: Sequence[int], dimension: int, executor: Executor | None = None
) -> Words:
    """One share of y for public integer weights: words [dimension]. Two parties compute each share and compare."""
    ring = shares[0].ring
    return _streamed(partial(_public_chunk, shares, _factors(weights, ring)), dimension, ring, executor)


def combine_secret(
    rows: Sequence[SharePair],
    weights: Sequence[tuple[int, int]],
    dimension: int,
    executor: Executor | None = None,
) -> Words:
    """This party's additive part of y for secret weights given by its two shares of each: words [dimension].

    Re-randomise before sending: the part alone says something about the shares of the others.
    """
    ring = rows[0].first.ring
    first, second = _factors([a for a, _ in weights], ring), _factors([b for _, b in weights], ring)
    return _streamed(partial(_secret_chunk, rows, first, second), dimension, ring, executor)


def _factors(weights: Sequence[int], ring: Ring) -> Words:
    """Weights or shares of them, mod 2^bits of the ring."""
    return ring.reduced(np.array(weights, np.int64))


def _streamed(chunk: Callable[[_Range], Words], dimension: int, ring: Ring, executor: Executor | None) -> Words:
    each = executor.map if executor is not None else map
    total = np.empty(dimension, ring.dtype)
    ranges = list(chunks(dimension))
    for (start, stop), part in zip(ranges, each(chunk, ranges), strict=True):
        total[start:stop] = part
    return total


def _public_chunk(shares: Sequence[HeldShare], weights: Words, span: _Range) -> Words:
    total = np.zeros(span[1] - span[0], weights.dtype)
    for share, weight in zip(shares, weights, strict=True):
        _add_multiple(total, share.read(*span), weight)
    return total


def _secret_chunk(rows: Sequence[SharePair], first: Words, second: Words, span: _Range) -> Words:
    total = np.zeros(span[1] - span[0], first.dtype)
    for row, w_first, w_second in zip(rows, first, second, strict=True):
        _add_cross_terms(total, row.first.read(*span), row.second.read(*span), w_first, w_second)
    return total


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
