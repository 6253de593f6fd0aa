"""Sparse Johnson-Lindenstrauss sketch (CountSketch: Charikar et al. 2002; Kane and Nelson 2014) of shares.

Each of s blocks throws every coordinate into a random one of k buckets with a random sign, independently for every
coordinate: the soundness of the validity check rests on that independence (docs/protocol.md, "Check"). Sketching is
linear mod 2^64, so it acts on shares. Vectors of at most CHECK_WORDS words are their own sketch.

The Gram matrix is estimated from 8192 buckets a block (a distance has a relative standard deviation of 0.8 %); the
check folds them to 2048, which is a CountSketch again, so that its sum of squares provably cannot wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray
from triskele.encoding import Words
from triskele.keystream import KeyStream, derive

from triskele_server.linear.shares import CHUNK_WORDS, HeldShare, chunks

BLOCKS = 4  # s
CHECK_BUCKETS = 2048  # k of the validity check
GRAM_BUCKETS = 8192  # k of a sketched Gram matrix, a multiple of CHECK_BUCKETS
CHECK_WORDS = BLOCKS * CHECK_BUCKETS

Map = Callable[..., Iterable[Words]]


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

    def apply(self, shares: Sequence[HeldShare], executor: Executor | None = None) -> Words:
        """Sketches int64 [len(shares), blocks * buckets] of shares (or the shares' words, if `identity`)."""
        if self.identity:
            return np.stack([share.read(0, self.dimension) for share in shares])
        each: Map = executor.map if executor is not None else map
        total = np.zeros((len(shares), BLOCKS * self.buckets), np.int64)
        for start, stop in chunks(self.dimension):
            places = self._places(start, stop)
            for row, part in enumerate(each(partial(_sketched, places, self.buckets, start, stop), shares)):
                total[row] += part
        return total

    def folded(self, sketches: Words) -> Words:
        """The same sketches with CHECK_BUCKETS buckets a block: int64 [rows, CHECK_WORDS] (or unchanged)."""
        if self.identity or self.buckets == CHECK_BUCKETS:
            return sketches
        return sketches.reshape(len(sketches), BLOCKS, -1, CHECK_BUCKETS).sum(2).reshape(len(sketches), CHECK_WORDS)

    def _places(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Bucket and sign of coordinates start to stop in every block: uint16 [BLOCKS, stop - start]."""
        key = derive(self.coin, b"triskele/v1/sketch" + (start // CHUNK_WORDS).to_bytes(8, "big"))
        drawn = KeyStream(key).read(2 * BLOCKS * (stop - start)).view("<u2").reshape(BLOCKS, stop - start)
        return drawn & np.uint16(2 * self.buckets - 1)  # bucket * 2 + sign


def _sketched(places: NDArray[np.uint16], buckets: int, start: int, stop: int, share: HeldShare) -> Words:
    out = np.zeros(BLOCKS * buckets, np.int64)
    _scatter(np.asarray(share.read(start, stop)), places, buckets, out)
    return out


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _scatter(words: Words, places: NDArray[np.uint16], buckets: int, out: Words) -> None:
    for block in range(places.shape[0]):
        base = block * buckets
        row = places[block]
        for t in range(words.shape[0]):
            place = np.int64(row[t])
            sign = -(place & 1)  # 0 or -1
            out[base + (place >> 1)] += (words[t] ^ sign) - sign
