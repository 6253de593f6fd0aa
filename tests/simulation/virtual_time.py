"""One thread, a clock that jumps, and processes that can be killed between any two steps.

- `VirtualTimeLoop` is an asyncio event loop whose clock jumps to the next timer when nothing else is to do. What
  product code hands to a thread runs on the loop too, a moment later: the order of everything follows from the seed.
- Everything runs in the name of an `Incarnation`, one life of one process. Once it is dead, nothing of it ever runs
  again: no `finally`, no `except`, as after kill -9.
- Code that blocks (the computation of a round, the participant's client) runs in a greenlet: `blocking` starts it,
  `wait` inside it lets the others go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import random
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import greenlet

THREAD_SECONDS = 0.002  # the longest that work in a thread takes to be done
_RESOLUTION = 1e-9


class Killed(BaseException):
    """Raised where a process is killed in the middle of a step: no handler of ours may catch it."""


class NothingToDo(AssertionError):
    """No timer runs and nothing is ready: whoever waits now waits for ever."""


@dataclass(eq=False)
class Incarnation:
    """One life of the process on `host`."""

    host: str
    number: int
    alive: bool = True
    held: list[Any] = field(default_factory=list)  # files and connections that the kernel closes when it dies
    writes: int = 0  # durable steps so far
    frames: int = 0  # frames sent to peers so far

    def __str__(self) -> str:
        return f"{self.host}#{self.number}"


LIVES_IN: contextvars.ContextVar[Incarnation | None] = contextvars.ContextVar("incarnation", default=None)


def current() -> Incarnation | None:
    """In whose name this code runs; None outside the federation."""
    return LIVES_IN.get()


def context_of(incarnation: Incarnation | None) -> contextvars.Context:
    """A context in which to start something of this process."""
    context = contextvars.Context()
    context.run(LIVES_IN.set, incarnation)
    return context


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing is ready: then it jumps to the next timer."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = _RESOLUTION
        self._selector = self
        self._chance = chance
        self.set_exception_handler(self._unhandled)
        self.unhandled: list[str] = []
        self.reaping = False  # what was killed may be unwound
        self._frozen: list[tuple[Any, ...]] = []  # what a dead process was about to do
        self._kept: list[asyncio.Task[Any]] = []  # what was killed and nobody refers to would be unwound at once

    def time(self) -> float:
        return self._now

    # What BaseEventLoop asks of a selector and of a wake-up from other threads, of which there are none.

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingToDo
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._kept.append(task)
        return task

    # Nothing of a dead process runs.

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> events.Handle:
        context = context or contextvars.copy_context()
        life = context.get(LIVES_IN)
        if life is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(self._if_alive, life, callback, *args, context=context)

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        context = context or contextvars.copy_context()
        life = context.get(LIVES_IN)
        if life is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, self._if_alive, life, callback, *args, context=context)

    def _if_alive(self, life: Incarnation, callback: Callable[..., Any], *args: Any) -> None:
        if life.alive or self.reaping:
            try:
                callback(*args)
            except Killed:
                assert not life.alive
        else:
            self._frozen.append((contextvars.copy_context(), callback, *args))

    async def reap(self) -> None:
        """Unwind everything that was killed or still runs, once nothing of it can do harm any more."""
        self.reaping = True
        end_threads()
        for context, callback, *args in self._frozen:
            self.call_soon(callback, *args, context=context)
        while left := asyncio.all_tasks() - {asyncio.current_task()}:  # what ends may begin something once more
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=10.0)
        end_threads()
        await self.shutdown_asyncgens()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """A thread's work is one step of this loop; it is done even if nobody waits for it any more."""
        future = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  carried to whoever waits
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_later(self._chance.uniform(0.0, THREAD_SECONDS), run)
        return future

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.unhandled.append(f"{context.get('message')}: {error!r}")


# ---- blocking code --------------------------------------------------------------------------------------------------


def blocking(function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """Start code that blocks, as a thread of the process in whose name this is called; the future has its result."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def body() -> None:
        try:
            result = function(*args)
        except (greenlet.GreenletExit, Killed):
            return
        except BaseException as error:  # noqa: BLE001  carried to whoever waits
            if not done.cancelled():
                done.set_exception(error)
        else:
            if not done.cancelled():
                done.set_result(result)

    thread = greenlet.greenlet(body, parent=_outermost())
    thread.gr_context = contextvars.copy_context()
    _THREADS.append(thread)
    loop.call_soon(thread.switch)  # never from inside a task: a greenlet switches from the loop and back to it
    return done


def _outermost() -> greenlet.greenlet:
    found = greenlet.getcurrent()
    while found.parent is not None:
        found = found.parent
    return found


_THREADS: list[greenlet.greenlet] = []


def end_threads() -> None:
    """Let go of every greenlet that still waits: its stack is unwound, with nothing left that it could touch."""
    while _THREADS:
        thread = _THREADS.pop()
        if not thread.dead:
            thread.throw(greenlet.GreenletExit)


def wait(future: Awaitable[Any]) -> Any:
    """Inside `blocking` code: what the future gives."""
    me = greenlet.getcurrent()
    waited_for = asyncio.ensure_future(future)
    waited_for.add_done_callback(lambda _: me.switch())
    me.parent.switch()
    return waited_for.result()


def sleep(seconds: float) -> None:
    """Inside `blocking` code: time.sleep."""
    wait(asyncio.sleep(seconds))


def task_of(life: Incarnation | None, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run a coroutine in the name of a process."""
    return asyncio.get_running_loop().create_task(work, context=context_of(life))


class WaitingQueue:
    """`queue.SimpleQueue` for blocking code: `get` waits in virtual time."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: asyncio.Future[bool] | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(True)

    def get(self, timeout: float | None = None) -> Any:
        loop = asyncio.get_running_loop()
        if not self._items:
            self._waiting = waiting = loop.create_future()
            timer = loop.call_later(timeout or 1e9, lambda: waiting.done() or waiting.set_result(False))
            wait(waiting)
            timer.cancel()
            self._waiting = None
        if not self._items:
            raise queue.Empty
        return self._items.popleft()
