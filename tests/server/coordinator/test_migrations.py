"""Databases of every age: made, upgraded, taken back, or refused with what to do about it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from postgres_server import PostgresServer
from sqlalchemy import Engine, inspect, text
from typer.testing import CliRunner

from triskele.errors import ConfigurationError
from triskele.ids import ParticipantId, RoundNumber
from triskele.task import TaskSpec
from triskele_server.coordinator import migrations
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.database import database_url, open_engine
from triskele_server.coordinator.migrations.__main__ import app
from triskele_server.coordinator.rounds import RoundId, Terms
from triskele_server.coordinator.store import Store, database_revision
from triskele_server.coordinator.tables import Base
from triskele_server.provision import provision

SPEC = TaskSpec("faces", 10, 1.0, max_participants=3)
ROUND = RoundId(SPEC.digest, RoundNumber(1))
ALICE = ParticipantId("alice")


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = open_engine(database_url(url))
    yield engine
    engine.dispose()


def execute(url: str, *statements: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def tables(url: str) -> set[str]:
    with engine_of(url) as engine, engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def differences(url: str) -> list[object]:
    """Between the database and the tables that the program declares."""
    with engine_of(url) as engine, engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)


def with_a_round(url: str) -> None:
    with closing(Store(url)) as store:
        store.put_task(SPEC, 3)
        store.open_round(ROUND, Terms(2, 60.0, 1.0, 2, 3), 100.0)
        store.enrol(ROUND, ALICE)


def at_first(url: str, *, unmarked: bool = False) -> None:
    """A database with a round, as the first version left it; `unmarked`: before databases carried a revision."""
    with_a_round(url)
    with engine_of(url) as engine:
        migrations.go_back(engine, "0001")
    if unmarked:
        execute(url, "DROP TABLE alembic_version")


def still_has_the_round(url: str) -> bool:
    with closing(Store(url)) as store:
        return store.round(ROUND).enrolled == {"alice": 0} and store.task(SPEC.digest).spec == SPEC


def test_empty_database_is_made_as_the_tables_are_declared(url: str) -> None:
    assert database_revision(url) == (None, migrations.head())
    assert tables(url) == set()
    Store(url).close()
    assert database_revision(url) == (migrations.head(), migrations.head())
    assert differences(url) == []
    assert tables(url) == {*Base.metadata.tables, "alembic_version"}


def test_declared_index_is_the_one_of_the_migration(url: str) -> None:
    """`compare_metadata` does not look at the condition of an index."""

    def conditions(of: str) -> list[tuple[str, str]]:
        with engine_of(of) as engine, engine.connect() as connection:
            kind = engine.dialect.name
            found = [i for i in inspect(connection).get_indexes("rounds") if i["unique"]]
            return [(str(i["name"]), str(i["dialect_options"][f"{kind}_where"])) for i in found]

    Store(url).close()
    migrated = conditions(url)
    assert [name for name, _ in migrated] == ["one_round_in_progress"]
    execute(url, "DROP INDEX one_round_in_progress")
    with engine_of(url) as engine, engine.begin() as connection:
        (index,) = (i for i in Base.metadata.tables["rounds"].indexes if i.name == "one_round_in_progress")
        index.create(connection)
    assert conditions(url) == migrated


def test_every_revision_can_be_undone_and_done_again(url: str) -> None:
    with_a_round(url)
    with engine_of(url) as engine:
        for revision in reversed(migrations.revisions()[:-1]):
            migrations.go_back(engine, revision)
            assert migrations.revision_of(engine) == revision
        schema = ScriptDirectory(str(Path(migrations.__file__).parent)).get_revision("0001").module.schema
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), schema) == []
        migrations.bring_to_head(engine)
    assert differences(url) == []
    assert still_has_the_round(url)


def test_revision_below_the_first_would_lose_every_row_and_is_refused(url: str) -> None:
    with_a_round(url)
    with engine_of(url) as engine:
        for revision in ("base", "-1", "0000", "0004"):
            with pytest.raises(ConfigurationError, match="cannot go back"):
                migrations.go_back(engine, revision)
    assert still_has_the_round(url)


@pytest.mark.parametrize("unmarked", [False, True])
def test_older_database_is_upgraded_at_the_start(url: str, unmarked: bool) -> None:
    at_first(url, unmarked=unmarked)
    assert database_revision(url) == ("0001", migrations.head())
    assert ("alembic_version" in tables(url)) is not unmarked  # looking changes nothing
    assert still_has_the_round(url)
    assert database_revision(url) == (migrations.head(), migrations.head())
    assert differences(url) == []


def test_sqlite_file_is_copied_before_an_upgrade(tmp_path: Path) -> None:
    url, copy = f"sqlite:///{tmp_path / 'coordinator.db'}", tmp_path / "coordinator.db.0001"
    Store(url).close()
    assert [p.name for p in tmp_path.iterdir() if "lock" not in p.name] == ["coordinator.db"]  # nothing to lose yet
    at_first(url)
    Store(url).close()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert database_revision(f"sqlite:///{copy}") == ("0001", migrations.head())
    shutil.move(copy, tmp_path / "restored.db")
    assert still_has_the_round(f"sqlite:///{tmp_path / 'restored.db'}")


def test_upgrade_without_room_for_the_copy_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    at_first(url)
    (tmp_path / "coordinator.db.0001.part").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Store(url)
    assert database_revision(url) == ("0001", migrations.head())


def test_upgrade_that_fails_leaves_the_database_as_it_was(url: str) -> None:
    at_first(url)
    twice = (
        "INSERT INTO rounds SELECT task, number + 1, state, quorum, deadline_seconds, grace_seconds, min_accepted, "
        "max_participants, opened_at, quorum_since, uploaded, closed, blame_reason, blame_who, blame_detail FROM rounds"
    )
    execute(url, twice)  # two rounds in progress: the new index cannot be made
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        Store(url)
    assert database_revision(url) == ("0001", migrations.head())
    execute(url, "DELETE FROM rounds WHERE number = 2")
    assert still_has_the_round(url)


def test_database_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    with_a_round(url)
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    for opening in (Store, database_revision):
        with pytest.raises(ConfigurationError, match=r"'9999'.*newest.*0003.*newer version wrote it.*go back to 0003"):
            opening(url)
    execute(url, "UPDATE alembic_version SET version_num = '0003'")
    assert still_has_the_round(url)


@pytest.mark.parametrize(
    "foreign",
    [
        ["CREATE TABLE customers (id INTEGER PRIMARY KEY)"],
        ["CREATE TABLE rounds (id INTEGER PRIMARY KEY)"],
    ],
)
def test_database_of_another_program_is_refused_and_left_alone(url: str, foreign: list[str]) -> None:
    execute(url, *foreign)
    before = tables(url)
    for opening in (Store, database_revision):
        with pytest.raises(ConfigurationError, match=r"not the coordinator's.*database.*of its own"):
            opening(url)
    assert tables(url) == before


@pytest.mark.parametrize(
    "change", ["ALTER TABLE rounds ADD COLUMN extra INTEGER", "CREATE TABLE more (id INTEGER)", "DROP TABLE results"]
)
def test_unmarked_database_that_is_not_exactly_the_first_revision_is_refused(url: str, change: str) -> None:
    at_first(url, unmarked=True)
    execute(url, change)
    with pytest.raises(ConfigurationError, match="not the coordinator's"):
        Store(url)
    assert "alembic_version" not in tables(url)


def test_processes_that_start_together_make_the_tables_once(postgres: PostgresServer) -> None:
    url, errors = postgres.new_database(), []
    command = [
        sys.executable,
        "-c",
        "import sys; from triskele_server.coordinator.store import Store; Store(sys.argv[1])",
    ]

    def start() -> None:
        errors.append(subprocess.run([*command, url], capture_output=True, text=True, check=False).stderr)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [error for error in errors if "Error" in error]
    assert differences(url) == []


def test_operator_sees_the_revision_and_goes_back(tmp_path: Path) -> None:
    made = provision(tmp_path / "demo", participants=2)
    data = tmp_path / "demo" / "coordinator" / "data"
    data.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{data / 'coordinator.db'}"
    with_a_round(url)

    config = ("--config", str(made.coordinator))
    with claimed(url):
        command = [sys.executable, "-m", "triskele_server.coordinator.migrations", "back", "0001", *config]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "another coordinator uses this database" in refused.stderr
    gone_back = CliRunner().invoke(app, ["back", "0001", *config])
    assert json.loads(gone_back.output.splitlines()[-1]) == {"before": migrations.head(), "revision": "0001"}
    shown = CliRunner().invoke(app, ["show", *config])
    assert json.loads(shown.output) == {"revision": "0001", "known": list(migrations.revisions())}
    with closing(sqlite3.connect(data / "coordinator.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
