"""Which revision a coordinator's database is at, and the way back to an earlier one, for its operator.

    python -m triskele_server.coordinator.migrations show --config coordinator.toml
    python -m triskele_server.coordinator.migrations back 0001 --config coordinator.toml

`back` is run by the newer version, which knows how to undo its own changes, while no coordinator runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine

from triskele.cli import exit_code
from triskele.errors import TriskeleError
from triskele_server import logs
from triskele_server.config import load_coordinator
from triskele_server.coordinator import migrations
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.database import database_url, must_open, open_engine

app = typer.Typer(help="The coordinator's tables through the versions.", no_args_is_help=True, add_completion=False)

ConfigFile = Annotated[Path, typer.Option("--config", help="coordinator.toml")]


@app.command()
def show(config: ConfigFile) -> None:
    """Print the database's revision and those that this version knows, as JSON; change nothing."""
    with _engine(load_coordinator(config).database) as engine:
        report = {"revision": migrations.revision_of(engine), "known": migrations.revisions()}
        typer.echo(json.dumps(report))


@app.command()
def back(
    revision: Annotated[str, typer.Argument(help="The newest one that the earlier version knows.")], config: ConfigFile
) -> None:
    """Undo every later revision, in one transaction. An SQLite file is copied beside itself before."""
    url = load_coordinator(config).database
    with claimed(url, patience=0.0), _engine(url) as engine:
        before = migrations.go_back(engine, revision)
        typer.echo(json.dumps({"before": before, "revision": revision}))


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = open_engine(database_url(url))
    try:
        with must_open():
            yield engine
    finally:
        engine.dispose()


if __name__ == "__main__":
    logs.configure("coordinator")
    try:
        app()
    except TriskeleError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code(error))
