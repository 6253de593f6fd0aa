"""What is made of files, made again when they have changed: certificates are renewed without a restart or a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from triskele.errors import ConfigurationError

T = TypeVar("T")


def stamps(*paths: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """Inode, size, time of change of each file, through symbolic links (as Kubernetes mounts secrets); None: gone."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Renewed(Generic[T]):
    """The value of `load`, which reads `files` and raises ConfigurationError if they cannot be used. Thread-safe.

    The constructor raises what the first `load` raises. When a later one does, as half-written files make it, the last
    value stays, and `told`, if given, gets the error; the next change of a file is another chance.
    """

    def __init__(
        self,
        files: Sequence[Path],
        load: Callable[[], T],
        *,
        told: Callable[[ConfigurationError], None] | None = None,
    ) -> None:
        self._files = tuple(files)
        self._load = load
        self._told = told
        self._lock = threading.Lock()
        self._stamps = stamps(*self._files)  # before the files are read: a change meanwhile is seen next time
        self._value = load()

    def current(self) -> T:
        """The value; the same object as long as no file has changed."""
        with self._lock:
            found = stamps(*self._files)
            if found != self._stamps:
                self._stamps = found
                try:
                    self._value = self._load()
                except ConfigurationError as error:
                    if self._told is not None:
                        self._told(error)
            return self._value
