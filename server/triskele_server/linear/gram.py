"""A party's additive part of the Gram matrix X X^T, from the two shares of every row that it holds."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from triskele.ring import Words
from triskele_server.linear.shares import SharePair, chunks
from triskele_server.linear.sketch import squares_part

_CHUNK_WORDS = 1 << 13  # words per row in memory at a time
_COLUMNS = 1 << 11  # words per row that are mixed and added up at a time
_BLOCK_WORDS = 512  # words per row in cache at a time


def gram_part(
    first: Words,
    second: Words,
    rows: Sequence[int] | None = None,
    matrix: Words | None = None,
    last: tuple[Words, Words] | None = None,
    *,
    norms_only: bool = False,
) -> Words:
    """int64 [n, n] part of Z Z^T for shares [n, K] of Z; the three parties' parts add up to it mod 2^64.

    Z may be given as some `rows` of the shares, in that order, that `matrix` mixes; `last` is one more row [1, K] of
    both. A few columns are added up at a time, so that next to nothing is held beside the shares. `norms_only`: the
    diagonal alone, beside zeros.

    A A^T + A B^T + B A^T = (A + B)(A + B)^T - B B^T.
    """
    count = len(matrix) if matrix is not None else len(first) if rows is None else len(rows)
    part = np.zeros((count, count), np.int64)
    for start, stop in chunks(first.shape[1], _COLUMNS):
        a, b = first[:, start:stop], second[:, start:stop]
        if last is not None:
            a, b = (np.concatenate([words, row[:, start:stop]]) for words, row in zip((a, b), last, strict=True))
        b = np.ascontiguousarray(mixed(b, matrix, rows))
        if norms_only:
            part.flat[:: count + 1] += squares_part(np.ascontiguousarray(mixed(a, matrix, rows)), b)
            continue
        part += _symmetric_product(mixed(a, matrix, rows) + b)
        part -= _symmetric_product(b)
    return part


def exact_gram_part(
    rows: Sequence[SharePair], dimension: int, matrix: Words | None = None, *, norms_only: bool = False
) -> Words:
    """The same over all words of the shares, a chunk at a time, of the rows that `matrix` mixes them into."""
    count = len(rows) if matrix is None else len(matrix)
    total = np.zeros((count, count), np.int64)
    streams = [(row.first.stream(0), row.second.stream(0)) for row in rows]
    words = np.empty((2, len(rows), _CHUNK_WORDS), np.int64)
    for start, stop in chunks(dimension, _CHUNK_WORDS):
        first, second = words[:, :, : stop - start]
        for i, (of_first, of_second) in enumerate(streams):
            of_first.read_into(first[i])
            of_second.read_into(second[i])
        total += gram_part(first, second, matrix=matrix, norms_only=norms_only)
    return total


def mixed(words: Words, matrix: Words | None, rows: Sequence[int] | None = None) -> Words:
    """matrix @ words[rows] mod 2^64 for a sparse public matrix [m, n] and words [.., K]; None mixes nothing.

    Without `rows` all of them in order; no more than what comes out is held beside the words.
    """
    if matrix is None:
        return words if rows is None else words[np.asarray(rows, np.intp)]
    taken = np.arange(len(words)) if rows is None else np.asarray(rows, np.intp)
    out = np.empty((len(matrix), words.shape[1]), np.int64)
    for row, factors in zip(out, matrix, strict=True):
        used = np.flatnonzero(factors)
        np.sum(words[taken[used]] * factors[used, None], axis=0, out=row)
    return out


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _symmetric_product(z: Words) -> Words:
    """Z Z^T mod 2^64, each half computed once; ten times torch's int64 matmul."""
    rows, words = z.shape
    out = np.zeros((rows, rows), np.int64)
    for start in range(0, words, _BLOCK_WORDS):
        stop = min(start + _BLOCK_WORDS, words)
        for i in range(rows):
            a = z[i, start:stop]
            for j in range(i + 1):
                b = z[j, start:stop]
                total = np.int64(0)
                for t in range(stop - start):
                    total += a[t] * b[t]
                out[i, j] += total
    for i in range(rows):
        for j in range(i):
            out[j, i] = out[i, j]
    return out
