"""One party, served over real gRPC with mutual TLS, and participants that upload to it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from triskele.call_metadata import MetadataInterceptor
from triskele.identity import Identity
from triskele.ids import ParticipantId, PartyIndex, RoundNumber, Slot, held_shares
from triskele.manifest import Manifest, sign
from triskele.release_mask import MaskKey
from triskele.sharing import ShareContext, Sharing, heavy_index, split
from triskele.task import TaskSpec
from triskele_proto.v1 import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc, types_pb2
from triskele_server.config import PartyConfig, ProbesTable, load_party, party_identity
from triskele_server.party.attested import Attested
from triskele_server.party.job import RoundOutcome
from triskele_server.party.process import running
from triskele_server.provision import PortPlan, provision
from triskele_server.round_state import RoundState
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.tls import TlsFiles

PARTICIPANTS = ("alice", "bob", "carol", "mallory")


@dataclass
class Federation:
    """A provisioned federation; what the tests need of it."""

    directory: Path
    name: str = "demo"

    def tls(self, folder: str) -> TlsFiles:
        base = self.directory / folder
        return TlsFiles(base / "tls.crt", base / "tls.key", base / "ca.crt")

    def participant_tls(self, name: str) -> TlsFiles:
        return self.tls(f"participants/{name}")

    def identity(self, name: str) -> Identity:
        return Identity(self.name, "participant", name)

    @property
    def authority(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.directory / "ca" / "ca.crt").read_bytes())

    def sign(self, name: str, manifest: Manifest) -> types_pb2.SignedManifest:
        folder = self.directory / "participants" / name
        key = serialization.load_pem_private_key((folder / "signing.key").read_bytes(), None)
        return sign(manifest, key, x509.load_pem_x509_certificate((folder / "signing.crt").read_bytes()))

    def party_config(self, index: int, data: Path) -> PartyConfig:
        config = load_party(self.directory / f"party-{index}" / "party.toml")
        return config.model_copy(update={"listen": "127.0.0.1:0", "data": data, "probes": ProbesTable()})


@dataclass
class Submission:
    """One participant's submission, ready to be sent, and every way to send it wrong."""

    federation: Federation
    participant: str
    manifest: Manifest
    sharing: Sharing = field(repr=False)
    signer: str = ""

    @classmethod
    def make(cls, federation, participant, spec, *, slot=0, number=1, value=7) -> Submission:
        heavy = heavy_index(Slot(slot))
        context = ShareContext(spec.digest, RoundNumber(number), ParticipantId(participant))
        words = np.full(spec.length, value, np.int64)
        sharing = split(words, heavy=heavy, context=context, entropy=secrets.token_bytes(32))
        manifest = Manifest(
            spec.digest,
            RoundNumber(number),
            ParticipantId(participant),
            Slot(slot),
            heavy,
            spec.length,
            sharing.commitments(),
        )
        return cls(federation, participant, manifest, sharing)

    @property
    def heavy_bytes(self) -> bytes:
        return self.sharing.heavy_words.tobytes()

    def shares(self, party: int) -> list[party_pb2.ShareHeader]:
        return [
            party_pb2.ShareHeader(index=i, salt=self.sharing.salts[i], seed=self.sharing.seeds.get(i, b""))
            for i in held_shares(PartyIndex(party))
        ]

    def holds_heavy(self, party: int) -> bool:
        return self.manifest.heavy in held_shares(PartyIndex(party))

    def header(self, party: int, shares=None) -> party_pb2.UploadRequest:
        signed = self.federation.sign(self.signer or self.participant, self.manifest)
        shares = self.shares(party) if shares is None else shares
        return party_pb2.UploadRequest(header=party_pb2.UploadHeader(manifest=signed, shares=shares))

    def chunks(self, start=0, stop=None, size=1 << 10) -> list[party_pb2.UploadRequest]:
        stop = len(self.heavy_bytes) if stop is None else stop
        return [chunk(at, self.heavy_bytes[at : min(at + size, stop)]) for at in range(start, stop, size)]

    def requests(self, party: int) -> list[party_pb2.UploadRequest]:
        size = max(1 << 10, len(self.heavy_bytes) // 4)
        return [self.header(party), *(self.chunks(size=size) if self.holds_heavy(party) else ())]


def chunk(offset: int, data: bytes) -> party_pb2.UploadRequest:
    return party_pb2.UploadRequest(chunk=types_pb2.Chunk(offset=offset, data=data))


def made_up(*, masked: bool = False) -> Attested:
    """What made-up parties agreed on."""
    keys = (b"\1" * 32, b"\2" * 32, b"\3" * 32) if masked else None
    return Attested(b"\4" * 32, None, ("1", "1", "1"), 1, keys, b"\5" * 32)


class Runner:
    """Stands in for the worker: tells the phases, writes an output file, or fails as a test wants it to."""

    def __init__(self) -> None:
        self.jobs = []
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.cancelled = False
        self.written = asyncio.Event()
        self.end = asyncio.Event()
        self.end.set()
        self.error: BaseException | None = None
        self.digest: bytes | None = None
        self.openings: tuple[str, ...] = ("y[3]",)
        self.clip_bound: int | None = None

    async def run(self, job, on_phase):
        self.jobs.append(job)
        on_phase(RoundState.CHECKED)
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        on_phase(RoundState.FILTERED)
        spec = TaskSpec.from_canonical(job.task)
        words = np.arange(spec.dimension, dtype="<i8").tobytes()
        job.output.write_bytes(words)
        on_phase(RoundState.COMBINED)
        self.written.set()
        await self.end.wait()
        slots = [s.slot for s in job.submissions]
        digest = self.digest or hashlib.sha256(words).digest()
        refused = slots[:1] if len(slots) > spec.min_accepted else []
        kept = tuple(slots[len(refused) :])
        return RoundOutcome(
            digest,
            len(slots),
            0,
            tuple((slot, "norm") for slot in refused),
            kept if spec.decisions == "public" else None,
            self.openings,
            made_up(masked=spec.masked),
            job.attempt,
            (MaskKey(b"\1" * 32), MaskKey(b"\2" * 32)) if spec.masked else None,
            masked=spec.masked,
            clip_bound=self.clip_bound,
        )


class Party:
    """A running party and the calls that participants and the coordinator make."""

    def __init__(self, federation: Federation, config: PartyConfig, port: int, runner: Runner) -> None:
        self.federation = federation
        self.config = config
        self.runner = runner
        self._address = f"127.0.0.1:{port}"
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.certificates: list[control_pb2.SignedStatement] = []

    def _channel(self, folder: str) -> grpc.aio.Channel:
        if folder not in self._channels:
            server = party_identity(self.federation.name, self.config.index)
            self._channels[folder] = open_channel(self._address, server, self.federation.tls(folder))
        return self._channels[folder]

    def intake(self, participant: str) -> party_pb2_grpc.PartyStub:
        return party_pb2_grpc.PartyStub(self._channel(f"participants/{participant}"))

    @property
    def control(self) -> control_pb2_grpc.PartyControlStub:
        return control_pb2_grpc.PartyControlStub(self._channel("coordinator"))

    async def upload(self, requests, *, as_participant: str) -> party_pb2.UploadReply:
        """Send a whole stream as a client does, with the blocking API: it shows an answer given in mid-stream."""
        whole = list(requests)
        return await self.sent(f"participants/{as_participant}", lambda client: client.Upload(iter(whole), timeout=20))

    async def sent(self, folder: str, send) -> party_pb2.UploadReply:
        """What `send` gets as the member of a folder, from a blocking client."""
        host = party_identity(self.federation.name, self.config.index).host
        options = [("grpc.ssl_target_name_override", host)]

        def call() -> party_pb2.UploadReply:
            credentials = self.federation.tls(folder).channel_credentials()
            with grpc.secure_channel(self._address, credentials, options=options) as channel:
                return send(party_pb2_grpc.PartyStub(grpc.intercept_channel(channel, MetadataInterceptor())))

        return await asyncio.to_thread(call)

    async def submit(self, submission: Submission) -> party_pb2.UploadReply:
        return await self.upload(submission.requests(self.config.index), as_participant=submission.participant)

    async def status(self, submission: Submission, *, as_participant: str = "") -> party_pb2.UploadReply:
        manifest = submission.manifest
        request = party_pb2.UploadStatusRequest(
            task_digest=manifest.task, round=manifest.round, manifest_digest=manifest.digest
        )
        return await self.intake(as_participant or submission.participant).UploadStatus(request, timeout=20)

    async def open(self, spec: TaskSpec, number: int = 1) -> control_pb2.RoundStatusReply:
        request = control_pb2.OpenRoundRequest(task=spec.canonical(), round=number)
        return await self.control.OpenRound(request, timeout=20)

    async def round_status(self, spec: TaskSpec, number: int = 1) -> control_pb2.RoundStatusReply:
        request = control_pb2.RoundRequest(task_digest=spec.digest, round=number)
        return await self.control.RoundStatus(request, timeout=20)

    async def seal(self, spec: TaskSpec, submissions, number: int = 1) -> control_pb2.RoundStatusReply:
        listed = [
            control_pb2.Submission(
                slot=s.manifest.slot, participant=s.manifest.participant, manifest_digest=s.manifest.digest
            )
            for s in submissions
        ]
        request = control_pb2.SealRoundRequest(task_digest=spec.digest, round=number, submissions=listed)
        return await self.control.SealRound(request, timeout=20)

    async def run(self, spec: TaskSpec, number: int = 1, attempt: int = 1) -> control_pb2.RoundStatusReply:
        request = control_pb2.RunRoundRequest(task_digest=spec.digest, round=number, attempt=attempt)
        return await self.control.RunRound(request, timeout=20)

    async def end(self, spec: TaskSpec, state: str, number: int = 1, **account) -> control_pb2.RoundStatusReply:
        """The status in the answer; the certificate in it goes to `certificates`."""
        request = control_pb2.EndRoundRequest(task_digest=spec.digest, round=number, state=state, **account)
        reply = await self.control.EndRound(request, timeout=20)
        self.certificates.append(reply.certificate)
        reply.ClearField("certificate")
        return reply

    async def output(self, spec: TaskSpec, number: int = 1) -> list[types_pb2.Chunk]:
        request = control_pb2.RoundRequest(task_digest=spec.digest, round=number)
        return [part.chunk async for part in self.control.FetchOutput(request, timeout=20)]

    async def until(self, spec: TaskSpec, *states: str, number: int = 1) -> control_pb2.RoundStatusReply:
        async with asyncio.timeout(20):
            while (status := await self.round_status(spec, number)).state not in states:  # noqa: ASYNC110  a party pushes nothing
                await asyncio.sleep(0.01)
        return status

    async def until_file(self, name: str, size: int) -> None:
        """Wait until the party has so many bytes of a share on its disk."""
        async with asyncio.timeout(10):
            while len(self.share_files().get(name, b"")) < size:  # noqa: ASYNC110  a file gives no event
                await asyncio.sleep(0.005)

    async def until_no_files(self) -> None:
        """Wait until the party has deleted everything of its rounds."""
        async with asyncio.timeout(10):
            while self.share_files():  # noqa: ASYNC110  a file gives no event
                await asyncio.sleep(0.005)

    def share_files(self) -> dict[str, bytes]:
        root = self.config.data / "rounds"
        return {p.name: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


@pytest.fixture(scope="session")
def federation(tmp_path_factory) -> Federation:
    directory = tmp_path_factory.mktemp("party-tests") / "federation"
    provision(directory, participants=PARTICIPANTS, ports=PortPlan.from_base(7000))
    return Federation(directory)


@pytest.fixture(scope="session")
def spec() -> TaskSpec:
    return TaskSpec("face", 1000, 1.0, max_participants=16, min_accepted=2)


@pytest.fixture
def start_party(federation, tmp_path):
    """`async with start_party(index) as party`; the data folder stays for the next start in the same test."""

    @asynccontextmanager
    async def start(index: int = 0, runner: Runner | None = None, **changes):
        config = federation.party_config(index, tmp_path / f"data-{index}").model_copy(update=changes)
        runner = runner or Runner()
        async with running(config, runner) as ports:
            party = Party(federation, config, ports.listen, runner)
            try:
                yield party
            finally:
                await party.close()

    return start


@pytest.fixture
def attested():
    """`attested(masked=...)`: what made-up parties agreed on."""
    return made_up


@pytest.fixture
def submission(federation, spec):
    """`submission(participant, ...)` makes one for the tests' task."""

    def make(participant="alice", *, task=None, **changes) -> Submission:
        return Submission.make(federation, participant, task or spec, **changes)

    return make


@pytest.fixture
def refused():
    """`async with refused(status) as error` expects one gRPC error; `str(error)` is its text."""

    @asynccontextmanager
    async def expect(status: grpc.StatusCode, *words: str):
        with pytest.raises(grpc.RpcError) as caught:
            yield caught
        assert caught.value.code() is status, caught.value.details()
        for word in words:
            assert word in caught.value.details()

    return expect
