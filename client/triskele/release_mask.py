"""The mask over a released aggregate: what is opened is y + PRG(m_0) + PRG(m_1) + PRG(m_2), and only members unmask it.

Parties j - 1 and j hold mask key m_j, as they hold share j. The AES key of its stream is

    HKDF-SHA256(m_j, info = "triskele/v1/release" | task digest | round u64 | j)      (big endian)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NewType

import numpy as np

from triskele.ids import RoundNumber, ShareIndex, TaskDigest
from triskele.keystream import KeyStream, derive
from triskele.ring import Words

MaskKey = NewType("MaskKey", bytes)  # 32 secret bytes

MASK_KEY_BYTES: Final = 32
_CHUNK: Final = 1 << 14  # words


def add_mask(words: Words, key: MaskKey, task: TaskDigest, number: RoundNumber, index: ShareIndex) -> None:
    """Add PRG(m_index) to integer `words`, in place."""
    _apply(words, [_stream(key, task, number, index)], np.add)


def remove_masks(words: Words, keys: Mapping[ShareIndex, MaskKey], task: TaskDigest, number: RoundNumber) -> None:
    """Take the streams of `keys` away again, in place."""
    _apply(words, [_stream(key, task, number, index) for index, key in keys.items()], np.subtract)


def _stream(key: MaskKey, task: TaskDigest, number: RoundNumber, index: ShareIndex) -> KeyStream:
    return KeyStream(derive(key, b"triskele/v1/release" + task + struct.pack(">QB", number, index)))


def _apply(words: Words, streams: Sequence[KeyStream], operation: np.ufunc) -> None:
    mask = np.empty(min(_CHUNK, len(words)), words.dtype)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        drawn = mask[: len(part)]
        for stream in streams:
            stream.read_into(drawn)
            operation(part, drawn, out=part)
