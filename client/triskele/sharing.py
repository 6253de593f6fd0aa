"""Replicated secret sharing of ring words: x = s_0 + s_1 + s_2, party i holds (s_i, s_{i+1}) (Araki et al. 2016).

Two shares of the three are 16-byte seeds expanded by AES-128-CTR; the third, "heavy" one is d words:
s_h = x - PRG(k_{h+1}) - PRG(k_{h+2}). Each seed's AES key is bound to its place by HKDF.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

import numpy as np

from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest
from triskele.keystream import KeyStream, derive
from triskele.ring import Words, ring_of

Seed = NewType("Seed", bytes)  # 16 bytes
Salt = NewType("Salt", bytes)  # 16 bytes, known to one share's two holders only
Commitment = NewType("Commitment", bytes)  # SHA-256(salt || share), 32 bytes

SEED_BYTES = SALT_BYTES = 16
_CHUNK = 1 << 14  # words


@dataclass(frozen=True)
class ShareContext:
    """Where a share belongs; no seed expands to the same words in two places."""

    task: TaskDigest
    round: RoundNumber
    participant: ParticipantId

    def info(self, index: ShareIndex) -> bytes:
        """The HKDF info of share `index`."""
        name = self.participant.encode()
        return b"".join(
            (b"triskele/v1/share", self.task, struct.pack(">QH", self.round, len(name)), name, bytes([index]))
        )


def share_key(seed: Seed, context: ShareContext, index: ShareIndex) -> bytes:
    """The AES-128 key whose stream is share `index`."""
    return derive(seed, context.info(index))


def expand(seed: Seed, context: ShareContext, index: ShareIndex) -> KeyStream:
    """The key stream of share `index`."""
    return KeyStream(share_key(seed, context, index))


@dataclass(frozen=True)
class Sharing:
    """One sharing of a vector: what the three parties get between them. Never printed."""

    heavy: ShareIndex
    heavy_words: Words = field(repr=False)
    seeds: Mapping[ShareIndex, Seed] = field(repr=False)
    salts: tuple[Salt, Salt, Salt] = field(repr=False)

    def commitments(self) -> tuple[Commitment, Commitment, Commitment]:
        """SHA-256(salt || share) for shares 0, 1, 2; a seed share is committed to by its seed."""
        first, second, third = (
            commit(self.salts[i], self.seeds[ShareIndex(i)] if i != self.heavy else self.heavy_words.data)
            for i in range(3)
        )
        return first, second, third


def heavy_index(slot: Slot) -> ShareIndex:
    """The heavy share rotates with the admission slot, so that the load on the parties is even."""
    return ShareIndex(slot % 3)


def split(words: Words, *, heavy: ShareIndex, context: ShareContext, entropy: bytes, in_place: bool = False) -> Sharing:
    """Share [length] `words` in their ring; all randomness is derived from 32 secret bytes that are never used again.

    With `in_place` the heavy share takes the memory of `words`, which are gone then.
    """
    drawn = [derive(entropy, b"triskele/v1/seed" + bytes([i])) for i in range(3)]
    seeds = {ShareIndex(i): Seed(drawn[i]) for i in range(3) if i != heavy}
    streams = [expand(seed, context, index) for index, seed in seeds.items()]
    dtype = ring_of(words).dtype
    rest = words.astype(dtype, copy=not in_place)
    mask = np.empty(_CHUNK, dtype)
    for start in range(0, len(rest), _CHUNK):
        part = rest[start : start + _CHUNK]
        for stream in streams:
            stream.read_into(mask[: len(part)])
            part -= mask[: len(part)]
    first, second, third = (Salt(derive(entropy, b"triskele/v1/salt" + bytes([i]))) for i in range(3))
    return Sharing(heavy, rest, seeds, (first, second, third))


def commit(salt: Salt, share: bytes | memoryview) -> Commitment:
    """SHA-256(salt || share)."""
    digest = hashlib.sha256(salt)
    digest.update(share)
    return Commitment(digest.digest())


def commitment_matches(expected: Commitment, salt: Salt, share: bytes | memoryview) -> bool:
    """Whether a received share opens its commitment (compared in constant time)."""
    return hmac.compare_digest(expected, commit(salt, share))


def reconstruct(sharing: Sharing, context: ShareContext) -> Words:
    """The shared words; only tests and test vectors ever hold all three shares."""
    total = sharing.heavy_words.copy()
    for index, seed in sharing.seeds.items():
        total += expand(seed, context, index).words(len(total), ring_of(total))
    return total
