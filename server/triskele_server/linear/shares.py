"""The shares that a party holds, read in order into memory of the reader's: seeds are expanded, files read.

Whoever goes over many shares keeps a stream of each: setting AES up costs as much as 40 KB of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from triskele.ids import ShareIndex
from triskele.keystream import KeyStream
from triskele.ring import WIDE, Ring, Words, ring_of
from triskele.sharing import Seed, ShareContext, share_key
from triskele_server.at_rest import StoreDamaged

CHUNK_WORDS = 1 << 16  # words of one share in cache at a time
FIRST_WORDS = 4  # a share is read from a multiple of it: the words of an AES block in any ring


class WordStream(Protocol):
    """The words of a share in order."""

    def read_into(self, out: Words) -> None:
        """Fill `out`, contiguous and of the share's ring, with the next words; raises StoreDamaged."""


class HeldShare(Protocol):
    """One share of one submission."""

    @property
    def ring(self) -> Ring:
        """The ring of its words."""

    def stream(self, start: int) -> WordStream:
        """Its words from `start` on, a multiple of FIRST_WORDS."""


@dataclass(frozen=True)
class SeedShare:
    """A share that is the expansion of 16 secret bytes."""

    seed: Seed = field(repr=False)
    context: ShareContext
    index: ShareIndex
    ring: Ring = WIDE

    def stream(self, start: int) -> KeyStream:
        """See HeldShare."""
        return KeyStream(self._key, block=start // self.ring.words_per_block)

    @cached_property
    def _key(self) -> bytes:
        return share_key(self.seed, self.context, self.index)


@dataclass(frozen=True)
class WordShare:
    """A share that is words in memory."""

    words: Words = field(repr=False)

    @property
    def ring(self) -> Ring:
        """The ring of its words."""
        return ring_of(self.words)

    def stream(self, start: int) -> MemoryStream:
        """See HeldShare."""
        return MemoryStream(self.words[start:])


@dataclass
class MemoryStream:
    """Words in memory."""

    _left: Words = field(repr=False)

    def read_into(self, out: Words) -> None:
        """See WordStream."""
        out[:] = self._left[: len(out)]
        self._left = self._left[len(out) :]


@dataclass(frozen=True)
class FileShare:
    """A share that is words in a file. Read and not mapped: a mapped page counts as this process's memory for ever."""

    path: Path
    ring: Ring = WIDE

    @classmethod
    def of(cls, path: Path, length: int, ring: Ring = WIDE) -> FileShare:
        """A file of `length` little-endian words; raises StoreDamaged if it is not as long."""
        if path.stat().st_size != length * ring.word_bytes:
            raise StoreDamaged(f"{path.name} does not hold {length} words")
        return cls(path, ring)

    def stream(self, start: int) -> FileStream:
        """See HeldShare."""
        return FileStream(self.path, start * self.ring.word_bytes)


@dataclass
class FileStream:
    """Words in a file, which is open only while it is read: there may be more of them than a process may hold open."""

    path: Path
    _position: int  # in bytes

    def read_into(self, out: Words) -> None:
        """See WordStream."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                read = os.preadv(descriptor, [out.view(np.uint8).data], self._position)
            finally:
                os.close(descriptor)
        except OSError:
            raise StoreDamaged(f"{self.path.name} cannot be read") from None
        if read != out.nbytes:
            raise StoreDamaged(f"{self.path.name} is shorter than it was")
        self._position += read


@dataclass(frozen=True)
class SharePair:
    """The two shares (x_i, x_{i+1}) that party i holds of one submission."""

    first: HeldShare
    second: HeldShare

    def word(self, index: int) -> tuple[int, int]:
        """Both shares of one word."""
        start = index - index % FIRST_WORDS
        first, second = read_rows((self.first, self.second), start, index + 1)[:, -1].tolist()
        return first, second


def chunks(length: int, size: int = CHUNK_WORDS) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `size` words; every start is a multiple of it, and it one of FIRST_WORDS."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


def read_rows(shares: Sequence[HeldShare], start: int, stop: int) -> Words:
    """Words start to stop of some shares of one ring, [len(shares), stop - start]."""
    rows: Words = np.empty((len(shares), stop - start), shares[0].ring.dtype)
    for row, share in zip(rows, shares, strict=True):
        share.stream(start).read_into(row)
    return rows
