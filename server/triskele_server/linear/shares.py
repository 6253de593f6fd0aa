"""The shares that a party holds, addressed by word range: seeds are expanded and files read a range at a time."""

from __future__ import annotations

from collections.abc import Iterator
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

CHUNK_WORDS = 1 << 15  # words of one share in cache at a time
FIRST_WORDS = 4  # a share is read from a multiple of it: the words of an AES block in any ring


class HeldShare(Protocol):
    """One share of one submission."""

    @property
    def ring(self) -> Ring:
        """The ring of its words."""

    def read(self, start: int, stop: int) -> Words:
        """Words start to stop (start is a multiple of FIRST_WORDS); not to be written to."""


@dataclass(frozen=True)
class SeedShare:
    """A share that is the expansion of 16 secret bytes."""

    seed: Seed = field(repr=False)
    context: ShareContext
    index: ShareIndex
    ring: Ring = WIDE

    def read(self, start: int, stop: int) -> Words:
        """Expand words start to stop."""
        return KeyStream(self._key, block=start // self.ring.words_per_block).words(stop - start, self.ring)

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

    def read(self, start: int, stop: int) -> Words:
        """A view of words start to stop."""
        return self.words[start:stop]


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

    def read(self, start: int, stop: int) -> Words:
        """Words start to stop; raises StoreDamaged if they are not there any more."""
        try:
            words = np.fromfile(self.path, self.ring.dtype, stop - start, offset=start * self.ring.word_bytes)
        except OSError:
            raise StoreDamaged(f"{self.path.name} cannot be read") from None
        if len(words) != stop - start:
            raise StoreDamaged(f"{self.path.name} is shorter than it was")
        return words


@dataclass(frozen=True)
class SharePair:
    """The two shares (x_i, x_{i+1}) that party i holds of one submission."""

    first: HeldShare
    second: HeldShare

    def word(self, index: int) -> tuple[int, int]:
        """Both shares of one word."""
        start = index - index % FIRST_WORDS
        return int(self.first.read(start, index + 1)[-1]), int(self.second.read(start, index + 1)[-1])


def chunks(length: int, size: int = CHUNK_WORDS) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `size` words; every start is a multiple of it, and it one of FIRST_WORDS."""
    for start in range(0, length, size):
        yield start, min(start + size, length)
