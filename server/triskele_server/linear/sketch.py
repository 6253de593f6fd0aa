"""Sparse Johnson-Lindenstrauss sketch (CountSketch: Charikar et al. 2002; Kane and Nelson 2014) of shares.

Each of s blocks throws every coordinate into a random one of k buckets with a random sign, independently for every
coordinate: the soundness of the validity check rests on that independence (docs/protocol.md, "Check"). Sketching is
linear in any ring, so it acts on shares. Vectors of at most CHECK_WORDS words are their own sketch.

The Gram matrix is estimated from 8192 buckets a block (a distance has a relative standard deviation of 0.8 %); the
check folds them to 2048, which is a CountSketch again, so that its sum of squares provably cannot wrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from triskele.keystream import KeyStream, derive
from triskele.ring import Words
from triskele_server.linear.lanes import add_to_buckets, aligned_zeros, by_row, lanes
from triskele_server.linear.shares import HeldShare, chunks, read_rows

BLOCKS = 4  # s
CHECK_BUCKETS = 2048  # k of the validity check
GRAM_BUCKETS = 8192  # k of a sketched Gram matrix, a multiple of CHECK_BUCKETS
CHECK_WORDS = BLOCKS * CHECK_BUCKETS

_CHUNK_WORDS = 1 << 17  # words whose buckets and signs are drawn together, and that are read of a row at a time
_TILE_WORDS = 1 << 10  # words of as many rows as a line has, side by side in cache


@dataclass(frozen=True)
class Sketch:
    """The public transform of one round, drawn from the coin, for vectors of `dimension` words."""

    coin: bytes
    dimension: int
    buckets: int  # a power of two: CHECK_BUCKETS or GRAM_BUCKETS

    @property
    def identity(self) -> bool:
        """Whether the vector is short enough to be its own sketch."""
        return self.dimension <= CHECK_WORDS

    @property
    def blocks(self) -> int:
        """s: the squared norm of a sketch estimates s times the squared norm of the vector."""
        return 1 if self.identity else BLOCKS

    def apply(self, shares: Sequence[HeldShare]) -> Words:
        """Sketches [len(shares), blocks * buckets] in the shares' ring (or the shares' words, if `identity`).

        The more shares at a time the better: buckets and signs are drawn once, and as many rows as a line has lanes
        are added up in the time of one.
        """
        if self.identity:
            return read_rows(shares, 0, self.dimension)
        ring, beside = shares[0].ring, lanes(shares[0].ring)
        sums = aligned_zeros((-(-len(shares) // beside), BLOCKS * self.buckets, beside), ring.dtype)
        rows = aligned_zeros(
            (beside, _CHUNK_WORDS + beside), ring.dtype
        )  # no power of two apart: that is one cache set
        tile = aligned_zeros((_TILE_WORDS, beside), ring.dtype)
        streams = [share.stream(0) for share in shares]
        for start, stop in chunks(self.dimension, _CHUNK_WORDS):
            places = self._places(start, stop)
            for number, total in enumerate(sums):
                for row, stream in zip(rows, streams[number * beside : (number + 1) * beside], strict=False):
                    stream.read_into(row[: stop - start])
                add_to_buckets(rows, places, tile, total)
        return by_row(sums)[: len(shares)]

    def projections(self, count: int) -> NDArray[np.int8]:
        """Public vectors [count, words of a folded sketch] with entries -1, 0, 0, 1, drawn from the coin."""
        words = self.dimension if self.identity else CHECK_WORDS
        drawn = KeyStream(derive(self.coin, b"triskele/v1/projections")).read(count * words).reshape(count, words)
        return (drawn & 1).astype(np.int8) - ((drawn >> 1) & 1).astype(np.int8)

    def folded(self, sketches: Words) -> Words:
        """The same sketches with CHECK_BUCKETS buckets a block: int64 [rows, CHECK_WORDS] (or unchanged)."""
        if self.identity or self.buckets == CHECK_BUCKETS:
            return sketches
        folded: Words = sketches.reshape(len(sketches), BLOCKS, -1, CHECK_BUCKETS).sum(2)
        return folded.reshape(len(sketches), CHECK_WORDS)

    def _places(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Bucket and sign of coordinates start to stop in every block: uint16 [BLOCKS, stop - start]."""
        key = derive(self.coin, b"triskele/v1/sketch" + (start // _CHUNK_WORDS).to_bytes(8, "big"))
        drawn = KeyStream(key).read(2 * BLOCKS * (stop - start)).view("<u2").reshape(BLOCKS, stop - start)
        return drawn & np.uint16(2 * self.buckets - 1)  # bucket * 2 + sign


def project(sketches: Words, vectors: NDArray[np.int8]) -> Words:
    """Inner products mod 2^64 of sketches [n, K] with small public vectors [count, K]: int64 [n, count]."""
    out = np.empty((len(sketches), len(vectors)), np.int64)
    _inner_products(sketches, vectors, out)
    return out


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _inner_products(sketches: Words, vectors: NDArray[np.int8], out: Words) -> None:
    for i in range(sketches.shape[0]):
        for j in range(vectors.shape[0]):
            total = np.int64(0)
            for t in range(sketches.shape[1]):
                total += sketches[i, t] * vectors[j, t]
            out[i, j] = total


def squares_part(first: Words, second: Words) -> Words:
    """A party's additive part of each row's sum of squares mod 2^64, of shares [n, K]: int64 [n], nothing besides."""
    out = np.empty(len(first), np.int64)
    _sums_of_squares(first, second, out)
    return out


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _sums_of_squares(first: Words, second: Words, out: Words) -> None:
    """Of a^2 + 2 a b, for shares a and b."""
    for i in range(first.shape[0]):
        total = np.int64(0)
        for t in range(first.shape[1]):
            total += first[i, t] * (first[i, t] + 2 * second[i, t])
        out[i] = total
