"""The Coordinator service: wire to store and back. It admits, shows and hands out; it decides nothing."""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from cryptography import x509

from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import Forbidden, NotFound, Unavailable, WrongState
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, TaskDigest
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.sharing import heavy_index
from triskele.transparency.checkpoint import unverified
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import RoundId, RoundRecord, StoredResult
from triskele_server.coordinator.store import Store, StoredTask
from triskele_server.coordinator.views import round_view
from triskele_server.rpc.interceptors import Context, about, caller

_ANSWER_SECONDS = 1.0  # before a caller's deadline it is told that there is nothing yet
_MAX_NUMBER = (1 << 63) - 1
_VIEWS_PER_SECOND = 100  # of counts that grow while a round is open, to all watchers of a task together


def refuse_wish(_: EnrolmentWish) -> None:
    """Nobody is enrolled in another's stead; raises Forbidden."""
    raise Forbidden("this coordinator enrols only who asks itself")


def wishes_certified_by(authority: x509.Certificate, federation: str) -> Callable[[EnrolmentWish], None]:
    """A check that lets wishes through that a participant of the federation has signed; raises InvalidUpload."""

    def check(wish: EnrolmentWish) -> None:
        identity = Identity(federation, "participant", wish.participant).uri
        wish.verify(authority=authority, identity=identity, now=datetime.datetime.now(datetime.UTC))

    return check


@dataclass
class _Standing:
    """What the store said of a task in one version of its changes, read once for all whom it is shown.

    Who asks for states alone is shown the counts as they were when a state changed last, or somewhat later.
    """

    version: int
    last: RoundRecord | None  # the newest round, read where states alone are asked for
    records: dict[RoundNumber, RoundRecord] = field(default_factory=dict)
    views: dict[RoundNumber, coordinator_pb2.RoundView] = field(default_factory=dict)
    results: dict[RoundNumber, StoredResult] = field(default_factory=dict)
    numbers: dict[int, list[RoundNumber]] = field(default_factory=dict)  # of the rounds from a first one on


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):  # type: ignore[misc]  # generated without types
    """Adapter only. Errors of triskele.errors leave through the server's interceptors as gRPC statuses.

    `served` are the digests of the tasks that have a task file now; others are only read.
    """

    def __init__(
        self,
        *,
        store: Store,
        log: Log,
        files: ResultFiles,
        changes: RoundChanges,
        served: frozenset[TaskDigest],
        party_addresses: Mapping[PartyIndex, str],
        limits: Limits = DEFAULT_LIMITS,
        check_wish: Callable[[EnrolmentWish], None] = refuse_wish,
    ) -> None:
        self._store = store
        self._log = log
        self._files = files
        self._changes = changes
        self._served = served
        self._party_addresses = [party_addresses[p] for p in PARTIES]
        self._limits = limits
        self._check_wish = check_wish
        self._watchers: Counter[TaskDigest] = Counter()
        self._tasks: dict[TaskDigest, StoredTask] = {}  # tasks are put before they are served, and do not change then
        self._standings: dict[tuple[TaskDigest, bool], _Standing] = {}

    async def ListTasks(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.ListTasksRequest, context: Context
    ) -> coordinator_pb2.ListTasksReply:
        """The tasks that have a task file now."""
        tasks = sorted((self._task(digest) for digest in self._served), key=lambda task: task.spec.name)
        return coordinator_pb2.ListTasksReply(tasks=[self._task_view(task) for task in tasks])

    async def WatchRounds(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.WatchRoundsRequest, context: Context
    ) -> AsyncIterator[coordinator_pb2.RoundView]:
        """First every round from `from_round` on as it stands, then each one again when it has changed.

        Changes that come faster than the watcher reads arrive as one, and so do counts that grow faster than all
        watchers together are told; a new state is told at once, and nothing else to who asks for states only. Ends
        when nothing can change any more.
        """
        task = self._task(request.task_digest)
        self._watchers[task.spec.digest] += 1
        try:
            async for view in self._watched(task, request):
                yield view
        finally:
            self._watchers[task.spec.digest] -= 1

    async def _watched(
        self, task: StoredTask, request: coordinator_pb2.WatchRoundsRequest
    ) -> AsyncIterator[coordinator_pb2.RoundView]:
        digest, first = task.spec.digest, min(max(request.from_round, 1), _MAX_NUMBER)
        counts = not request.states_only
        seen = self._changes.version(digest)
        pending = self._numbers(digest, first)
        while True:
            finished = self._finished(task)  # if so before the views are read, they are the last ones
            for number in pending:
                yield self._view(task, number, counts=counts)
            if finished:
                return
            if counts:
                await self._changes.pause(digest, seen, self._watchers[digest] / _VIEWS_PER_SECOND)
            await self._changes.wait(digest, seen, counts=counts)  # returns at once if something changed meanwhile
            changed = self._changes.since(digest, seen, counts=counts)
            seen = self._changes.version(digest)
            pending = [number for number in changed if number >= first]

    async def ListRounds(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.ListRoundsRequest, context: Context
    ) -> coordinator_pb2.ListRoundsReply:
        """The task's rounds in order: of a long task only the newest, as many as one message carries."""
        task = self._task(request.task_digest)
        views: list[coordinator_pb2.RoundView] = []
        room = self._limits.max_message_bytes // 2
        for record in reversed(self._store.rounds(task.spec.digest)):
            view = round_view(record, task.spec)
            room -= view.ByteSize()
            if room < 0:
                break
            views.append(view)
        return coordinator_pb2.ListRoundsReply(rounds=reversed(views))

    async def Enrol(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.EnrolRequest, context: Context
    ) -> coordinator_pb2.EnrolReply:
        """Admit the caller, whom its certificate names, to an OPEN round; the same answer when repeated."""
        id_ = self._round_id(request.task_digest, request.round)
        return self._enrolled(id_, ParticipantId(caller(context).name))

    async def EnrolFor(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.EnrolForRequest, context: Context
    ) -> coordinator_pb2.EnrolReply:
        """The same for a participant whose signed wish the caller, a forwarder, brings."""
        id_ = self._round_id(request.task_digest, request.round)
        wish = EnrolmentWish(
            id_.task, id_.number, ParticipantId(request.participant), request.signature, request.certificate
        )
        self._check_wish(wish)
        return self._enrolled(id_, wish.participant)

    def _enrolled(self, id_: RoundId, participant: ParticipantId) -> coordinator_pb2.EnrolReply:
        self._task(id_.task).spec.check_takes_part(participant)
        slot, new = self._store.enrol(id_, participant)
        if new:
            self._changes.announce(id_, counts_only=True)
        return coordinator_pb2.EnrolReply(
            slot=slot, heavy=heavy_index(slot), party_addresses=self._party_addresses, new=new
        )

    async def FetchResult(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.FetchResultRequest, context: Context
    ) -> AsyncIterator[coordinator_pb2.ResultChunk]:
        """A header, then the words of a released round: the same bytes for ever."""
        task = self._task(request.task_digest)
        result = self._result(self._round_id(request.task_digest, request.round))
        yield coordinator_pb2.ResultChunk(
            header=coordinator_pb2.ResultHeader(
                dimension=task.spec.dimension,
                digest=result.digest,
                party_addresses=self._party_addresses,
            )
        )
        async for piece in self._files.read(result.file, self._limits.chunk_bytes):
            yield coordinator_pb2.ResultChunk(chunk={"offset": piece.offset, "data": piece.data})

    async def FetchCertificate(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.FetchCertificateRequest, context: Context
    ) -> coordinator_pb2.FetchCertificateReply:
        """The certificate of an ended round and its place in the log; waits while the parties are still to sign."""
        id_ = self._round_id(request.task_digest, request.round)
        patience = asyncio.timeout(max(0.0, (context.time_remaining() or 0.0) - _ANSWER_SECONDS))
        try:
            async with patience:
                return await self._certificate(id_)
        except TimeoutError:
            raise Unavailable(f"the parties have not signed the certificate of round {id_.number} yet") from None

    async def _certificate(self, id_: RoundId) -> coordinator_pb2.FetchCertificateReply:
        while True:
            seen = self._changes.version(id_.task)  # before the store is read
            record = self._record(id_)
            if not record.ended:
                raise WrongState(f"round {id_.number} is {record.state}: its certificate comes when it has ended")
            try:
                entry = self._log.entry(id_)
                proof = self._log.proof(entry.index)
            except NotFound:
                if record.closed:  # each party has answered, and they did not agree
                    raise
            else:
                return coordinator_pb2.FetchCertificateReply(
                    envelope=entry.envelope, index=entry.index, hashes=proof.hashes, checkpoint=proof.checkpoint
                )
            await self._changes.wait(id_.task, seen)

    async def FetchLog(  # noqa: N802  gRPC's name
        self, request: coordinator_pb2.FetchLogRequest, context: Context
    ) -> AsyncIterator[coordinator_pb2.LogPiece]:
        """The log from an entry on, as far as enough parties have cosigned it, then their checkpoint."""
        note = self._log.checkpoint(max(1, min(request.cosignatures, len(PARTIES))))
        if note is None:
            raise NotFound("the log has no entry yet that enough parties have cosigned: no round has ended")
        size = unverified(note).size
        if request.from_index > size:
            raise NotFound(f"the log has {size} cosigned entries, numbered from 0: there is no {request.from_index}")
        for entry in self._log.entries(request.from_index, size):
            logged = coordinator_pb2.LogEntry(index=entry.index, envelope=entry.envelope)
            yield coordinator_pb2.LogPiece(entry=logged)
        yield coordinator_pb2.LogPiece(checkpoint=note)

    def _view(self, task: StoredTask, number: RoundNumber, *, counts: bool) -> coordinator_pb2.RoundView:
        """The round as it stands."""
        digest = task.spec.digest
        views = self._standing(digest, counts=counts).views
        if number not in views:
            views[number] = round_view(self._record(RoundId(digest, number), counts=counts), task.spec)
        return views[number]

    def _record(self, id_: RoundId, *, counts: bool = True) -> RoundRecord:
        """The same as the store has it; raises NotFound."""
        records = self._standing(id_.task, counts=counts).records
        if id_.number not in records:
            records[id_.number] = self._store.round(id_)
        return records[id_.number]

    def _result(self, id_: RoundId) -> StoredResult:
        """Where a released round's words are; raises as the store."""
        results = self._standing(id_.task).results
        if id_.number not in results:
            results[id_.number] = self._store.result(id_)
        return results[id_.number]

    def _numbers(self, digest: TaskDigest, first: int) -> list[RoundNumber]:
        """The rounds from `first` on."""
        numbers = self._standing(digest).numbers
        if first not in numbers:
            numbers[first] = self._store.numbers(digest, first)
        return numbers[first]

    def _standing(self, digest: TaskDigest, *, counts: bool = False) -> _Standing:
        version = self._changes.version(digest, counts=counts)  # before the store: what changes meanwhile is read again
        standing = self._standings.get((digest, counts))
        if standing is None or standing.version != version:
            standing = _Standing(version, None if counts else self._store.last_round(digest))
            self._standings[digest, counts] = standing
        return standing

    def _task(self, digest: bytes) -> StoredTask:
        named = TaskDigest(digest)
        task = self._tasks.get(named)
        if task is None:
            task = self._tasks[named] = self._store.task(named)
        return task

    def _round_id(self, digest: bytes, number: int) -> RoundId:
        if not 1 <= number <= _MAX_NUMBER:
            raise NotFound(f"there is no round {number}; rounds are numbered from 1")
        task = self._task(digest).spec.digest
        about(task, number)
        return RoundId(task, RoundNumber(number))

    def _finished(self, task: StoredTask) -> bool:
        """Whether nothing of the task can change any more."""
        digest = task.spec.digest
        if digest not in self._served:
            return True
        last = self._standing(digest).last
        if last is None or not last.ended:
            return False
        return last.ends_task or last.id.number >= task.rounds

    def _task_view(self, task: StoredTask) -> coordinator_pb2.TaskView:
        last = self._standing(task.spec.digest).last
        return coordinator_pb2.TaskView(
            name=task.spec.name,
            task=task.spec.canonical(),
            rounds=task.rounds,
            current_round=0 if last is None else last.id.number,
            finished=self._finished(task),
        )
