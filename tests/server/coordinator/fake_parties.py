"""Three small PartyControl servers over real gRPC and mutual TLS, and a coordinator's runner against them.

A fake party does what it is told: uploads are declared by the test, and every status call after RunRound brings the
round one state further, so that no test waits for a clock.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.errors import Forbidden, NotFound, WrongState
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, Slot
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele.transparency.certificate import sign
from triskele.transparency.party_keys import key_id
from triskele_proto.v1 import control_pb2, control_pb2_grpc, types_pb2
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.parties import Pace, Parties
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import RoundId, RoundRecord, Submission, Terms
from triskele_server.coordinator.runner import TaskRunner
from triskele_server.coordinator.store import Store
from triskele_server.party.cosigner import Cosigner, OtherSize
from triskele_server.round_state import RoundState, advance, steps
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import bind, build_server
from triskele_server.rpc.tls import TlsFiles

SPEC = TaskSpec("faces", 1000, 2.0, max_participants=3, min_accepted=2)
TERMS = Terms(quorum=2, deadline_seconds=100.0, grace_seconds=10.0, min_accepted=2, max_participants=3)
WORDS = np.arange(SPEC.dimension, dtype="<i8").tobytes()
PACE = Pace(poll_seconds=0.002, slowest_poll_seconds=0.01, stall_seconds=30.0, pause_seconds=0.0)
COSIGNING_KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([p]) * 32) for p in PARTIES]
STEP_SECONDS = 30  # no step of a test may take longer


def tls_files(folder: Path) -> TlsFiles:
    return TlsFiles(certificate=folder / "tls.crt", key=folder / "tls.key", authority=folder / "ca.crt")


def manifest(text: str) -> ManifestDigest:
    return ManifestDigest(hashlib.sha256(text.encode()).digest())


@dataclass
class FakeRound:
    state: RoundState = RoundState.OPEN
    complete: list[Submission] = field(default_factory=list)
    sealed: list[Submission] = field(default_factory=list)
    running: bool = False
    attempt: int = 0
    setback: str = ""
    ended_as: str = ""


@dataclass
class FakeParty(control_pb2_grpc.PartyControlServicer):
    """Attributes that tests set: what the party answers otherwise than an honest one."""

    index: PartyIndex
    words: bytes = WORDS
    digest: bytes = hashlib.sha256(WORDS).digest()
    weight_total: int = 2
    refused: Sequence[types_pb2.RefusedSubmission] = ()
    blame: types_pb2.Blame | None = None  # report FAILED with this once running
    policy_refuses: bool = False
    stuck_in: RoundState | None = None
    waits: float = 0.0  # seconds before the next status is told, once
    loses_attempts: str = ""  # the setback that ends each attempt
    rounds: dict[int, FakeRound] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)  # set by every call
    cosigner: Cosigner | None = None
    statement: bytes = b""  # signed of every round, instead of the others'

    async def OpenRound(self, request, context):  # noqa: N802
        self._note("open")
        TaskSpec.from_canonical(request.task)
        if self.policy_refuses:
            raise Forbidden("this party's policy does not allow the rule")
        self.rounds.setdefault(request.round, FakeRound())
        return self._reply(request.round)

    async def RoundStatus(self, request, context):  # noqa: N802
        self._note("status")
        seconds, self.waits = self.waits, 0.0
        await asyncio.sleep(seconds)
        round_ = self._round(request.round)
        if round_.running and round_.state not in (RoundState.COMBINED, self.stuck_in):
            if self.blame is not None:
                round_.state = RoundState.FAILED
            elif self.loses_attempts:
                round_.running, round_.setback = False, self.loses_attempts
            elif round_.state is not RoundState.FAILED:
                round_.state = advance(round_.state, steps(round_.state, RoundState.COMBINED)[0])
        return self._reply(request.round)

    async def SealRound(self, request, context):  # noqa: N802
        self._note("seal")
        round_ = self._round(request.round)
        sealed = [Submission(s.slot, s.participant, s.manifest_digest) for s in request.submissions]
        if not set(sealed) <= set(round_.complete):
            raise WrongState("a submission is not complete here")
        if round_.state is RoundState.OPEN:
            round_.state, round_.sealed = RoundState.SEALED, sealed
        return self._reply(request.round)

    async def RunRound(self, request, context):  # noqa: N802
        self._note("run")
        round_ = self._round(request.round)
        if round_.state is RoundState.OPEN:
            raise WrongState("seal it first")
        if request.attempt > round_.attempt:
            round_.attempt, round_.running = request.attempt, True
        return self._reply(request.round)

    async def FetchOutput(self, request, context):  # noqa: N802
        self._note("fetch")
        for start in range(0, len(self.words), 3000):
            yield control_pb2.OutputChunk(chunk=types_pb2.Chunk(offset=start, data=self.words[start : start + 3000]))

    async def EndRound(self, request, context):  # noqa: N802
        self._note("end")
        round_ = self._round(request.round)
        round_.ended_as, round_.state = request.state, RoundState(request.state)
        reply = self._reply(request.round)
        statement, key = self.statement or f"round {request.round}".encode(), COSIGNING_KEYS[self.index]
        reply.certificate.CopyFrom(
            control_pb2.SignedStatement(
                statement=statement, key_id=key_id(key.public_key()), signature=sign(statement, key)
            )
        )
        return reply

    async def Cosign(self, request, context):  # noqa: N802
        self._note("cosign")
        assert self.cosigner is not None
        answer = self.cosigner.cosign(request.checkpoint, request.old_size, request.consistency)
        if isinstance(answer, OtherSize):
            return control_pb2.CosignReply(old_size=answer.size)
        key = self.cosigner.public_key.public_bytes_raw()
        return control_pb2.CosignReply(time=answer.time, signature=answer.signature, public_key=key)

    async def until_called(self, what: str, times: int = 1) -> None:
        """Until this party has been called that often in all."""
        async with asyncio.timeout(STEP_SECONDS):
            while self.calls.count(what) < times:
                self.called.clear()
                await self.called.wait()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.called.set()

    def _round(self, number: int) -> FakeRound:
        if number not in self.rounds:
            raise NotFound("no such round at this party")
        return self.rounds[number]

    def _reply(self, number: int) -> control_pb2.RoundStatusReply:
        round_ = self.rounds[number]
        reply = control_pb2.RoundStatusReply(
            state=round_.state,
            attempt=round_.attempt,
            running=round_.running and round_.state is not RoundState.COMBINED,
            setback=round_.setback,
            complete=[
                control_pb2.Submission(slot=s.slot, participant=s.participant, manifest_digest=s.manifest)
                for s in round_.complete
            ],
            blame=self.blame if round_.state is RoundState.FAILED else None,
        )
        if round_.state is RoundState.COMBINED:
            reply.outcome.CopyFrom(
                control_pb2.RoundOutcome(
                    output_digest=self.digest,
                    weight_total=self.weight_total,
                    refused=self.refused,
                    accepted_slots=[s.slot for s in round_.sealed],
                    openings=["valid[2]", "aggregate[1000]"],
                )
            )
        return reply


class Clock:
    """Unix seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Federation:
    """Three fake parties, and the coordinator's parts that a runner needs."""

    def __init__(self, directory: Path, data: Path, addresses: Sequence[str] = ("127.0.0.1:0",) * 3) -> None:
        self.directory = directory
        self.data = data
        self.parties = [FakeParty(p) for p in PARTIES]
        self.addresses = list(addresses)
        self.servers = {}
        self.clock = Clock()
        self.store = Store(f"sqlite:///{data / 'coordinator.db'}")
        self.log = Log(self.store, "demo")
        for party in PARTIES:
            (data / f"party-{party}").mkdir(exist_ok=True)
            self.restart_cosigner(party)
        self.files = ResultFiles(data / "results")
        self.changes = RoundChanges()
        self.spec = SPEC  # of the task that tests speak of

    async def start(self, party: int) -> None:
        """Start party `party`, at the same address as before."""
        tls = tls_files(self.directory / f"party-{party}")
        server = build_server(tls, "demo")
        control_pb2_grpc.add_PartyControlServicer_to_server(self.parties[party], server)
        self.addresses[party] = f"127.0.0.1:{bind(server, self.addresses[party], tls)}"
        await server.start()
        self.servers[party] = server

    def restart_cosigner(self, party: PartyIndex) -> None:
        """As a party that starts reads its own disk."""
        folder, key = self.data / f"party-{party}", COSIGNING_KEYS[party]
        self.parties[party].cosigner = Cosigner(folder, "demo", key, self.clock)

    async def stop(self, party: int) -> None:
        await self.servers.pop(party).stop(None)

    def links(self) -> Parties:
        tls = tls_files(self.directory / "coordinator")

        def link(party: PartyIndex) -> PartyLink:
            connect = partial(open_channel, self.addresses[party], Identity("demo", "party", str(party)), tls)
            return PartyLink(party, connect, renew_seconds=0.05)

        return Parties([link(p) for p in PARTIES])

    @asynccontextmanager
    async def running(
        self, rounds: int = 1, *, spec: TaskSpec = SPEC, terms: Terms = TERMS, pace: Pace = PACE
    ) -> AsyncIterator[asyncio.Task[None]]:
        """A runner of `rounds` rounds; leaving the block cancels it, which is what a kill looks like to its store."""
        parties = self.links()
        self.store.put_task(spec, rounds)
        runner = TaskRunner(
            spec,
            terms,
            store=self.store,
            files=self.files,
            parties=parties,
            changes=self.changes,
            log=self.log,
            clock=self.clock,
            pace=pace,
        )
        task = asyncio.create_task(runner.run(rounds))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await parties.close()

    async def until(self, condition: Callable[[RoundRecord], object], number: int = 1) -> RoundRecord:
        """The round, once `condition` holds for it."""
        async with asyncio.timeout(STEP_SECONDS):
            while True:
                seen = self.changes.version(self.spec.digest)
                records = self.store.rounds(self.spec.digest, number)
                if records and condition(records[0]):
                    return records[0]
                await self.changes.wait(self.spec.digest, seen)

    async def until_state(self, state: RoundState, number: int = 1) -> RoundRecord:
        return await self.until(lambda r: r.state is state, number)

    async def polled(self, party: int = 0, times: int = 4) -> None:
        """Until the coordinator has asked a party that often again."""
        asked = self.parties[party]
        await asked.until_called("status", asked.calls.count("status") + times)

    def enrol(self, *names: str, number: int = 1) -> list[Slot]:
        id_ = RoundId(self.spec.digest, RoundNumber(number))
        return [self.store.enrol(id_, ParticipantId(name)).slot for name in names]

    def upload(
        self, name: str, slot: int, *, parties: Sequence[int] = (0, 1, 2), number: int = 1, what: str = ""
    ) -> None:
        """Declare an upload complete at these parties."""
        submission = Submission(Slot(slot), ParticipantId(name), manifest(what or name))
        for party in parties:
            self.parties[party].rounds[number].complete.append(submission)

    async def take_part(self, *names: str, number: int = 1) -> None:
        """Enrol and upload, once the round is open."""
        await self.until_state(RoundState.OPEN, number)
        for name, slot in zip(names, self.enrol(*names, number=number), strict=True):
            self.upload(name, slot, number=number)

    def ended_as(self, number: int = 1) -> list[str]:
        return [party.rounds[number].ended_as for party in self.parties]


@asynccontextmanager
async def federation(
    directory: Path, data: Path, addresses: Sequence[str] = ("127.0.0.1:0",) * 3
) -> AsyncIterator[Federation]:
    """Three running fake parties with the certificates that `triskele provision` wrote to `directory`."""
    made = Federation(directory, data, addresses)
    try:
        for party in PARTIES:
            await made.start(party)
        yield made
    finally:
        for party in list(made.servers):
            await made.stop(party)
        made.store.close()


def without_grace(terms: Terms = TERMS) -> Terms:
    return replace(terms, grace_seconds=0.0)
