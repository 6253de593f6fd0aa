"""Every decoder of the product as a function of bytes, with valid examples: what Hypothesis and atheris both run.

The contract: a target returns, or raises a TriskeleError. Anything else that escapes from it is a finding.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from google.protobuf.message import DecodeError, Message

from triskele import manifest as manifests
from triskele.config import FrameworkServerConfig, ParticipantConfig
from triskele.coordinator import Coordinator
from triskele.credentials import Credentials
from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import TriskeleError
from triskele.identity import Identity
from triskele.ids import ParticipantId, PartyIndex, RoundNumber, ShareIndex, TaskDigest
from triskele.limits import DEFAULT_LIMITS
from triskele.result import _read as read_result
from triskele.sealed import SealContext, SealedUpload, certified_party_keys, open_sealed
from triskele.sharing import ShareContext
from triskele.structure import flatten
from triskele.task import TaskSpec
from triskele.transparency import checkpoint
from triskele.transparency.certificate import Certificate
from triskele.transparency.checkpoint import Checkpoint
from triskele.transparency.saved_log import SavedLog
from triskele.views import RoundView, TaskView
from triskele_proto.v1 import control_pb2, coordinator_pb2, party_pb2, peer_pb2, types_pb2
from triskele_server.at_rest import ShareVault
from triskele_server.config import load_coordinator, load_party, load_task
from triskele_server.coordinator.party_link import _status as party_status
from triskele_server.linear.shares import FileShare, read_rows
from triskele_server.party.checkpoint import Decision, FileCheckpoints
from triskele_server.party.coin_key import coin_key
from triskele_server.party.cosigner import read_cosigned
from triskele_server.party.release_files import read_previous
from triskele_server.party.sealed_intake import load_sealing_key
from triskele_server.party.service import received_shares
from triskele_server.party.share_files import RoundKey
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.peer import _Link
from triskele_server.rpc.tls import TlsFiles

from . import examples
from .examples import frame, framed
from .material import NAME, ROUND, SPEC, Material

PARTY = Identity("demo", "participant", NAME).uri


@dataclass(frozen=True)
class Target:
    """One decoder: `decode` is run on any bytes, `examples` are valid for it."""

    name: str
    decode: Callable[[bytes], object]
    examples: tuple[bytes, ...]


class _NotAMessage(TriskeleError):
    """protobuf refused the bytes: the transport answers that (tests/fuzz/test_services.py), no decoder ever sees it."""


def check(target: Target, data: bytes) -> bool:
    """Whether the target takes the bytes (True) or refuses them with a typed error (False); others escape."""
    try:
        with warnings.catch_warnings():  # cryptography warns of certificates that it will refuse one day
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            target.decode(data)
    except TriskeleError:
        return False
    return True


def targets(material: Material, scratch: Path) -> list[Target]:
    """All of them. `scratch` is a folder for decoders that read files."""
    scratch.mkdir(exist_ok=True)
    return [
        *_client(material),
        *_log(),
        *_files(material, scratch),
        *_server(material),
        *_party_files(material, scratch),
    ]


def _message(kind: type[Message], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise _NotAMessage from error


def _of(kind: type[Message], use: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda data: use(_message(kind, data))


def _client(made: Material) -> Iterator[Target]:
    yield Target("task", TaskSpec.from_canonical, (SPEC.canonical(), examples.rich_task().canonical()))

    def manifest(signed: types_pb2.SignedManifest) -> None:
        manifests.verify(signed, authority=made.authority, identity=PARTY, now=made.now).check_belongs_to(SPEC, ROUND)

    signed = made.submission.signed.SerializeToString()
    yield Target("signed-manifest", _of(types_pb2.SignedManifest, manifest), (signed,))

    def wish(message: coordinator_pb2.EnrolForRequest) -> None:
        content = (message.participant, message.signature, message.certificate)
        found = EnrolmentWish(
            TaskDigest(message.task_digest), RoundNumber(message.round), ParticipantId(content[0]), *content[1:]
        )
        found.verify(authority=made.authority, identity=PARTY, now=made.now)

    yield Target("enrolment-wish", _of(coordinator_pb2.EnrolForRequest, wish), (made.wish.SerializeToString(),))
    sealed = made.sealed
    yield Target("sealed-upload", lambda data: SealedUpload.from_bytes(data, DEFAULT_LIMITS), (sealed.to_bytes(),))
    info = SealContext(SPEC.digest, ROUND, NAME, PartyIndex(0)).header_info()
    yield Target("sealed-piece", lambda data: open_sealed(data, made.sealing_key, info), (sealed.header,))
    certificates = [(made.folder / "forwarder" / f"sealing-{i}.crt").read_bytes() for i in range(3)]

    first, *others = (x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER) for pem in certificates)

    def party_keys(data: bytes) -> None:
        certified_party_keys([data, *others], authority=made.authority, federation="demo", now=made.now)

    yield Target("party-certificate", party_keys, (first,))
    yield Target(
        "round-view",
        _of(coordinator_pb2.RoundView, lambda m: RoundView.from_proto(m, SPEC.digest)),
        (examples.round_view().SerializeToString(),),
    )
    yield Target(
        "task-view", _of(coordinator_pb2.TaskView, TaskView.from_proto), (examples.task_view().SerializeToString(),)
    )

    def enrolment(reply: coordinator_pb2.EnrolReply) -> None:
        Coordinator._enrolment(SimpleNamespace(), reply, SPEC)  # type: ignore[arg-type]  # it uses no connection

    reply = coordinator_pb2.EnrolReply(slot=1, heavy=1, party_addresses=["a:1", "b:2", "c:3"])
    yield Target("enrolment", _of(coordinator_pb2.EnrolReply, enrolment), (reply.SerializeToString(),))

    def result(data: bytes) -> None:
        read_result(iter([_message(coordinator_pb2.ResultChunk, piece) for piece in framed(data)]), SPEC)

    yield Target("result-stream", result, (b"".join(map(frame, examples.result())),))


def _log() -> Iterator[Target]:
    """What a coordinator says of its log."""
    cosigned, keys = examples.cosigned_checkpoint()
    yield Target("checkpoint", Checkpoint.from_body, (checkpoint.unverified(cosigned).body(),))
    statement, envelope, signers = examples.certificate()
    yield Target("statement", Certificate.from_statement, (statement,))
    yield Target("certificate", lambda data: Certificate.verified(data, signers), (envelope,))
    lines = b'{"payload":"","payloadType":"","signatures":[]}\n{"checkpoint":"demo/rounds"}\n'
    yield Target("saved-log", SavedLog.from_bytes, (lines,))
    yield Target("cosigned-checkpoint", lambda data: checkpoint.verified(data, keys, "demo"), (cosigned,))


def _server(made: Material) -> Iterator[Target]:
    yield Target(
        "party-status", _of(control_pb2.RoundStatusReply, party_status), (examples.party_reply().SerializeToString(),)
    )

    def frames(data: bytes) -> None:
        link = _Link()
        for piece in framed(data):
            link.received(_message(peer_pb2.Frame, piece))

    whole = peer_pb2.Frame(session=bytes(32), sequence=1, label="open/valid:int64[3]", payload=bytes(24), last=True)
    part = peer_pb2.Frame(session=bytes(32), sequence=1, label="open/valid:int64[3]", payload=bytes(24))
    streams = (frame(whole.SerializeToString()), frame(part.SerializeToString()) + frame(whole.SerializeToString()))
    yield Target("peer-frames", frames, streams)

    def spiffe(data: bytes) -> None:
        Identity.parse(data.decode("utf-8", "replace"))

    yield Target("identity", spiffe, (PARTY.encode(),))
    yield Target(
        "upload-header", _of(party_pb2.UploadHeader, _received), (made.upload()[0].header.SerializeToString(),)
    )
    yield Target("round-key", lambda data: RoundKey(TaskDigest(data[8:]), _number(data[:8])), (bytes(7) + b"\1" * 33,))


def _received(header: party_pb2.UploadHeader) -> None:
    received_shares(header.shares)


def _number(data: bytes) -> RoundNumber:
    return RoundNumber(int.from_bytes(data, "big"))


def _files(made: Material, scratch: Path) -> Iterator[Target]:
    """Decoders of files that somebody else wrote: configurations, keys, updates, the deny list."""

    def file(name: str, read: Callable[[Path], object], *examples: bytes, beside: Path | None = None) -> Target:
        folder = beside or scratch  # configurations name files beside them
        path = folder / name

        def decode(data: bytes) -> None:
            path.write_bytes(data)
            read(path)

        return Target(name.replace("fuzzed-", ""), decode, examples)

    def text(path: str) -> bytes:
        return (made.folder / path).read_bytes()

    member, party = made.member, made.folder / "party-0"
    yield file("fuzzed-party.toml", load_party, text("party-0/party.toml"), beside=party)
    yield file("fuzzed-coordinator.toml", load_coordinator, text("coordinator/coordinator.toml"), beside=party)
    yield file("fuzzed-task.toml", load_task, text("coordinator/tasks/face.toml"))
    own = text(f"participants/{NAME}/participant.toml")
    yield file("fuzzed-participant.toml", ParticipantConfig.load, own, beside=member)
    forwarder = made.folder / "forwarder"
    yield file("fuzzed-forwarder.toml", FrameworkServerConfig.load, text("forwarder/forwarder.toml"), beside=forwarder)
    yield file("sealing.key", load_sealing_key, text("party-0/sealing.key"))
    yield file("denied", DenyList, b"spiffe://demo/participant/p00 # gone\nserial:5F1D\n")
    tls = TlsFiles(party / "tls.crt", party / "tls.key", party / "ca.crt")
    yield file("tls.crt", lambda path: TlsFiles(path, tls.key, tls.authority)._pem(), text("party-0/tls.crt"))
    yield file("tls.key", lambda path: TlsFiles(tls.certificate, path, tls.authority)._pem(), text("party-0/tls.key"))
    yield file("ca.crt", lambda path: TlsFiles(tls.certificate, tls.key, path)._pem(), text("party-0/ca.crt"))
    config = ParticipantConfig.load(member / "participant.toml")

    def credentials(place: str, setting: str) -> Callable[[Path], object]:
        def load(path: Path) -> None:
            section = getattr(config, place).model_copy(update={setting: path})
            Credentials.load(config.model_copy(update={place: section}))

        return load

    for place, setting in (("tls", "certificate"), ("signing", "certificate"), ("signing", "key")):
        example = getattr(getattr(config, place), setting).read_bytes()
        yield file(f"{place}-{setting}.pem", credentials(place, setting), example)
    yield file("update.npz", flatten, examples.npz())
    yield file("update.safetensors", flatten, safetensors.numpy.save({"a": np.ones(3, np.float32)}))


def _party_files(made: Material, scratch: Path) -> Iterator[Target]:
    """What a party reads of its own disk: damaged by the disk, or by somebody who got at it."""
    yield Target("decision", Decision.from_json, (examples.decision().to_json(),))
    folder = scratch / "checkpoints"
    folder.mkdir(exist_ok=True)
    vault = ShareVault(bytes(32))

    def kept_file(name: str, *, vault: ShareVault | None) -> Callable[[bytes], object]:
        def decode(data: bytes) -> None:
            for each in folder.iterdir():
                each.unlink()
            (folder / name).write_bytes(data)
            kept = FileCheckpoints(folder, vault)
            kept.commitments()
            kept.coin()
            kept.decision()

        return decode

    yield Target("coin", kept_file("coin", vault=None), (bytes(32),))
    yield Target("coin-commitments", kept_file("commitments", vault=None), (bytes(96),))
    kept = FileCheckpoints(folder, vault)
    kept.keep_coin(bytes(32))
    kept.keep_decision(examples.decision())
    yield Target("coin-encrypted", kept_file("coin", vault=vault), ((folder / "coin").read_bytes(),))
    decision = (folder / "decision.json").read_bytes()
    yield Target("decision-encrypted", kept_file("decision.json", vault=vault), (decision,))

    def key(data: bytes) -> None:
        (scratch / "coin.key").write_bytes(data)
        coin_key(scratch)

    yield Target("coin-key", key, (bytes(32),))

    def cosigned(data: bytes) -> None:
        (scratch / "cosigned").write_bytes(data)
        read_cosigned(scratch / "cosigned")

    yield Target("cosigned", cosigned, (checkpoint.unverified(examples.cosigned_checkpoint()[0]).body(),))
    words = scratch / "share.words"

    def plain(data: bytes) -> None:
        words.write_bytes(data)
        read_rows([FileShare.of(words, 8)], 0, 8)

    yield Target("share-words", plain, (bytes(64),))
    place = ShareContext(SPEC.digest, ROUND, NAME).info(ShareIndex(0))
    sealed = scratch / "share.sealed"
    with vault.create(sealed, place) as file:
        file.append(bytes(64))
        file.finish()

    def encrypted(data: bytes) -> None:
        sealed.write_bytes(data)
        read_rows([vault.words(sealed, place, 8)], 0, 8)

    yield Target("share-encrypted", encrypted, (sealed.read_bytes(),))

    def previous(data: bytes) -> None:
        """The words and, behind them, how they are read."""
        words.write_bytes(data[:64])
        words.with_suffix(".json").write_bytes(data[64:])
        read_previous(words, SPEC.digest, 8, None)

    how = {"round": 1, "digest": hashlib.sha256(bytes(64)).hexdigest(), "weight_total": 2, "coefficient_bits": 0}
    keys = json.dumps(how | {"keys": ["00" * 32, "11" * 32]}).encode()
    yield Target("previous-aggregate", previous, (bytes(64) + keys,))
