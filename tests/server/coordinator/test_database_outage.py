"""A round whose database breaks at any of its steps ends as if it had not, and everybody who waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fake_parties import SPEC, Federation, federation, without_grace
from postgres_server import PostgresServer
from sqlalchemy import event

from triskele.errors import Unavailable
from triskele.ids import ParticipantId, RoundNumber
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store
from triskele_server.round_state import RoundState

FIRST = RoundId(SPEC.digest, RoundNumber(1))
Outage = Callable[[PostgresServer, str, Store, list[str]], None]  # the last: what it struck


def before(statement: str) -> Outage:
    """The connection breaks just before the first such statement, so that the transaction is lost."""

    def plan(postgres: PostgresServer, url: str, store: Store, struck: list[str]) -> None:
        def listener(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            if text.startswith(statement) and not struck:
                struck.append(statement)
                postgres.break_connections(url)

        event.listen(store._engine, "before_cursor_execute", listener)

    return plan


def answer_lost_after(statement: str) -> Outage:
    """The transaction with the first such statement stands, but its sender never hears of it."""

    def plan(_postgres: PostgresServer, _url: str, store: Store, struck: list[str]) -> None:
        engine, seen = store._engine, set()
        commit = engine.dialect.do_commit

        def listener(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            if text.startswith(statement):
                seen.add(statement)

        def lossy(connection: Any) -> None:
            commit(connection)
            if seen and not struck:
                struck.append(statement)
                raise psycopg.OperationalError("server closed the connection unexpectedly")

        event.listen(engine, "before_cursor_execute", listener)
        engine.dialect.do_commit = lossy

    return plan


STATEMENTS = ("INSERT INTO rounds", "UPDATE rounds", "UPDATE enrolments", "INSERT INTO results")


@pytest.mark.parametrize("outage", [before, answer_lost_after])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_round_goes_on_after_an_outage_at_any_step(
    members: Path, tmp_path: Path, postgres: PostgresServer, outage: Callable[[str], Outage], statement: str
) -> None:
    told: list[str] = []
    struck: list[str] = []

    async def watch(it: Federation) -> None:
        """As a participant does: looks only when there is news."""
        record = await it.until_state(RoundState.RELEASED)
        told.extend(record.enrolled)

    async def scenario() -> None:
        url = postgres.new_database()
        async with federation(members, tmp_path) as it:
            it.store.close()
            it.store = Store(url)
            outage(statement)(postgres, url, it.store, struck)
            async with it.running(terms=without_grace()):
                watching = asyncio.create_task(watch(it))
                await it.take_part("alice", "bob")
                await watching
                for party in it.parties:
                    await party.until_called("end")
            assert struck == [statement]
            (record,) = it.store.rounds(SPEC.digest)
            assert (record.state, record.accepted) == (RoundState.RELEASED, (0, 1))
            assert len(list((tmp_path / "results").iterdir())) == 1

    asyncio.run(scenario())
    assert told == ["alice", "bob"]


@pytest.mark.parametrize("outage", [before, answer_lost_after])
def test_admission_asked_for_again_gives_the_same_slot(
    postgres: PostgresServer, outage: Callable[[str], Outage]
) -> None:
    url = postgres.new_database()
    store = Store(url)
    store.put_task(SPEC, 1)
    store.open_round(FIRST, without_grace(), 100.0)
    store.enrol(FIRST, ParticipantId("alice"))
    outage("INSERT INTO enrolments")(postgres, url, store, [])
    with pytest.raises(Unavailable):
        store.enrol(FIRST, ParticipantId("bob"))
    assert store.enrol(FIRST, ParticipantId("bob")) == (1, outage is before)
    assert store.round(FIRST).enrolled == {"alice": 0, "bob": 1}
    store.close()
