"""What the fuzzer begins with: a provisioned federation, and one valid message of every kind."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from triskele.enrolment_wish import EnrolmentWish
from triskele.ids import ParticipantId, PartyIndex, RoundNumber, Slot
from triskele.limits import DEFAULT_LIMITS
from triskele.sealed import SealedUpload, seal_submission
from triskele.submission import Submission, encode_update, prepare
from triskele.task import TaskSpec
from triskele.upload import upload_header
from triskele_proto.v1 import coordinator_pb2, party_pb2, types_pb2
from triskele_server.config import Schedule
from triskele_server.party.sealed_intake import load_sealing_key
from triskele_server.provision import Provisioned, provision, write_task
from triskele_server.rpc.ports import PortPlan

NAME = ParticipantId("p00")
ROUND = RoundNumber(1)
SPEC = TaskSpec("face", 64, 4.0, max_participants=4, min_accepted=2)


@dataclass(frozen=True)
class Material:
    """Files of one federation, and messages of its participant p00 to round 1 of the task `SPEC`."""

    made: Provisioned

    @classmethod
    def write(cls, folder: Path, ports: PortPlan | None = None) -> Material:
        made = provision(folder, participants=2, ports=ports or PortPlan.from_base(7000), forwarder=True)
        write_task(folder, SPEC, Schedule(rounds=1, quorum=2))
        return cls(made)

    @property
    def folder(self) -> Path:
        return self.made.directory

    @property
    def member(self) -> Path:
        return self.folder / "participants" / NAME

    @property
    def authority(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.folder / "ca" / "ca.crt").read_bytes())

    @cached_property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.member / "signing.crt").read_bytes())

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        key = load_pem_private_key((self.member / "signing.key").read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return key

    @cached_property
    def sealing_key(self) -> X25519PrivateKey:
        return load_sealing_key(self.folder / "party-0" / "sealing.key")

    @property
    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    @cached_property
    def submission(self) -> Submission:
        return self._submission(Slot(0))

    @cached_property
    def relayed(self) -> Submission:
        """One whose heavy share party 1 brings to party 0."""
        return self._submission(Slot(1))

    def _submission(self, slot: Slot) -> Submission:
        vector = np.linspace(-0.1, 0.1, SPEC.dimension)
        encoded = encode_update(vector, SPEC, ROUND, weight=None, clip=True, key=self.key)
        return prepare(encoded, slot=slot, participant=NAME, key=self.key, certificate=self.certificate)

    @cached_property
    def wish(self) -> coordinator_pb2.EnrolForRequest:
        wish = EnrolmentWish.sign(SPEC.digest, ROUND, NAME, key=self.key, certificate=self.certificate)
        return coordinator_pb2.EnrolForRequest(
            task_digest=wish.task,
            round=wish.round,
            participant=wish.participant,
            signature=wish.signature,
            certificate=self.certificate.public_bytes(Encoding.DER),
        )

    def upload(self, party: int = 0) -> list[party_pb2.UploadRequest]:
        """A whole upload stream: the header, and the heavy share in two chunks."""
        share = bytes(self.submission.heavy_share)
        header = party_pb2.UploadRequest(header=upload_header(self.submission, PartyIndex(party)))
        middle = len(share) // 2
        pieces = [(0, share[:middle]), (middle, share[middle:])]
        chunks = [party_pb2.UploadRequest(chunk=types_pb2.Chunk(offset=at, data=data)) for at, data in pieces]
        return [header, *chunks]

    def relay(self) -> list[party_pb2.RelayRequest]:
        """What party 1 sends party 0 of that share."""
        header = party_pb2.RelayHeader(manifest=self.relayed.signed, salt=self.relayed.sharing.salts[1])
        chunk = types_pb2.Chunk(offset=0, data=bytes(self.relayed.heavy_share))
        return [party_pb2.RelayRequest(header=header), party_pb2.RelayRequest(chunk=chunk)]

    @cached_property
    def sealed(self) -> SealedUpload:
        return seal_submission(self.submission, PartyIndex(0), self.sealing_key.public_key(), chunk_bytes=256)

    def sealed_requests(self) -> list[party_pb2.SealedUploadRequest]:
        """A whole sealed upload stream to party 0."""
        sealed = SealedUpload.from_bytes(self.sealed.to_bytes(), DEFAULT_LIMITS)
        header = party_pb2.SealedUploadHeader(
            task_digest=SPEC.digest, round=ROUND, participant=NAME, sealed=sealed.header
        )
        chunks = [party_pb2.SealedChunk(offset=offset, sealed=piece) for offset, piece in sealed.chunks]
        return [
            party_pb2.SealedUploadRequest(header=header),
            *(party_pb2.SealedUploadRequest(chunk=chunk) for chunk in chunks),
        ]
