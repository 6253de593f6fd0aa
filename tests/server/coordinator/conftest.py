"""Certificates of a federation and a PostgreSQL server, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, binaries

from triskele_server.provision import provision


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provisioned federation "demo" with participants alice, bob, carol, dave, and an operator."""
    directory = tmp_path_factory.mktemp("federation") / "demo"
    provision(directory, participants=["alice", "bob", "carol", "dave"], operator=True)
    return directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server; each test takes a database of its own. Skips without Debian's package: .ci/run installs it."""
    found = binaries()
    if found is None:
        # `make test` asks for no root, and a server is a package of the system's only; .ci/run installs it first.
        pytest.skip("no PostgreSQL here: apt-get install postgresql (its initdb is under /usr/lib/postgresql)")
    server = PostgresServer(found)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nobody has used yet, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'coordinator.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()
