"""The coordinator's database and result files: what was decided once stays decided, also for the next process."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from postgres_server import PostgresServer
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from triskele.errors import ConfigurationError, NotFound, PartyFault, Unavailable, WrongState
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele_server.coordinator import claim as claim_module
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.result_files import Piece, ResultFiles
from triskele_server.coordinator.rounds import (
    Admission,
    Blame,
    Outcome,
    Refusal,
    RoundId,
    RoundRecord,
    Submission,
    Terms,
)
from triskele_server.coordinator.store import Store
from triskele_server.coordinator.tables import EnrolmentRow, TaskRow
from triskele_server.round_state import RoundEvent, RoundState

T = TypeVar("T")
SPEC = TaskSpec("faces", 10, 1.0, max_participants=3)
TERMS = Terms(2, 60.0, 1.0, 2, 3)
FIRST = RoundId(SPEC.digest, RoundNumber(1))
ALICE, BOB = ParticipantId("alice"), ParticipantId("bob")
SEALED = (
    Submission(Slot(0), ALICE, ManifestDigest(b"a" * 32)),
    Submission(Slot(1), BOB, ManifestDigest(b"b" * 32)),
)
OUTCOME = Outcome(b"d" * 32, 7, 3, (Refusal(Slot(1), BOB, "norm"),), (Slot(0),), ("valid[2]", "aggregate[10]"))


@pytest.fixture
def store(url: str):
    made = Store(url)
    made.put_task(SPEC, 5)
    made.open_round(FIRST, TERMS, 100.0)
    yield made
    made.close()


def sealed_round(store: Store) -> None:
    store.enrol(FIRST, ALICE)
    store.enrol(FIRST, BOB)
    store.seal(FIRST, SEALED, [Refusal(Slot(2), ParticipantId("carol"), "incomplete_upload")])


def test_slots_go_by_the_order_of_admission_and_repeat(store: Store) -> None:
    assert [store.enrol(FIRST, ParticipantId(n)) for n in ("bob", "alice", "bob")] == [(0, True), (1, True), (0, False)]
    assert store.round(FIRST).enrolled == {"bob": 0, "alice": 1}


def test_an_admission_reads_no_row_for_each_earlier_one(store: Store) -> None:
    """A hundred admissions to a round of a hundred read five thousand rows, each an object of SQLAlchemy's."""
    made: list[object] = []
    loaded = lambda target, _context: made.append(target)  # noqa: E731  SQLAlchemy's listener
    event.listen(EnrolmentRow, "load", loaded)
    for name in ("a", "b", "c", "b"):
        store.enrol(FIRST, ParticipantId(name))
    assert len(store.round(FIRST).enrolled) == 3
    event.remove(EnrolmentRow, "load", loaded)
    assert made == []


def test_full_round_admits_nobody_new(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.enrol(FIRST, ParticipantId(name))
    with pytest.raises(WrongState, match="full"):
        store.enrol(FIRST, ParticipantId("d"))
    assert store.enrol(FIRST, ParticipantId("b")) == (1, False)


def test_closed_round_admits_nobody_not_even_again(store: Store) -> None:
    sealed_round(store)
    for name in ("alice", "dave"):
        with pytest.raises(WrongState, match="SEALED"):
            store.enrol(FIRST, ParticipantId(name))


def test_released_round_reads_the_same_in_a_new_process(store: Store, url: str) -> None:
    sealed_round(store)
    assert store.follow(FIRST, RoundState.COMBINED) == [RoundState.CHECKED, RoundState.FILTERED, RoundState.COMBINED]
    store.release(FIRST, OUTCOME, "words")
    record, result = store.round(FIRST), store.result(FIRST)
    store.close()
    again = Store(url)
    assert (again.round(FIRST), again.result(FIRST)) == (record, result)
    assert again.task(SPEC.digest).spec == SPEC
    again.close()
    assert record.state is RoundState.RELEASED
    assert record.sealed == SEALED
    assert [(r.participant, r.reason) for r in record.refused] == [("bob", "norm"), ("carol", "incomplete_upload")]
    assert (record.accepted, record.openings) == ((0,), ("valid[2]", "aggregate[10]"))
    assert (result.digest, result.weight_total, result.coefficient_bits, result.file) == (b"d" * 32, 7, 3, "words")


def test_ended_round_cannot_be_changed(store: Store) -> None:
    store.end(FIRST, RoundEvent.EXPIRE, Blame("not_enough_submissions", "coordinator"))
    with pytest.raises(WrongState):
        store.seal(FIRST, (), ())
    with pytest.raises(WrongState):
        store.end(FIRST, RoundEvent.FAIL, Blame("late", "party:1"))
    with pytest.raises(WrongState):
        store.release(FIRST, OUTCOME, "words")
    record = store.round(FIRST)
    assert record.state is RoundState.EXPIRED
    assert record.blame == Blame("not_enough_submissions", "coordinator")
    assert record.openings == ()


def test_only_a_released_round_has_a_result(store: Store) -> None:
    with pytest.raises(WrongState, match="OPEN"):
        store.result(FIRST)
    with pytest.raises(NotFound):
        store.result(RoundId(SPEC.digest, RoundNumber(2)))
    with pytest.raises(NotFound):
        store.task(TaskDigest(bytes(32)))


def test_rounds_in_progress_and_unclosed_ones_are_found(store: Store) -> None:
    assert store.in_progress() == [("faces", FIRST)]
    assert store.unclosed(SPEC.digest) == []
    store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1"))
    assert store.in_progress() == []
    assert [r.id for r in store.unclosed(SPEC.digest)] == [FIRST]
    store.mark_closed(FIRST)
    assert store.unclosed(SPEC.digest) == []


def test_progress_of_uploads_is_news_once(store: Store) -> None:
    assert store.note_uploads(FIRST, 1, None)
    assert not store.note_uploads(FIRST, 1, None)
    assert store.note_uploads(FIRST, 2, 105.0)
    assert (store.round(FIRST).uploaded, store.round(FIRST).quorum_since) == (2, 105.0)


def test_round_of_an_unknown_task_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError):
        store.open_round(RoundId(TaskDigest(b"x" * 32), RoundNumber(1)), TERMS, 100.0)


def test_second_round_of_a_task_in_progress_is_refused_by_the_database(store: Store) -> None:
    second = RoundId(SPEC.digest, RoundNumber(2))
    with pytest.raises(IntegrityError):
        store.open_round(second, TERMS, 100.0)
    store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1"))
    assert store.open_round(second, TERMS, 100.0).id == second


def together(*work: Callable[[], T]) -> list[T]:
    """Each in a thread of its own, all let go at the same moment."""
    start = threading.Barrier(len(work))

    def run(each: Callable[[], T]) -> T:
        start.wait(30)
        return each()

    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(run, work))


def test_slots_are_given_once_each_when_all_enrol_at_the_same_time(store: Store, url: str) -> None:
    first, second = RoundId(SPEC.digest, RoundNumber(1)), Store(url)
    store.end(first, RoundEvent.FAIL, Blame("broken", "party:1"))
    round_ = RoundId(SPEC.digest, RoundNumber(2))
    store.open_round(round_, Terms(2, 60.0, 1.0, 2, 12), 100.0)

    def enrol(at: Store, name: str) -> Admission | None:
        try:
            return at.enrol(round_, ParticipantId(name))
        except WrongState:
            return None  # full

    names = [f"p{i:02}" for i in range(8)] * 2 + [f"q{i}" for i in range(8)]
    answers = together(*(partial(enrol, (store, second)[i % 2], name) for i, name in enumerate(names)))
    second.close()
    slots = {name: {a.slot for n, a in zip(names, answers, strict=True) if n == name and a} for name in names}
    assert sorted(slot for given in slots.values() for slot in given) == list(range(12))
    assert all(len(given) <= 1 for given in slots.values())
    assert sum(a.new for a in answers if a) == 12
    assert store.round(round_).enrolled == {name: slot for name, given in slots.items() for slot in given}


def test_sealing_waits_for_an_admission_under_way(store: Store) -> None:
    """Whoever is told a slot stands in the round when it is sealed."""
    admitting = threading.Event()

    def slowly(_connection, _cursor, statement: str, *_) -> None:
        if statement.startswith("INSERT INTO enrolments"):
            admitting.set()
            time.sleep(0.3)

    event.listen(store._engine, "before_cursor_execute", slowly)

    def seal() -> bool:
        admitting.wait(30)
        store.seal(FIRST, (), ())
        return BOB in store.round(FIRST).enrolled

    admitted, there = together(lambda: store.enrol(FIRST, BOB).new, seal)
    assert admitted
    assert there


def test_what_is_read_while_it_changes_is_of_one_moment(store: Store) -> None:
    store.enrol(FIRST, ALICE)
    store.enrol(FIRST, BOB)
    watching = threading.Event()

    def watch() -> list[RoundRecord]:
        seen = []
        while not seen or seen[-1].state is not RoundState.FAILED:
            seen.append(store.round(FIRST))
            watching.set()
        return seen

    def change() -> list[RoundRecord]:
        watching.wait(30)
        store.seal(FIRST, SEALED, [Refusal(Slot(2), ParticipantId("carol"), "incomplete_upload")])
        store.end(FIRST, RoundEvent.FAIL, Blame("broken", "party:1"), [Refusal(Slot(1), BOB, "norm")])
        return []

    for record in together(watch, change)[0]:
        refusals = {RoundState.OPEN: 0, RoundState.SEALED: 1, RoundState.FAILED: 2}
        assert len(record.refused) == refusals[record.state]
        assert len(record.sealed) == (0 if record.state is RoundState.OPEN else 2)


def test_database_writes_ahead(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path / 'coordinator.db'}").close()
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////missing/coordinator.db",
        "postgresql://triskele:hunter2@/triskele?host=/missing",
        "mysql://triskele:hunter2@localhost/triskele",
        "not a url, hunter2",
    ],
)
def test_database_that_cannot_be_opened_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="database") as told:
        Store(url)
    assert "hunter2" not in str(told.value)


def test_broken_connections_are_unavailable_or_replaced_never_a_wrong_answer(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    store = Store(url)
    store.put_task(SPEC, 5)
    store.open_round(FIRST, TERMS, 100.0)
    assert store.enrol(FIRST, ALICE) == (0, True)
    assert postgres.break_connections(url)
    assert store.enrol(FIRST, BOB) == (1, True)  # idle ones are replaced unnoticed
    with store._engine.connect() as spare:  # so that the next one is new, and breaks in the middle
        event.listen(store._engine, "before_cursor_execute", breaking := Breaking(postgres, url, "enrolments"))
        with pytest.raises(Unavailable, match="try again") as told:
            store.enrol(FIRST, ParticipantId("carol"))
        spare.invalidate()
    assert breaking.times == 1
    assert "enrolments" not in str(told.value)
    assert told.value.__suppress_context__
    assert store.enrol(FIRST, ParticipantId("carol")) == (2, True)
    assert store.round(FIRST).enrolled == {"alice": 0, "bob": 1, "carol": 2}
    store.close()


class Breaking:
    """Breaks every connection just before the first statement that names a table, once."""

    def __init__(self, postgres: PostgresServer, url: str, table: str) -> None:
        self._postgres, self._url, self._table, self.times = postgres, url, table, 0

    def __call__(self, _connection, _cursor, statement: str, *_) -> None:
        if self._table in statement and not self.times:
            self.times += 1
            self._postgres.break_connections(self._url)


# The claim


def test_database_with_tasks_of_another_version_is_refused_by_name(store: Store, url: str) -> None:
    older = SPEC.canonical().replace(b"triskele/v2/task", b"triskele/v1/task")
    with store._writing() as session:
        session.merge(TaskRow(digest=b"o" * 32, name="older", canonical=older, rounds=1))
    with pytest.raises(ConfigurationError, match=r"another version of Triskele .*tasks: faces, older"):
        store.tasks()


def test_second_coordinator_is_refused_until_the_first_has_ended(url: str) -> None:
    with claimed(url) as first:
        with pytest.raises(ConfigurationError, match="another coordinator uses this database"), claimed(url, 0.0):
            pass
        first.check()
    with claimed(url, 0.0):
        pass


def test_claim_whose_connection_broke_is_lost_and_may_be_taken(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "CHECK_SECONDS", 0.02)
    url = postgres.new_database()

    async def scenario() -> None:
        with claimed(url) as claim:
            watching = asyncio.create_task(claim.until_lost())
            await asyncio.sleep(0.1)
            assert not watching.done()
            assert postgres.break_connections(url) == 1
            async with asyncio.timeout(30):
                await watching
            with pytest.raises(Unavailable, match="lost the claim"):
                claim.check()
            with claimed(url, 5.0) as second:
                second.check()

    asyncio.run(scenario())


# Result files


async def pieces(*parts: tuple[int, bytes]) -> AsyncGenerator[Piece]:
    for offset, data in parts:
        yield Piece(offset, data)


WORDS = bytes(range(80))
DIGEST = hashlib.sha256(WORDS).digest()


def test_words_are_stored_and_read_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = ResultFiles(tmp_path / "results")
        name = await files.receive(FIRST, pieces((0, WORDS[:50]), (50, WORDS[50:])), length=80, digest=DIGEST)
        assert [p async for p in files.read(name, 30)] == [
            (0, WORDS[:30]),
            (30, WORDS[30:60]),
            (60, WORDS[60:]),
        ]
        assert [f.name for f in (tmp_path / "results").iterdir()] == [name]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(0, WORDS[:40])], id="too short"),
        pytest.param([(0, WORDS), (80, b"x")], id="too long"),
        pytest.param([(40, WORDS[40:]), (0, WORDS[:40])], id="out of order"),
        pytest.param([(0, WORDS[:40]), (0, WORDS[:40])], id="a piece twice"),
        pytest.param([(0, WORDS[::-1])], id="other bytes"),
        pytest.param([], id="nothing"),
    ],
)
def test_words_that_do_not_match_are_refused_and_leave_nothing(tmp_path: Path, parts: list[tuple[int, bytes]]) -> None:
    async def scenario() -> None:
        with pytest.raises(PartyFault):
            await ResultFiles(tmp_path).receive(FIRST, pieces(*parts), length=80, digest=DIGEST)

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []
