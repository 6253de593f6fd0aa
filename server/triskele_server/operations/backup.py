"""`triskele backup`: the coordinator's database and released aggregates, taken while it runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from triskele.errors import ConfigurationError
from triskele_server.config import CoordinatorConfig

DATABASE = "coordinator.db"
RESULTS = "results"


def back_up(config: CoordinatorConfig, folder: Path) -> list[Path]:
    """Copy database and results into `folder`, which must not exist or be empty, in the form of a data folder.

    The database first: an aggregate is on disk before the database says that it is released, so each one that the copy
    of the database names is there to be copied afterwards, and is checked against the digest that the database holds.
    A database in a server of its own is left to that server's tools, and must be copied before this.
    Raises ConfigurationError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} already exists: nothing was written, choose another folder")
    try:
        (folder / RESULTS).mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)
        written = [] if config.database_url else [_database(config.data / DATABASE, folder / DATABASE)]
        written += [_file(each, folder / RESULTS) for each in sorted((config.data / RESULTS).glob("*.words"))]
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"the backup to {folder} broke off ({error}); delete it and begin anew") from error
    if not config.database_url:
        _check(folder)
    return written


def _database(source: Path, target: Path) -> Path:
    """What is committed, also what stands in the write-ahead log only."""
    if not source.exists():
        raise ConfigurationError(f"{source}: there is no database yet; nothing has to be backed up")
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
    return _synced(target)


def _file(source: Path, folder: Path) -> Path:
    return _synced(Path(shutil.copyfile(source, folder / source.name)))


def _synced(path: Path) -> Path:
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def _check(folder: Path) -> None:
    """Every released aggregate is there and whole."""
    with closing(sqlite3.connect(folder / DATABASE)) as copy:
        named = copy.execute("SELECT file, digest FROM results").fetchall()
    for name, digest in named:
        path = folder / RESULTS / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).digest() != digest:
            raise ConfigurationError(f"{name} is not the aggregate that was released: look for it in an older backup")
