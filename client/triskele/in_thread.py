"""Blocking work for asyncio: in a thread of its own, and cancelled for good when the coroutine is.

The event loop's own executor is no place for it: a wait for the next round may take days, and a few of them would fill
that executor for everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from triskele.coordinator import Coordinator

T = TypeVar("T")
Argument = TypeVar("Argument")


async def in_thread(coordinator: Coordinator, work: Callable[[Coordinator], T]) -> T:
    """What `work` returns or raises, run in a new thread with the coordinator on connections of its own.

    A cancellation closes those connections, which ends the call or wait that `work` is in, and is passed on once the
    thread has ended: nothing runs on behind the caller's back. A computation that is under way is ended after the
    step it is in.
    """
    branch = coordinator.branch()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome = context.run(work, branch)
        except BaseException as error:  # noqa: BLE001  whatever it is, it is the awaiting coroutine's
            settle = _failing(done, error)
        else:
            settle = _giving(done, outcome)
        finally:
            branch.connections.close()
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle)

    thread = threading.Thread(target=run, name="triskele-async", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        branch.connections.close()
        await _ended(done)
        raise
    finally:
        branch.connections.close()  # here too for a coroutine that is thrown away without a cancellation
        thread.join()  # its last act was to settle `done`


def in_event_loop(callback: Callable[[Argument], object]) -> Callable[[Argument], None]:
    """The callback, made to run in the running event loop whatever thread calls it."""
    loop = asyncio.get_running_loop()

    def call(argument: Argument) -> None:
        loop.call_soon_threadsafe(callback, argument)

    return call


async def _ended(done: asyncio.Future[T]) -> None:
    """Wait for the thread, through further cancellations, and drop what it raises: it was told to stop."""
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            continue
    done.exception()


def _giving(done: asyncio.Future[T], outcome: T) -> Callable[[], None]:
    return lambda: done.set_result(outcome)


def _failing(done: asyncio.Future[T], error: BaseException) -> Callable[[], None]:
    return lambda: done.set_exception(error)
