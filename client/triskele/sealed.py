"""A participant's upload to one party under HPKE, so that somebody may carry it who can neither read nor change it.

RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. The upload is sealed in pieces, the header
and then each chunk of the heavy share: a party opens a large one without holding it in memory. Each piece's info is

    "triskele/v1/sealed" | task digest | round u64 | name length u16 | participant | party u8 | kind u8 | place

(big endian) with kind 0 and no place for the header, kind 1 and place = manifest digest | offset u64 for a chunk: a
piece opens at one party, for one participant, in one round, at one offset of one upload. Base mode does not say who
sealed; that is the signed manifest's part, whose commitments the opened shares must match.

A party's public key is an X25519 key that the federation's authority certified for the party's SPIFFE id.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from triskele.errors import ConfigurationError, InvalidUpload
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, TaskDigest, held_shares
from triskele.limits import Limits
from triskele.manifest import ManifestDigest
from triskele.submission import Submission
from triskele.unusable import UNUSABLE_CERTIFICATE, UNUSABLE_KEY
from triskele.upload import upload_header

OVERHEAD_BYTES = 32 + 16  # the encapsulated key and the tag
MAX_HEADER_BYTES = 1 << 14  # of a sealed header: manifest, certificate, salts, seeds
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
_PREFIX = b"triskele/v1/sealed"
_HEADER, _CHUNK = b"\0", b"\1"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class SealContext:
    """Where a sealed upload belongs; it opens nowhere else."""

    task: TaskDigest
    round: RoundNumber
    participant: ParticipantId
    party: PartyIndex

    def header_info(self) -> bytes:
        """HPKE's info of the header."""
        return self._info(_HEADER)

    def chunk_info(self, manifest: ManifestDigest, offset: int) -> bytes:
        """HPKE's info of the chunk at `offset` bytes of the heavy share."""
        return self._info(_CHUNK) + manifest + struct.pack(">Q", offset)

    def _info(self, kind: bytes) -> bytes:
        name = self.participant.encode()
        place = struct.pack(">QH", self.round, len(name)) + name + bytes([self.party])
        return _PREFIX + self.task + place + kind


def seal(plaintext: bytes, key: X25519PublicKey, info: bytes) -> bytes:
    """The plaintext sealed to `key`, OVERHEAD_BYTES longer; another ciphertext every time."""
    return _SUITE.encrypt(plaintext, key, info)


def open_sealed(sealed: bytes, key: X25519PrivateKey, info: bytes) -> bytes:
    """The plaintext; raises InvalidUpload if it was sealed to another key or for another place, or was changed."""
    try:
        return _SUITE.decrypt(sealed, key, info)
    except (InvalidTag, *UNUSABLE_KEY) as error:
        raise InvalidUpload(
            "sealed: does not open here; it was made for another party, task, round or participant, or was changed"
        ) from error


@dataclass(frozen=True)
class SealedUpload:
    """One party's upload as it is carried: the sealed header, and the sealed chunks of the heavy share with offsets."""

    header: bytes = field(repr=False)
    chunks: tuple[tuple[int, bytes], ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Every piece with its length before it (u32, big endian)."""
        pieces = (self.header, *(sealed for _, sealed in self.chunks))
        return b"".join(part for piece in pieces for part in (_LENGTH.pack(len(piece)), piece))

    @classmethod
    def from_bytes(cls, data: bytes, limits: Limits) -> SealedUpload:
        """Decode; raises InvalidUpload. What the pieces hold only the party can tell."""
        pieces = list(_pieces(memoryview(data)))
        most = limits.max_chunk_bytes + OVERHEAD_BYTES
        if not pieces or len(pieces[0]) > MAX_HEADER_BYTES:
            raise InvalidUpload("sealed: there is no header, or a header over its limit")
        if any(not OVERHEAD_BYTES < len(piece) <= most for piece in pieces):
            raise InvalidUpload(f"sealed: a piece is empty or over the limit of {most} bytes")
        ends = [0]
        for piece in pieces[1:]:
            ends.append(ends[-1] + len(piece) - OVERHEAD_BYTES)
        offsets = [start for start, _ in pairwise(ends)]
        return cls(pieces[0], tuple(zip(offsets, pieces[1:], strict=True)))


def seal_submission(
    submission: Submission, party: PartyIndex, key: X25519PublicKey, *, chunk_bytes: int
) -> SealedUpload:
    """What `party` gets of a submission, sealed to its key."""
    manifest = submission.manifest
    context = SealContext(manifest.task, manifest.round, manifest.participant, party)
    share = submission.heavy_share if manifest.heavy in held_shares(party) else memoryview(b"")
    header = seal(upload_header(submission, party).SerializeToString(), key, context.header_info())
    digest = manifest.digest
    chunks = tuple(
        (offset, seal(bytes(share[offset : offset + chunk_bytes]), key, context.chunk_info(digest, offset)))
        for offset in range(0, len(share), chunk_bytes)
    )
    return SealedUpload(header, chunks)


def certified_party_keys(
    certificates: Sequence[bytes], *, authority: x509.Certificate, federation: str, now: datetime.datetime
) -> tuple[X25519PublicKey, ...]:
    """The sealing keys of parties 0, 1, 2 from their certificates (DER), whoever handed those over.

    Raises ConfigurationError unless each is issued by the authority for that very party, valid now, and holds an X25519
    key, which no certificate for TLS or for signing does.
    """
    if len(certificates) != len(PARTIES):
        raise ConfigurationError(f"sealing: {len(certificates)} certificates came, not one for each of three parties")
    return tuple(
        _party_key(data, Identity(federation, "party", str(index)).uri, authority, now)
        for index, data in zip(PARTIES, certificates, strict=True)
    )


def _party_key(data: bytes, uri: str, authority: x509.Certificate, now: datetime.datetime) -> X25519PublicKey:
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = certificate.public_key()
    except UNUSABLE_CERTIFICATE as error:
        raise ConfigurationError(f"sealing: the certificate for {uri} is not one of this federation's") from error
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [uri]:
        raise ConfigurationError(f"sealing: the certificate that should be for {uri} belongs to somebody else")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigurationError(f"sealing: the certificate for {uri} is not valid now")
    if not isinstance(key, X25519PublicKey):
        raise ConfigurationError(f"sealing: the certificate for {uri} holds no X25519 key")
    return key


def _pieces(data: memoryview) -> Iterator[bytes]:
    while data:
        if len(data) < _LENGTH.size:
            raise InvalidUpload("sealed: truncated")
        (length,) = _LENGTH.unpack(data[: _LENGTH.size])
        data = data[_LENGTH.size :]
        if length > len(data):
            raise InvalidUpload("sealed: truncated")
        yield bytes(data[:length])
        data = data[length:]
