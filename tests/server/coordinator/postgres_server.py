"""A PostgreSQL server of the tests' own: Debian's binaries, a Unix socket in a temporary folder, nothing synced."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import psycopg

SECONDS = 30


def binaries() -> Path | None:
    """The newest PostgreSQL installed here."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parts[-3])).parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).resolve().parent


class PostgresServer:
    """Run as `postgres` or `nobody` where the tests are root: PostgreSQL refuses root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="triskele-pg-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = next(u for u in pwd.getpwall() if u.pw_name in {"postgres", "nobody"})
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        self._run("initdb", "--auth=trust", "--username=triskele", "--no-sync", "--encoding=UTF8", "--pgdata=data")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = {"fsync": "off", "full_page_writes": "off", "listen_addresses": "", "shared_buffers": "16MB"}
        flags = [flag for key, value in settings.items() for flag in ("-c", f"{key}={value}")]
        self._process = subprocess.Popen(
            [*self._as, str(self._binaries / "postgres"), "-D", "data", "-k", str(self.folder), *flags],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + SECONDS
        while True:
            try:
                self.sql("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not start"
                assert self._process.poll() is None, "PostgreSQL ended at its start"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it at once; clients see their connections broken."""
        if self._process is not None:
            self._process.send_signal(2)  # "fast": sessions are ended
            self._process.wait(SECONDS)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://triskele@/{name}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement beside the program under test."""
        with psycopg.connect(host=str(self.folder), user="triskele", dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def break_connections(self, url: str, *, spare: str = "false") -> int:
        """End every session with that database, as a failing network does, but not those for which `spare` holds."""
        name = url.split("?", maxsplit=1)[0].rpartition("/")[2]
        of_database = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
        return len(self.sql(f"{of_database} AND NOT ({spare})"))

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._binaries / program), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=SECONDS)
