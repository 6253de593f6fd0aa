"""The coordinator's database and result files: what was decided once stays decided, also for the next process."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from triskele.errors import ConfigurationError, NotFound, PartyFault, WrongState
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele_server.coordinator.result_files import Piece, ResultFiles
from triskele_server.coordinator.rounds import Blame, Outcome, Refusal, RoundId, Submission, Terms
from triskele_server.coordinator.store import Store
from triskele_server.round_state import RoundEvent, RoundState

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
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'coordinator.db'}"


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


def test_database_enforces_foreign_keys_and_writes_ahead(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        store.open_round(RoundId(TaskDigest(b"x" * 32), RoundNumber(1)), TERMS, 100.0)
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_database_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="database"):
        Store(f"sqlite:///{tmp_path / 'missing' / 'coordinator.db'}")


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
