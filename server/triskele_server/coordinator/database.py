"""Connections to the coordinator's database: SQLite for one machine, PostgreSQL for whoever runs one anyway."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    TimeoutError,  # noqa: A004  SQLAlchemy's own: no connection came free in time
)

from triskele.errors import ConfigurationError, Unavailable

# A database that hangs must not hold up the coordinator's event loop for long: it waits for answers itself.
POSTGRES: Final = {
    "connect_timeout": 3,  # seconds
    "keepalives_idle": 10,  # seconds of silence before TCP asks
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds until data that nobody acknowledges ends the connection
    "application_name": "triskele-coordinator",
    "options": "-c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s",
}
SQLITE: Final = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000")

_log = structlog.get_logger(__name__)


def database_url(text: str) -> URL:
    """The URL of an SQLite file or a PostgreSQL database; raises ConfigurationError, never with the URL's text."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigurationError("database_url is no SQLAlchemy URL, such as postgresql://user@host/database") from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigurationError(f"database_url: {url.drivername} is not supported; use postgresql:// or sqlite:///")
    return url


def open_engine(url: URL, **options: Any) -> Engine:
    """An engine whose connections are set up for us; nothing is connected yet. Raises ConfigurationError.

    What the URL says of time-outs goes before what stands here.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, **options)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    arguments = {key: value for key, value in POSTGRES.items() if key not in url.query}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=arguments, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigurationError("no driver for PostgreSQL here: pip install 'triskele[server]'") from error


def is_outage(error: BaseException) -> bool:
    """Whether the database may well do the same thing later: lost, locked, full, restarting, read-only for now."""
    return isinstance(error, OperationalError | InterfaceError | InternalError | TimeoutError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


@contextmanager
def outages_told() -> Iterator[None]:
    """Turn an outage into Unavailable: what was being written may or may not stand, and must be asked for again."""
    try:
        yield
    except (DBAPIError, TimeoutError) as error:
        if not is_outage(error):
            raise
        _log.warning("database_unavailable", error=cause(error))  # SQLAlchemy's own text quotes rows
        raise Unavailable("the coordinator cannot use its database just now; try again") from None


@contextmanager
def must_open() -> Iterator[None]:
    """Turn whatever the database says into ConfigurationError: at the start there is nobody who could try again."""
    try:
        yield
    except (DBAPIError, TimeoutError) as error:
        raise ConfigurationError(
            f"the coordinator's database cannot be opened ({cause(error)}); check database_url in its configuration"
        ) from error


def cause(error: DBAPIError | TimeoutError) -> str:
    """The driver's own words, in one line."""
    said = str(getattr(error, "orig", None) or type(error).__name__)
    return " ".join(said.split())[:300]


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_immediate, not by the driver
    for pragma in SQLITE:
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # a read that turns into a write can then never be refused
