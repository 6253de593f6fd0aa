"""A submission: an encoded update, shared for three parties and signed, made so that making it twice is harmless.

All randomness of a submission (stochastic rounding, seeds, salts) is derived from 32 bytes

    entropy = HKDF-SHA256(Ed25519 private key, info = context | tag, 32 bytes)
    context = "triskele/v1/submission" | task digest | round u64
    tag     = GMAC(format | weight u64 | local noise float64 | update in that format),
              AES-128 key HKDF-SHA256(Ed25519 private key, info = context, 16 bytes), nonce of 12 zero bytes

in big endian, where the format is "<f4", little-endian float32, if every entry is one, and "<f8" if not.

- A participant that crashes and starts again with the same update makes the very same bytes, so a broken upload goes on
  where it stopped, although nothing secret was ever written to disk.
- Another update, weight, round or task gives independent randomness. That is a matter of secrecy, not of taste: two
  vectors shared under the same seeds differ in the heavy share by exactly their difference, which its two holders
  would then know. GMAC is a universal hash: whoever chooses two updates without the key, which nobody but the
  participant has, makes them collide with a probability of at most 2^-101 for a gigabyte each. Its key is used for
  one nonce only, and no tag is ever shown.
- The coordinator chooses the slot, and with it which share is heavy, but not the seeds: a party only ever sees shares
  i and i+1 in any slot, and in each of them what it sees stays masked by seed i+2.
- The signing key is used as key of two primitives, Ed25519 (which hashes it with SHA-512) and HKDF-SHA256 under an
  info text of our own; neither output says anything about the other's.
"""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass, field

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from triskele.coordinates import taken
from triskele.encoding import check_norm, encode
from triskele.errors import InvalidUpdate
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.keystream import KeyStream, derive
from triskele.local_noise import checked_local_noise, with_local_noise
from triskele.manifest import Manifest, ManifestDigest, sign
from triskele.ring import Words
from triskele.sharing import ShareContext, Sharing, heavy_index, split
from triskele.structure import Vector
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2

ENTROPY_BYTES = 32
_INFO = b"triskele/v1/submission"
_ROUNDING = b"triskele/v1/rounding"
_SHARING = b"triskele/v1/sharing"
_LOCAL_NOISE = b"triskele/v1/local-noise"
_CHUNK = 1 << 16  # entries hashed at a time
_ONE_NONCE = bytes(12)  # nobody sees a tag: it goes into the derivation of other secrets only


@dataclass(frozen=True)
class EncodedUpdate:
    """Ring words of one update for one round, and the secret that its sharing is derived from. Never printed."""

    task: TaskDigest
    round: RoundNumber
    words: Words = field(repr=False)  # [length] of the ring; the weight is the last word of a weighted task
    entropy: bytes = field(repr=False)  # 32 bytes


@dataclass(frozen=True)
class Submission:
    """What a participant uploads: the signed manifest, and the sharing that it commits to."""

    manifest: Manifest
    signed: types_pb2.SignedManifest = field(repr=False)
    sharing: Sharing = field(repr=False)

    @property
    def digest(self) -> ManifestDigest:
        """The name of this upload; the same update of the same participant always has the same."""
        return self.manifest.digest

    @property
    def heavy_share(self) -> memoryview:
        """The heavy share as bytes, without a copy."""
        return self.sharing.heavy_words.data.cast("B")


def encode_update(
    vector: Vector,
    spec: TaskSpec,
    round_number: RoundNumber,
    *,
    weight: int | None,
    clip: bool,
    key: Ed25519PrivateKey,
    local_noise: float | None = None,
) -> EncodedUpdate:
    """Encode float32 or float64 [entries] for one round of a task, with its weight if the task is weighted.

    `local_noise` is the standard deviation, in clip norms, of Gaussian noise that is added to each entry of the clipped
    update; the sum is clipped again. The same arguments give the same result, noise included. Raises InvalidUpdate for
    another length, NaN, Inf, a norm above the task's clip where `clip` is false, and a weight that the task does not
    take.
    """
    vector = taken(vector, spec, round_number)
    checked, noise = _checked_weight(weight, spec), checked_local_noise(local_noise)
    entropy = _entropy(key, spec.digest, round_number, vector, weight=checked, noise=noise)
    if noise:
        if not clip:
            check_norm(vector, spec.clip_norm)
        random = KeyStream(derive(entropy, _LOCAL_NOISE))
        vector = with_local_noise(vector, clip_norm=spec.clip_norm, local_noise=noise, random=random)
        clip = True
    words = np.empty(spec.length, spec.ring.dtype)
    rounding = KeyStream(derive(entropy, _ROUNDING))
    encode(
        vector,
        clip_norm=spec.clip_norm,
        rounding=rounding,
        fraction_bits=spec.fraction_bits,
        clip=clip,
        out=words[: spec.dimension],
    )
    if spec.weighted:
        words[-1] = checked
    return EncodedUpdate(spec.digest, round_number, words, entropy)


def prepare(
    encoded: EncodedUpdate,
    *,
    slot: Slot,
    participant: ParticipantId,
    key: Ed25519PrivateKey,
    certificate: x509.Certificate,
    in_place: bool = False,
) -> Submission:
    """Share the encoded update for the parties and sign its manifest.

    With `in_place` the heavy share takes the memory of the update's words, which are gone then.
    """
    context = ShareContext(encoded.task, encoded.round, participant)
    heavy = heavy_index(slot)
    sharing = split(
        encoded.words,
        heavy=heavy,
        context=context,
        entropy=derive(encoded.entropy, _SHARING, ENTROPY_BYTES),
        in_place=in_place,
    )
    manifest = Manifest(
        encoded.task, encoded.round, participant, slot, heavy, len(encoded.words), sharing.commitments()
    )
    return Submission(manifest, sign(manifest, key, certificate), sharing)


def _checked_weight(weight: int | None, spec: TaskSpec) -> int:
    """The weight as an int, 0 in an unweighted task."""
    if not spec.weighted:
        if weight is not None:
            raise InvalidUpdate(f"task {spec.name!r} takes no weight; leave it out")
        return 0
    if weight is None:
        raise InvalidUpdate(f"task {spec.name!r} is weighted; give a weight of 0 to {spec.max_weight}")
    if isinstance(weight, bool | np.bool_):
        raise InvalidUpdate("a weight is a whole number, not true or false")
    try:
        checked = operator.index(weight)
    except TypeError:
        raise InvalidUpdate(f"a weight is a whole number, not {type(weight).__name__}") from None
    if not 0 <= checked <= spec.max_weight:
        raise InvalidUpdate(f"weight is not in 0 to {spec.max_weight}, the max_weight of task {spec.name!r}")
    return checked


def _entropy(
    key: Ed25519PrivateKey, task: TaskDigest, number: RoundNumber, vector: Vector, *, weight: int, noise: float
) -> bytes:
    """HKDF of the signing key and a GMAC of the update under a key that is derived from it, too (decision 2)."""
    secret, info = key.private_bytes_raw(), _INFO + task + struct.pack(">Q", number)
    format_ = "<f4" if _is_single(vector) else "<f8"
    content = Cipher(AES(derive(secret, info)), GCM(_ONE_NONCE)).encryptor()
    content.authenticate_additional_data(format_.encode() + struct.pack(">Qd", weight, noise))
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK].astype(format_, copy=False)
        content.authenticate_additional_data(part.data.cast("B"))
    content.finalize()
    return derive(secret, info + content.tag, ENTROPY_BYTES)


def _is_single(vector: Vector) -> bool:
    """Whether every entry is a float32, in whatever format it is given: the same values are the same update."""
    if vector.dtype == np.float32:
        return True
    with np.errstate(over="ignore"):
        parts = (vector[start : start + _CHUNK] for start in range(0, len(vector), _CHUNK))
        return all(np.array_equal(part.astype(np.float32), part) for part in parts)
