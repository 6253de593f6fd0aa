"""Uploads that a forwarder brings under HPKE: opened here, then taken in by `Intake` as if the participant had called.

    (0) the sealed header opens with this party's key, for the task, round and participant that the forwarder names;
        then steps (1) to (11) of intake.py, with the participant as caller.

The forwarder is trusted with nothing but bringing the pieces: who submits is what the manifest is signed for, and what
counts is what opens the manifest's commitments. Chunks that are committed already may come again and are passed over,
so a forwarder that lost its connection just begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import DecodeError

from triskele.errors import ConfigurationError, InvalidTask, InvalidUpload
from triskele.identity import Identity
from triskele.ids import ParticipantId, PartyIndex, checked_name
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.manifest import Manifest, ManifestDigest
from triskele.sealed import MAX_HEADER_BYTES, OVERHEAD_BYTES, SealContext, open_sealed
from triskele.unusable import UNUSABLE_KEY
from triskele_proto.v1 import party_pb2
from triskele_server.metrics import party as metrics
from triskele_server.party.intake import Intake, ReceivedShare
from triskele_server.party.share_files import RoundKey
from triskele_server.party.upload import UploadSession


@dataclass(frozen=True)
class SealedSession:
    """One sealed upload on its way to disk: an `UploadSession` whose chunks come sealed."""

    session: UploadSession
    context: SealContext
    manifest: ManifestDigest
    key: X25519PrivateKey = field(repr=False)
    limits: Limits

    def write(self, offset: int, sealed: bytes) -> None:
        """Open the next chunk and take it. Raises InvalidUpload and takes nothing."""
        if not OVERHEAD_BYTES < len(sealed) <= self.limits.max_chunk_bytes + OVERHEAD_BYTES:
            raise InvalidUpload(f"chunk: {len(sealed)} sealed bytes are out of range")
        if not 0 <= offset < 1 << 63:
            raise InvalidUpload("chunk: offset out of range")
        if offset + len(sealed) - OVERHEAD_BYTES <= self.session.position:
            return
        self.session.write(offset, open_sealed(sealed, self.key, self.context.chunk_info(self.manifest, offset)))


@dataclass(frozen=True)
class SealedIntake:
    """Opens what was sealed to this party."""

    intake: Intake
    key: X25519PrivateKey = field(repr=False)
    federation: str
    party: PartyIndex
    limits: Limits = DEFAULT_LIMITS

    def begin(self, key: RoundKey, participant: str, sealed: bytes) -> SealedSession:
        """Steps (0) to (7). Raises a ParticipantFault."""
        if len(sealed) > MAX_HEADER_BYTES:
            raise InvalidUpload(f"sealed: a header of {len(sealed)} bytes is over the limit of {MAX_HEADER_BYTES}")
        try:
            name = ParticipantId(checked_name(participant, "participant"))
        except InvalidTask as error:
            raise InvalidUpload(str(error)) from None
        context = SealContext(key.task, key.number, name, self.party)
        header = _header(open_sealed(sealed, self.key, context.header_info()))
        manifest = Manifest.from_proto(header.manifest.manifest)
        if (manifest.task, manifest.round) != (key.task, key.number):
            metrics.REPLAYS.labels("another_round").inc()
            raise InvalidUpload("sealed: holds a manifest for another task or round")
        shares = [ReceivedShare(s.index, s.salt, s.seed) for s in header.shares]
        session = self.intake.begin(Identity(self.federation, "participant", name), header.manifest, shares)
        return SealedSession(session, context, manifest.digest, self.key, self.limits)


def load_sealing_key(path: Path) -> X25519PrivateKey:
    """The party's private key for sealed uploads; raises ConfigurationError, which never quotes the file."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, *UNUSABLE_KEY):
        raise ConfigurationError(f"sealing_key: {path} cannot be used as an unencrypted PEM private key") from None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigurationError(f"sealing_key: {path} is not an X25519 key")
    return key


def _header(plaintext: bytes) -> party_pb2.UploadHeader:
    try:
        return party_pb2.UploadHeader.FromString(plaintext)
    except DecodeError as error:
        raise InvalidUpload("sealed: the header does not decode") from error
