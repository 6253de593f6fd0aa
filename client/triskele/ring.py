"""The rings Z_{2^64} and Z_{2^32} that updates are shared in: signed words, two's complement, little endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.signedinteger[Any]]  # int64 or int32

_AES_BLOCK_BYTES = 16


@dataclass(frozen=True)
class Ring:
    """Z_{2^bits}, bits 32 or 64."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"there is no ring of {self.bits} bits, only of 32 and 64")

    @property
    def word_bytes(self) -> int:
        """Bytes of a word, on the wire and on disk."""
        return self.bits // 8

    @property
    def words_per_block(self) -> int:
        """Words in one AES block; a share is read from a multiple of it."""
        return _AES_BLOCK_BYTES // self.word_bytes

    @property
    def dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """numpy's type of a word, little endian."""
        return np.dtype(f"<i{self.word_bytes}")

    def reduced(self, words: Words) -> Words:
        """int64 words mod 2^bits; shares of a secret too: dropping high bits is a homomorphism of rings."""
        return words.astype(self.dtype, copy=False)


WIDE: Final = Ring(64)
NARROW: Final = Ring(32)


def ring_of(words: Words) -> Ring:
    """The ring of an array of words."""
    return Ring(words.dtype.itemsize * 8)
