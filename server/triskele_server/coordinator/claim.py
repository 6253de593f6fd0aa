"""One coordinator per database: whoever holds the claim runs the rounds, and ends when the claim is lost."""

from __future__ import annotations

import asyncio
import fcntl
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from triskele.errors import ConfigurationError, Unavailable
from triskele_server.coordinator.database import database_url, must_open, open_engine

PATIENCE_SECONDS: Final = 5.0  # a coordinator that was killed a moment ago may still seem to hold it
CHECK_SECONDS: Final = 2.0  # between two looks whether PostgreSQL still knows us

# Two 32-bit numbers: ours, and the schema, so that two federations may share a database by schema.
_NUMBERS = f"{int.from_bytes(b'trsk') & 0x7FFFFFFF}, hashtext(current_schema())"
_TAKE = text(f"SELECT pg_try_advisory_lock({_NUMBERS})")
_HELD = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted")
# If the network between us breaks, PostgreSQL lets go of the claim within this, after we have noticed.
_SERVER_SIDE = ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3")

_log = structlog.get_logger(__name__)


class Claim(ABC):
    """Held from `claimed` on. Nothing is decided while it is not."""

    lost = False

    async def until_lost(self) -> None:
        """Return when somebody else may take the claim; `check` then raises."""
        while not self.lost:
            await asyncio.sleep(CHECK_SECONDS)
            if not await asyncio.to_thread(self._held):
                self.lost = True
                _log.error("claim_lost", problem="the connection that held the database for this process broke")

    def check(self) -> None:
        """Raises Unavailable if the claim was lost."""
        if self.lost:
            raise Unavailable("lost the claim to the database: start the coordinator again, it goes on where it was")

    @abstractmethod
    def _held(self) -> bool:
        """Whether it is still ours; may block."""


@contextmanager
def claimed(url: str, patience: float = PATIENCE_SECONDS) -> Iterator[Claim]:
    """Claim the database for this process; waits up to `patience` seconds for whoever held it before.

    Raises ConfigurationError if another coordinator holds it, or if it cannot be reached.
    """
    parsed = database_url(url)
    hold = _file_claim if parsed.get_backend_name() == "sqlite" else _session_claim
    with hold(parsed, time.monotonic() + patience) as claim:
        yield claim


def _in_use() -> ConfigurationError:
    return ConfigurationError(
        "another coordinator uses this database: stop it, or give this one a database of its own (database_url)"
    )


class _FileClaim(Claim):
    def _held(self) -> bool:
        return True  # the kernel keeps it until this process ends


@contextmanager
def _file_claim(url: URL, until: float) -> Iterator[Claim]:
    """A lock file beside the SQLite file."""
    path = Path(f"{url.database}.lock")
    try:
        file = path.open("ab")
    except OSError as error:
        raise ConfigurationError(f"the coordinator's database: {path} cannot be written ({error.strerror})") from error
    with file:
        while not _locked(file.fileno()):
            if time.monotonic() >= until:
                raise _in_use()
            time.sleep(0.1)
        yield _FileClaim()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _SessionClaim(Claim):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _held(self) -> bool:
        try:
            return bool(self._connection.execute(_HELD).scalar())
        except SQLAlchemyError:
            return False


@contextmanager
def _session_claim(url: URL, until: float) -> Iterator[Claim]:
    """An advisory lock of a PostgreSQL session that is used for nothing else: it ends with its connection."""
    engine = open_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with must_open():
        connection = engine.connect()
    try:
        with must_open():
            for setting in _SERVER_SIDE:
                connection.exec_driver_sql(f"SET {setting}")
            while not connection.execute(_TAKE).scalar():
                if time.monotonic() >= until:
                    raise _in_use()
                time.sleep(0.1)
        yield _SessionClaim(connection)
    finally:
        connection.invalidate()  # closes it as it is, broken or not
        connection.close()
