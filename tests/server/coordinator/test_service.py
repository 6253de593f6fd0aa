"""The Coordinator service as participants meet it: real gRPC, mutual TLS, identity from the certificate."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from fake_parties import SPEC, WORDS, Federation, federation, tls_files, without_grace

from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, RoundNumber
from triskele.task import TaskSpec
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.coordinator.rounds import Blame, RoundId
from triskele_server.coordinator.service import CoordinatorService
from triskele_server.round_state import RoundEvent, RoundState
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import bind, build_server

TASK = SPEC.digest
FIRST = RoundId(TASK, 1)
ADDRESSES = ["party-0.example:1", "party-1.example:2", "party-2.example:3"]
NotFoundCode, WrongStateCode = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION


class Served:
    """A coordinator's service on a port, and stubs for members of the federation."""

    def __init__(self, it: Federation, port: int) -> None:
        self.it = it
        self._port = port
        self._channels: list[grpc.aio.Channel] = []

    def stub(self, member: str = "participants/alice") -> coordinator_pb2_grpc.CoordinatorStub:
        tls = tls_files(self.it.directory / member)
        channel = open_channel(f"127.0.0.1:{self._port}", Identity("demo", "coordinator", "main"), tls)
        self._channels.append(channel)
        return coordinator_pb2_grpc.CoordinatorStub(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def enrol(self, name: str, number: int = 1) -> coordinator_pb2.EnrolReply:
        request = coordinator_pb2.EnrolRequest(task_digest=TASK, round=number)
        return await self.stub(f"participants/{name}").Enrol(request, timeout=20)

    def watch(self, from_round: int = 0, *, states_only: bool = False) -> grpc.aio.UnaryStreamCall:
        request = coordinator_pb2.WatchRoundsRequest(task_digest=TASK, from_round=from_round, states_only=states_only)
        return self.stub().WatchRounds(request, timeout=30)

    async def fetch(self, number: int = 1) -> tuple[coordinator_pb2.ResultHeader, bytes]:
        request = coordinator_pb2.FetchResultRequest(task_digest=TASK, round=number)
        header, words = None, b""
        async for part in self.stub().FetchResult(request, timeout=30):
            if part.WhichOneof("part") == "header":
                header = part.header
            else:
                assert part.chunk.offset == len(words)
                words += part.chunk.data
        assert header is not None
        return header, words


@asynccontextmanager
async def serving(it: Federation, *, serves: bool = True) -> AsyncIterator[Served]:
    tls = tls_files(it.directory / "coordinator")
    server = build_server(tls, "demo")
    service = CoordinatorService(
        store=it.store,
        log=it.log,
        files=it.files,
        changes=it.changes,
        served=frozenset([TASK] if serves else []),
        party_addresses=dict(zip(PARTIES, ADDRESSES, strict=True)),
    )
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    port = bind(server, "127.0.0.1:0", tls)
    await server.start()
    served = Served(it, port)
    try:
        yield served
    finally:
        await served.close()
        await server.stop(None)


Play = Callable[..., None]


@pytest.fixture
def play(members: Path, tmp_path: Path) -> Play:
    """Plays a scenario on a served federation whose parties run, but no runner yet."""

    def run(scenario: Callable[[Served], Awaitable[None]], *, rounds: int = 2, serves: bool = True) -> None:
        async def played() -> None:
            async with federation(members, tmp_path) as it, serving(it, serves=serves) as served:
                it.store.put_task(SPEC, rounds)
                await scenario(served)

        asyncio.run(played())

    return run


def open_round(it: Federation, number: int = 1) -> None:
    it.store.open_round(RoundId(TASK, number), without_grace(), 100.0)
    it.changes.announce(RoundId(TASK, number))


async def code_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_enrolment_is_by_certificate_and_idempotent(play: Play) -> None:
    async def scenario(served: Served) -> None:
        open_round(served.it)
        replies = [await served.enrol(name) for name in ("bob", "alice", "bob", "carol")]
        assert [(r.slot, r.heavy) for r in replies] == [(0, 0), (1, 1), (0, 0), (2, 2)]
        assert list(replies[0].party_addresses) == ADDRESSES
        assert served.it.store.round(FIRST).enrolled == {"bob": 0, "alice": 1, "carol": 2}

    play(scenario)


def test_who_is_not_in_the_tasks_group_is_not_enrolled(play: Play) -> None:
    async def scenario(served: Served) -> None:
        group = replace(SPEC, participants=(ParticipantId("alice"), ParticipantId("bob")))
        served.it.store.put_task(group, 1)
        served.it.store.open_round(RoundId(group.digest, RoundNumber(1)), without_grace(), 100.0)
        request = coordinator_pb2.EnrolRequest(task_digest=group.digest, round=1)
        code, text = await code_of(served.stub("participants/carol").Enrol(request, timeout=20))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "'carol' is not one of them" in text
        assert (await served.stub("participants/bob").Enrol(request, timeout=20)).slot == 0

    play(scenario)


def test_enrolment_is_refused_in_a_full_closed_or_unknown_round(play: Play) -> None:
    async def scenario(served: Served) -> None:
        open_round(served.it)
        for name in ("alice", "bob", "carol"):
            await served.enrol(name)
        code, text = await code_of(served.enrol("dave"))
        assert code is WrongStateCode
        assert "full" in text
        served.it.store.seal(FIRST, (), ())
        code, text = await code_of(served.enrol("alice"))
        assert code is WrongStateCode
        assert "SEALED" in text
        for number in (0, 2, 1 << 63):
            assert (await code_of(served.enrol("alice", number)))[0] is NotFoundCode

    play(scenario)


def test_unknown_task_is_not_found_by_any_call(play: Play) -> None:
    async def scenario(served: Served) -> None:
        for digest in (b"", b"\0" * 32, b"x" * 1000):
            stub = served.stub()
            enrol = stub.Enrol(coordinator_pb2.EnrolRequest(task_digest=digest, round=1), timeout=20)
            assert (await code_of(enrol))[0] is NotFoundCode
            assert (await code_of(stub.ListRounds(coordinator_pb2.ListRoundsRequest(task_digest=digest), timeout=20)))[
                0
            ] is NotFoundCode
            fetch = stub.FetchResult(coordinator_pb2.FetchResultRequest(task_digest=digest, round=1))
            assert (await code_of(fetch.read()))[0] is NotFoundCode
            watch = stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(task_digest=digest), timeout=30)
            assert (await code_of(watch.read()))[0] is NotFoundCode

    play(scenario)


def test_operator_sees_rounds_but_takes_no_part(play: Play) -> None:
    async def scenario(served: Served) -> None:
        open_round(served.it)
        stub = served.stub("operator")
        reply = await stub.ListRounds(coordinator_pb2.ListRoundsRequest(task_digest=TASK), timeout=20)
        assert [r.state for r in reply.rounds] == ["OPEN"]
        code, _ = await code_of(stub.Enrol(coordinator_pb2.EnrolRequest(task_digest=TASK, round=1), timeout=20))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert served.it.store.round(FIRST).enrolled == {}

    play(scenario)


def test_tasks_are_listed_with_their_canonical_form(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.it.store.put_task(TaskSpec("retired", 5, 1.0), 1)
        (task,) = (await served.stub().ListTasks(coordinator_pb2.ListTasksRequest(), timeout=20)).tasks
        assert (task.name, task.rounds, task.current_round, task.finished) == ("faces", 2, 0, False)
        assert TaskSpec.from_canonical(task.task) == SPEC

    play(scenario)


def test_watcher_sees_every_stage_of_a_round_and_the_end_of_the_task(play: Play) -> None:
    async def scenario(served: Served) -> None:
        it, views = served.it, []

        async def watch() -> None:
            async for view in served.watch():
                views.append(view)  # noqa: PERF401  the list is looked at while it grows

        async with it.running(rounds=1, terms=without_grace()):
            watching = asyncio.create_task(watch())
            await it.until_state(RoundState.OPEN)
            for slot, name in enumerate(("alice", "bob")):
                assert (await served.enrol(name)).slot == slot
                it.upload(name, slot)
            await it.until_state(RoundState.RELEASED)
            await asyncio.wait_for(watching, 30)  # ends by itself
        states = [v.state for v in views]
        assert states == sorted(states, key=list(RoundState).index)
        assert (states[0], states[-1]) == ("OPEN", "RELEASED")
        last = views[-1]
        assert (last.round, last.enrolled, last.uploaded, last.quorum) == (1, 2, 2, 2)
        assert last.deadline == it.clock.now + without_grace().deadline_seconds
        assert list(last.participants) == ["alice", "bob"]
        assert list(last.accepted_slots) == [0, 1]
        assert list(last.openings) == ["valid[2]", "aggregate[1000]"]
        assert not last.HasField("blame")

    play(scenario)


def test_watcher_gets_one_view_per_change(play: Play) -> None:
    async def scenario(served: Served) -> None:
        watching = served.watch()
        open_round(served.it)
        assert (await watching.read()).enrolled == 0
        await served.enrol("alice")
        assert (await watching.read()).enrolled == 1
        await served.enrol("alice")  # no change: no view
        await served.enrol("bob")
        assert (await watching.read()).enrolled == 2
        served.it.store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1", "why"))
        served.it.changes.announce(FIRST)
        view = await watching.read()
        assert (view.state, view.blame.reason, view.blame.who, view.blame.detail) == (
            "FAILED",
            "broken",
            "party:1",
            "why",
        )
        open_round(served.it, 2)
        view = await watching.read()
        assert (view.round, view.state) == (2, "OPEN")

    play(scenario)


def test_counts_that_grow_fast_are_told_together_and_a_new_state_at_once(play: Play, monkeypatch) -> None:
    """With a hundred participants every upload was told to every other: most of what the coordinator did."""
    monkeypatch.setattr("triskele_server.coordinator.service._VIEWS_PER_SECOND", 1 / 60)  # a pause of a minute for each

    async def scenario(served: Served) -> None:
        it, reads = served.it, Counter[str]()
        for name in ("round", "last_round"):
            method = getattr(it.store, name)
            monkeypatch.setattr(it.store, name, lambda of, name=name, method=method: reads.update([name]) or method(of))
        open_round(it)
        watching = [served.watch() for _ in range(8)]
        assert {(await w.read()).enrolled for w in watching} == {0}
        reads.clear()
        for name in ("alice", "bob"):
            await served.enrol(name)
        it.store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1", "why"))
        it.changes.announce(FIRST)
        views = [await asyncio.wait_for(w.read(), 10) for w in watching]
        assert [(v.enrolled, v.state) for v in views] == [(2, "FAILED")] * 8
        assert reads == {"round": 1, "last_round": 1}, "read once for all watchers"

    play(scenario)


def test_who_asks_for_states_only_is_not_told_of_counts(play: Play) -> None:
    async def scenario(served: Served) -> None:
        it = served.it
        open_round(it)
        watching, counting = served.watch(states_only=True), served.watch()
        assert {(await w.read()).state for w in (watching, counting)} == {"OPEN"}
        assert (await served.enrol("alice")).new
        assert not (await served.enrol("alice")).new
        assert (await counting.read()).enrolled == 1
        it.store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1", "why"))
        it.changes.announce(FIRST)
        view = await asyncio.wait_for(watching.read(), 10)
        assert (view.state, view.enrolled) == ("FAILED", 1), "the next view after OPEN"

    play(scenario)


def test_watchers_of_states_cost_the_store_nothing_while_counts_grow(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(served: Served) -> None:
        it, reads = served.it, Counter[str]()
        for name in ("round", "last_round", "numbers"):
            method = getattr(it.store, name)
            monkeypatch.setattr(
                it.store, name, lambda *of, name=name, method=method: reads.update([name]) or method(*of)
            )
        open_round(it)
        first = served.watch(states_only=True)
        assert (await first.read()).state == "OPEN"
        waited_for = it.changes._boards[TASK].moved
        reads.clear()
        for name in ("alice", "bob", "carol"):
            await served.enrol(name)
            assert (await served.watch(states_only=True).read()).state == "OPEN"
        assert not reads
        assert not waited_for.is_set(), "who waits for states was woken"

    play(scenario)


def test_late_watcher_is_shown_the_rounds_from_its_first_one_on(play: Play) -> None:
    async def scenario(served: Served) -> None:
        for number in (1, 2):
            open_round(served.it, number)
            served.it.store.end(RoundId(TASK, number), RoundEvent.FAIL, Blame("broken", "party:1"))
        assert [v.round async for v in served.watch()] == [1, 2]
        assert [v.round async for v in served.watch(2)] == [2]
        assert [v.round async for v in served.watch((1 << 64) - 1)] == []

    play(scenario)


def test_task_without_a_file_is_read_but_never_waited_for(play: Play) -> None:
    async def scenario(served: Served) -> None:
        open_round(served.it)
        served.it.store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1"))
        assert [v.round async for v in served.watch()] == [1]
        assert list((await served.stub().ListTasks(coordinator_pb2.ListTasksRequest(), timeout=20)).tasks) == []

    play(scenario, serves=False)


def test_watchers_are_sent_home_when_the_process_ends(play: Play) -> None:
    async def scenario(served: Served) -> None:
        watching = served.watch()
        open_round(served.it)
        await watching.read()
        served.it.changes.stop()
        assert (await code_of(watching.read()))[0] is grpc.StatusCode.UNAVAILABLE

    play(scenario)


def test_result_is_the_same_bytes_for_ever_and_only_of_a_released_round(play: Play) -> None:
    async def scenario(served: Served) -> None:
        it = served.it
        async with it.running(terms=without_grace()):
            await it.until_state(RoundState.OPEN)
            assert (await code_of(served.fetch()))[0] is WrongStateCode
            await it.take_part("alice", "bob")
            await it.until_state(RoundState.RELEASED)
        for _ in range(2):
            header, words = await served.fetch()
            assert words == WORDS
            assert header.digest == hashlib.sha256(WORDS).digest()
            assert header.dimension == 1000

    play(scenario)


def test_hidden_decisions_are_not_shown(members: Path, tmp_path: Path) -> None:
    from triskele_server.coordinator.views import round_view

    async def scenario() -> None:
        async with federation(members, tmp_path) as it:
            it.store.put_task(SPEC, 1)
            async with it.running(terms=without_grace()):
                await it.take_part("alice", "bob")
                record = await it.until_state(RoundState.RELEASED)
        assert list(round_view(record, SPEC).accepted_slots) == [0, 1]
        view = round_view(record, replace(SPEC, decisions="hidden"))
        assert (list(view.accepted_slots), view.decisions_public) == ([], False)

    asyncio.run(scenario())


def test_left_out_slot_keeps_its_place_in_the_list_of_participants(members: Path, tmp_path: Path) -> None:
    from triskele_server.coordinator.views import round_view

    async def scenario() -> None:
        async with federation(members, tmp_path) as it, it.running(terms=without_grace()):
            await it.until_state(RoundState.OPEN)
            it.enrol("alice", "bob", "carol")
            it.upload("alice", 0)
            it.upload("carol", 2)
            record = await it.until_state(RoundState.RELEASED)
        view = round_view(record, SPEC)
        assert list(view.participants) == ["alice", "", "carol"]
        assert [(r.slot, r.participant, r.reason) for r in view.refused] == [(1, "bob", "incomplete_upload")]

    asyncio.run(scenario())
