"""Durable steps: where a process may die or find its disk full.

Every write, fsync and commit of product code comes by here in the name of its process. Nothing is really synced: a
process dies here, never the machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from triskele_server.party import store as party_store

from .virtual_time import Incarnation, Killed, current

Step = Callable[[Incarnation], bool]
_WRITES = ("INSERT", "UPDATE", "DELETE")


@contextmanager
def watched_disk(on_step: Step) -> Iterator[None]:
    """`on_step(life)` is asked before each durable step: it says whether the disk is full, and may kill."""
    write, pwrite, claim = os.write, os.pwrite, party_store._claim

    def check() -> None:
        life = current()
        if life is not None and _may_not_write(life, on_step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(_: int) -> None:
        check()

    def checked_write(descriptor: int, data: Any) -> int:
        check()
        return write(descriptor, data)

    def checked_pwrite(descriptor: int, data: Any, offset: int) -> int:
        check()
        return pwrite(descriptor, data, offset)

    def held_claim(data: Any) -> Any:
        return _held(claim(data))

    def statement(connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        life = current()
        if life is not None and text.startswith(_WRITES):
            if _may_not_write(life, on_step):
                raise OperationalError(text, None, Exception("database or disk is full"))
            connection.info["wrote"] = True

    def commit(connection: Any) -> None:
        life = current()
        if life is not None and connection.info.pop("wrote", False):
            _may_not_write(life, on_step)

    def connected(connection: Any, _: Any) -> None:
        _held(connection)

    listeners = (
        (sa.Engine, "before_cursor_execute", statement),
        (sa.Engine, "commit", commit),
        (sa.pool.Pool, "connect", connected),
    )
    for target, name, listener in listeners:
        event.listen(target, name, listener)
    try:
        with (
            mock.patch.multiple(os, fsync=fsync, write=checked_write, pwrite=checked_pwrite),
            mock.patch.object(party_store, "_claim", held_claim),
        ):
            yield
    finally:
        for target, name, listener in listeners:
            event.remove(target, name, listener)


def _may_not_write(life: Incarnation, on_step: Step) -> bool:
    full = life.alive and on_step(life)
    if not life.alive:
        raise Killed
    return full


def _held(resource: Any) -> Any:
    life = current()
    if life is not None:
        life.held.append(resource)
    return resource


def let_go(life: Incarnation) -> None:
    """What the kernel does to the files of a process that died: closed, locks gone, transactions undone."""
    while life.held:
        life.held.pop().close()
