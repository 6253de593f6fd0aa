"""A participant's signed wish to take part in a round, for whoever enrols it in its stead.

Canonical bytes (big endian), signed with Ed25519: "triskele/v1/enrolment" | task digest | round u64 | name length u16
| name. The coordinator admits nobody who has not asked; a wish for one round is of no use for another.
"""

from __future__ import annotations

import datetime
import struct
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from triskele.errors import InvalidUpload
from triskele.ids import ParticipantId, RoundNumber, TaskDigest
from triskele.manifest import certified_key

_PREFIX = b"triskele/v1/enrolment"


@dataclass(frozen=True)
class EnrolmentWish:
    """Who asks for a slot in which round, signed."""

    task: TaskDigest
    round: RoundNumber
    participant: ParticipantId
    signature: bytes = field(repr=False)
    certificate: bytes = field(repr=False)  # DER

    def __post_init__(self) -> None:
        if len(self.task) != 32 or not 1 <= self.round < 1 << 63 or not 1 <= len(self.participant) <= 64:
            raise InvalidUpload("enrolment: task digest, round or name out of range")

    @classmethod
    def sign(
        cls,
        task: TaskDigest,
        number: RoundNumber,
        participant: ParticipantId,
        *,
        key: Ed25519PrivateKey,
        certificate: x509.Certificate,
    ) -> EnrolmentWish:
        """The wish of `participant`, with its certificate."""
        signature = key.sign(_canonical(task, number, participant))
        return cls(task, number, participant, signature, certificate.public_bytes(Encoding.DER))

    def verify(self, *, authority: x509.Certificate, identity: str, now: datetime.datetime) -> None:
        """Raise InvalidUpload unless it is signed with a key that `authority` certified for `identity`."""
        key = certified_key(self.certificate, authority=authority, identity=identity, now=now)
        try:
            key.verify(self.signature, _canonical(self.task, self.round, self.participant))
        except InvalidSignature as error:
            raise InvalidUpload("signature: does not match the enrolment") from error


def _canonical(task: TaskDigest, number: RoundNumber, participant: ParticipantId) -> bytes:
    name = participant.encode()
    return b"".join((_PREFIX, task, struct.pack(">QH", number, len(name)), name))
