"""The weighted sum y = sum_i w_i x_i on shares, streamed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

import numba
import numpy as np

from triskele.encoding import Words
from triskele_server.linear.shares import HeldShare, SharePair, chunks

_Range = tuple[int, int]


def combine_public(
    shares: Sequence[HeldShare], weights: Sequence[int], dimension: int, executor: Executor | None = None
) -> Words:
    """One share of y for public integer weights: int64 [dimension]. Two parties compute each share and compare."""
    return _streamed(partial(_public_chunk, shares, weights), dimension, executor)


def combine_secret(
    rows: Sequence[SharePair],
    weights: Sequence[tuple[int, int]],
    dimension: int,
    executor: Executor | None = None,
) -> Words:
    """This party's additive part of y for secret weights given by its two shares of each: int64 [dimension].

    Re-randomise before sending: the part alone says something about the shares of the others.
    """
    return _streamed(partial(_secret_chunk, rows, weights), dimension, executor)


def _streamed(chunk: Callable[[_Range], Words], dimension: int, executor: Executor | None) -> Words:
    each = executor.map if executor is not None else map
    total = np.empty(dimension, np.int64)
    ranges = list(chunks(dimension))
    for (start, stop), part in zip(ranges, each(chunk, ranges), strict=True):
        total[start:stop] = part
    return total


def _public_chunk(shares: Sequence[HeldShare], weights: Sequence[int], span: _Range) -> Words:
    total = np.zeros(span[1] - span[0], np.int64)
    for share, weight in zip(shares, weights, strict=True):
        _add_multiple(total, share.read(*span), weight)
    return total


def _secret_chunk(rows: Sequence[SharePair], weights: Sequence[tuple[int, int]], span: _Range) -> Words:
    total = np.zeros(span[1] - span[0], np.int64)
    for row, (first, second) in zip(rows, weights, strict=True):
        _add_cross_terms(total, row.first.read(*span), row.second.read(*span), first, second)
    return total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _add_multiple(total: Words, words: Words, weight: int) -> None:
    for t in range(total.shape[0]):
        total[t] += weight * words[t]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _add_cross_terms(total: Words, first: Words, second: Words, w_first: int, w_second: int) -> None:
    both = w_first + w_second
    for t in range(total.shape[0]):
        total[t] += both * first[t] + w_first * second[t]
