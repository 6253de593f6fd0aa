"""The signed manifest: what a participant states, once, about its submission to a round.

Canonical bytes (big endian), signed with Ed25519:

    "triskele/v1/manifest" | task digest 32 | round u64 | name length u16 | name | slot u32 | heavy u8 | length u64
    | commitments 3 x 32
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from dataclasses import dataclass
from typing import NewType

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from triskele.errors import InvalidTask, InvalidUpload
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest, checked_name
from triskele.sharing import Commitment, ShareContext, heavy_index
from triskele.task import TaskSpec
from triskele.unusable import UNUSABLE_CERTIFICATE
from triskele_proto.v1 import types_pb2

ManifestDigest = NewType("ManifestDigest", bytes)  # SHA-256 of the canonical bytes, 32 bytes

_PREFIX = b"triskele/v1/manifest"


@dataclass(frozen=True)
class Manifest:
    """One submission: whose, to which round, in which slot, and commitments to its three shares."""

    task: TaskDigest
    round: RoundNumber
    participant: ParticipantId
    slot: Slot
    heavy: ShareIndex
    length: int
    commitments: tuple[Commitment, Commitment, Commitment]

    def __post_init__(self) -> None:
        try:
            checked_name(self.participant, "participant")
        except InvalidTask as error:
            raise InvalidUpload(str(error)) from None
        if len(self.task) != 32 or len(self.commitments) != 3 or any(len(c) != 32 for c in self.commitments):
            raise InvalidUpload("manifest: digests must be 32 bytes, and there must be three commitments")
        if not (1 <= self.round < 1 << 63 and 0 <= self.slot < 1 << 32 and 1 <= self.length < 1 << 48):
            raise InvalidUpload("manifest: round, slot or length out of range")
        if self.heavy != heavy_index(self.slot):
            raise InvalidUpload(f"manifest: heavy share {self.heavy} does not belong to slot {self.slot}")

    @property
    def context(self) -> ShareContext:
        """Where this submission's shares belong."""
        return ShareContext(self.task, self.round, self.participant)

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        name = self.participant.encode()
        return b"".join(
            (
                _PREFIX,
                self.task,
                struct.pack(">QH", self.round, len(name)),
                name,
                struct.pack(">IBQ", self.slot, self.heavy, self.length),
                *self.commitments,
            )
        )

    @property
    def digest(self) -> ManifestDigest:
        """SHA-256 of the canonical bytes; two parties hold the same submission iff this is equal."""
        return ManifestDigest(hashlib.sha256(self.canonical()).digest())

    def to_proto(self) -> types_pb2.Manifest:
        """The wire form."""
        return types_pb2.Manifest(
            task_digest=self.task,
            round=self.round,
            participant=self.participant,
            slot=self.slot,
            heavy=self.heavy,
            length=self.length,
            commitments=list(self.commitments),
        )

    @classmethod
    def from_proto(cls, message: types_pb2.Manifest) -> Manifest:
        """Decode and validate; raises InvalidUpload."""
        if len(message.commitments) != 3:
            raise InvalidUpload("manifest: there must be three commitments")
        first, second, third = (Commitment(c) for c in message.commitments)
        return cls(
            TaskDigest(message.task_digest),
            RoundNumber(message.round),
            ParticipantId(message.participant),
            Slot(message.slot),
            ShareIndex(message.heavy),
            message.length,
            (first, second, third),
        )

    def check_belongs_to(self, spec: TaskSpec, round_number: RoundNumber) -> None:
        """Raise InvalidUpload unless the manifest is for this task and round and of the task's length."""
        if self.task != spec.digest or self.round != round_number:
            raise InvalidUpload("manifest: made for another task or round")
        if self.length != spec.length:
            raise InvalidUpload(f"manifest: {self.length} words, but task {spec.name!r} has {spec.length}")
        if self.slot >= spec.max_participants:
            raise InvalidUpload(f"manifest: slot {self.slot}, but the task takes {spec.max_participants}")


def sign(manifest: Manifest, key: Ed25519PrivateKey, certificate: x509.Certificate) -> types_pb2.SignedManifest:
    """Sign with the participant's Ed25519 key; its certificate goes along."""
    return types_pb2.SignedManifest(
        manifest=manifest.to_proto(),
        signature=key.sign(manifest.canonical()),
        certificate=certificate.public_bytes(Encoding.DER),
    )


def verify(
    signed: types_pb2.SignedManifest, *, authority: x509.Certificate, identity: str, now: datetime.datetime
) -> Manifest:
    """The manifest, if it is signed with a key that `authority` certified for the SPIFFE id `identity`.

    Steps: (1) the manifest decodes; (2) the certificate decodes, holds an Ed25519 key, is issued by the authority and
    valid at `now`; (3) its only URI name is `identity`; (4) the signature holds. Raises InvalidUpload, whose text
    begins with the step: manifest, certificate, identity or signature.
    """
    manifest = Manifest.from_proto(signed.manifest)
    key = certified_key(signed.certificate, authority=authority, identity=identity, now=now)
    try:
        key.verify(signed.signature, manifest.canonical())
    except InvalidSignature as error:
        raise InvalidUpload("signature: does not match the manifest") from error
    return manifest


def certified_key(
    certificate: bytes, *, authority: x509.Certificate, identity: str, now: datetime.datetime
) -> Ed25519PublicKey:
    """The Ed25519 key that `authority` certified for the SPIFFE id `identity`; steps (2) and (3) of `verify`."""
    try:
        decoded = x509.load_der_x509_certificate(certificate)
        decoded.verify_directly_issued_by(authority)
        names = decoded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = decoded.public_key()
    except UNUSABLE_CERTIFICATE as error:
        raise InvalidUpload("certificate: the signing certificate is not one of this federation's") from error
    if not decoded.not_valid_before_utc <= now <= decoded.not_valid_after_utc:
        raise InvalidUpload("certificate: the signing certificate is not valid now")
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidUpload("certificate: the signing certificate holds no Ed25519 key")
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [identity]:
        raise InvalidUpload("identity: the signing certificate belongs to somebody else")
    return key
