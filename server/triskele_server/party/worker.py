"""The worker process of a party: it computes rounds, so that the event loop that serves uploads never waits for one.

The process is spawned, never forked, and serves Peer on its own port. Parent and child talk over a pipe: jobs go
down; phases, outcomes and failures come back. If the parent dies the pipe ends and so does the child; if the child
dies its jobs fail and a new one is spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import structlog

from triskele.errors import ConfigurationError, PeerLost, RoundFailed
from triskele.tracing import TRACES
from triskele_server.config import PartyConfig
from triskele_server.metrics import party as metrics
from triskele_server.metrics.exposition import EXPOSED
from triskele_server.party.job import PEER_LOST, Abandon, Counted, Ended, Reached, RoundJob, RoundOutcome, Started
from triskele_server.round_state import RoundState

START_SECONDS = 60.0  # importing torch on a busy machine
STOP_SECONDS = 5.0
RESTART_SECONDS = 5.0  # between two attempts to start it again

_log = structlog.get_logger(__name__)


@dataclass
class _Pending:
    on_phase: Callable[[RoundState], None]
    ended: asyncio.Future[RoundOutcome]


@dataclass
class MpcWorker:
    """The parent's end: `start`, any number of `run`, `stop`, all on one event loop."""

    config: PartyConfig
    link_delay: float = 0.0  # seconds; see rpc/peer.py
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _process: SpawnProcess | None = None
    _pipe: Connection | None = None
    _started: asyncio.Future[Started] | None = None
    _jobs: int = 0
    _stopping: bool = False
    _restart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Spawn the process and wait until it serves; raises ConfigurationError if it cannot."""
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._started = loop.create_future()
        arguments = (self.config, theirs, self.link_delay)
        self._process = context.Process(target=_main, args=arguments, name=f"party-{self.config.index}-mpc")
        await asyncio.to_thread(self._process.start)
        theirs.close()
        threading.Thread(target=self._listen, args=(loop, self._pipe), daemon=True).start()
        try:
            started = await asyncio.wait_for(asyncio.shield(self._started), START_SECONDS)
        except TimeoutError:
            raise ConfigurationError(f"the computing process did not start within {START_SECONDS:g} s") from None
        if started.error:
            raise ConfigurationError(started.error)

    async def run(self, job: RoundJob, on_phase: Callable[[RoundState], None]) -> RoundOutcome:
        """Compute a round; raises RoundFailed saying why and whose doing it was, PeerLost if an attempt was lost."""
        pipe = self._pipe
        if pipe is None or self._started is None or not self._started.done():
            raise PeerLost("the computing process of this party is starting again", self.config.index)
        self._jobs += 1
        number = self._jobs
        pending = self._pending[number] = _Pending(on_phase, asyncio.get_running_loop().create_future())
        try:
            with contextlib.suppress(OSError):  # the child has just died; the listener fails the job
                pipe.send((number, job, TRACES.parent()))
            return await pending.ended
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                pipe.send(Abandon(number))
            raise
        finally:
            del self._pending[number]

    async def stop(self) -> None:
        """End the process, at once if it does not end by itself."""
        self._stopping = True
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
        if self._process is not None and self._process.pid is not None:  # None: stopped before it was spawned
            await asyncio.to_thread(self._process.join, STOP_SECONDS)
            if self._process.is_alive():
                self._process.kill()
                await asyncio.to_thread(self._process.join)

    def _listen(self, loop: asyncio.AbstractEventLoop, pipe: Connection) -> None:
        """Runs in a thread: hand what the child says to the event loop."""
        try:
            while True:
                loop.call_soon_threadsafe(self._heard, pipe.recv())
        except (EOFError, OSError):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._died, pipe)

    def _heard(self, message: Started | Reached | Ended | Counted) -> None:
        if isinstance(message, Counted):
            EXPOSED.heard(message.counts)
            return
        if isinstance(message, Started):
            if self._started is not None and not self._started.done():
                self._started.set_result(message)
            return
        pending = self._pending.get(message.job)
        if pending is None or pending.ended.done():
            return
        if isinstance(message, Reached):
            pending.on_phase(message.phase)
        elif message.outcome is not None:
            pending.ended.set_result(message.outcome)
        else:
            lost = message.failure[0] == PEER_LOST
            pending.ended.set_exception(PeerLost(message.failure[2]) if lost else RoundFailed(*message.failure))

    def _died(self, pipe: Connection) -> None:
        if pipe is not self._pipe:
            return  # one that was given up before
        EXPOSED.worker_ended()
        for pending in self._pending.values():
            if not pending.ended.done():
                lost = PeerLost("the computing process of this party ended unexpectedly", self.config.index)
                pending.ended.set_exception(lost)
        if self._started is not None and not self._started.done():
            self._started.set_result(Started("the computing process ended before it served; see its log"))
        elif not self._stopping:
            _log.error("worker_died")
            metrics.WORKER_RESTARTS.inc()
            self._pipe = None  # a job that comes before the next process serves is lost, not sent into the void
            self._restart = asyncio.create_task(self._start_again())

    async def _start_again(self) -> None:
        """Until it works: what the machine lacks now, memory or the port, may be there later."""
        await self._end_process()
        while not self._stopping:
            try:
                await self.start()
            except (ConfigurationError, OSError) as error:
                self._pipe = None
                await self._end_process()
                _log.error("worker_not_started", problem=str(error))
                await asyncio.sleep(RESTART_SECONDS)
            else:
                return

    async def _end_process(self) -> None:
        """Wait for what has died or cannot be used: its pipe ends a moment before it does, and who is not waited for
        stays in the kernel's table.
        """
        if self._process is not None and self._process.pid is not None:  # None: it was not spawned
            self._process.kill()
            await asyncio.to_thread(self._process.join, STOP_SECONDS)


def _main(config: PartyConfig, pipe: Connection, link_delay: float) -> None:
    from triskele_server.party import worker_process  # noqa: PLC0415 - torch and crypten: the parent never pays

    worker_process.main(config, pipe, link_delay)
