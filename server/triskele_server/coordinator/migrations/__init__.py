"""The history of the coordinator's tables, one file per revision in `versions`, and which one a database is at.

A coordinator brings its database to the newest revision when it starts, in one transaction. What it does not know it
leaves as it is and says what to do. `python -m triskele_server.coordinator.migrations` shows a revision and goes back.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Final

import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, inspect, text

from triskele.errors import ConfigurationError

FIRST: Final = "0001"  # what coordinators made before their databases carried a revision
_FOLDER: Final = Path(__file__).parent
_LOCK_NUMBER: Final = int.from_bytes(b"trskmigr")
_one_at_a_time = threading.Lock()  # alembic keeps the migration under way in a variable of its module

_log = structlog.get_logger(__name__)


@cache
def revisions() -> tuple[str, ...]:
    """Every revision that this version knows, oldest first."""
    return tuple(reversed([script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions()]))


def head() -> str:
    """The newest revision: the tables as `tables.py` declares them."""
    return revisions()[-1]


def standing(connection: Connection) -> str | None:
    """The revision that the database is at, None if it is empty; changes nothing.

    Raises ConfigurationError if it is none of ours: a newer one, or tables of somebody else.
    """
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision in revisions():
        return revision
    if revision is not None:
        raise ConfigurationError(
            f"the coordinator's database is at revision {revision[:40]!r}, but the newest that this version of "
            f"Triskele knows is {head()}: a newer version wrote it. Start that version, or go back to {head()} with "
            "its `python -m triskele_server.coordinator.migrations` (docs/operations.md, Upgrade)"
        )
    tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if not tables:
        return None
    if tables == set((first := _first_schema()).tables):
        compared = {"compare_type": connection.dialect.name != "sqlite"}  # there FLOAT and DOUBLE are the same
        if not compare_metadata(MigrationContext.configure(connection, opts=compared), first):
            return FIRST
    raise ConfigurationError(
        f"the coordinator's database holds tables that are not the coordinator's ({', '.join(sorted(tables)[:5])}): "
        "give it a database (or, in PostgreSQL, a schema) of its own with database_url"
    )


def revision_of(engine: Engine) -> str | None:
    """As `standing`, in a transaction of its own."""
    with engine.begin() as connection:
        return standing(connection)


def bring_to_head(engine: Engine) -> None:
    """Make or upgrade the tables. An SQLite file is copied beside itself before it is changed.

    Raises ConfigurationError as `standing` does; an upgrade that fails leaves everything as it was.
    """
    with _one_at_a_time, engine.begin() as connection:
        _alone(connection)
        found = standing(connection)
        if found is not None and found != head():
            _back_up(engine, found)
        if found == FIRST and MigrationContext.configure(connection).get_current_revision() is None:
            command.stamp(_config(connection), FIRST)
        if found != head():
            command.upgrade(_config(connection), "head")
            _log.info("database_migrated", before=found or "empty", after=head())


def go_back(engine: Engine, revision: str) -> str | None:
    """Undo every revision after `revision`, in one transaction; returns the one that the database was at.

    Raises ConfigurationError if there is nothing to undo to there.
    """
    with _one_at_a_time, engine.begin() as connection:
        _alone(connection)
        found = standing(connection)
        known = revisions()
        if found is None or revision not in known or known.index(revision) > known.index(found):
            raise ConfigurationError(f"cannot go back from {found or 'an empty database'} to {revision[:40]!r}")
        if MigrationContext.configure(connection).get_current_revision() is None:
            command.stamp(_config(connection), found)
        if revision != found:
            _back_up(engine, found)
            command.downgrade(_config(connection), revision)
            _log.info("database_migrated", before=found, after=revision)
        return found


def _alone(connection: Connection) -> None:
    """Two processes must not make the same tables; SQLite's transaction has locked the file already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})


def _back_up(engine: Engine, revision: str) -> None:
    """Copy an SQLite file to `<file>.<revision>`: what is committed, also from its write-ahead log. Synced."""
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path:
        return
    kept, written = Path(f"{path}.{revision}"), Path(f"{path}.{revision}.part")
    try:
        written.unlink(missing_ok=True)
        os.close(os.open(written, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(written)) as copy:
            source.backup(copy)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.rename(kept)
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(
            f"the coordinator's database must be changed, but {kept} cannot be written before ({error}): make room"
        ) from error
    _log.info("database_backed_up", file=str(kept), revision=revision)


def _first_schema() -> MetaData:
    schema: MetaData = ScriptDirectory(str(_FOLDER)).get_revision(FIRST).module.schema
    return schema


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config
