"""Correlated randomness without communication: AES-128-CTR under keys that two parties share.

Key j is known to parties j-1 and j, so party i holds keys i and i+1. A pair uses its key in the same order because
all parties run the same program; the streams of one attempt are never used again (docs/protocol.md, "Randomness").
"""

from __future__ import annotations

import torch

from triskele.keystream import KeyStream

_BYTES = {torch.int64: 8, torch.int32: 4, torch.int16: 2, torch.uint8: 1}


def _draw(stream: KeyStream, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        return torch.empty(shape, dtype=dtype)  # torch cannot view an empty array as wider words
    return torch.from_numpy(stream.read(count * _BYTES[dtype])).view(dtype).reshape(shape)


class CorrelatedRandomness:
    """One party's two key streams: with the previous party (key i) and with the next (key i+1)."""

    def __init__(self, with_previous: bytes, with_next: bytes) -> None:
        self._previous = KeyStream(with_previous)
        self._next = KeyStream(with_next)

    def __repr__(self) -> str:
        return "CorrelatedRandomness(...)"

    def zero_sum(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """This party's part of a fresh additive sharing of zero."""
        part = _draw(self._next, shape, dtype)
        part -= _draw(self._previous, shape, dtype)
        return part

    def with_next(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Words that only this party and the next one know."""
        return _draw(self._next, shape, dtype)

    def with_previous(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Words that only this party and the previous one know."""
        return _draw(self._previous, shape, dtype)
