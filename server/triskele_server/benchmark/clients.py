"""The participants: a few processes, a thread for each participant, as many updates in memory as upload at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from triskele import Participant
from triskele.call_metadata import MetadataInterceptor
from triskele.config import ParticipantConfig
from triskele.connection import RetryPolicy, channel_options, typed_errors
from triskele.credentials import Credentials
from triskele.errors import PartyFault, TriskeleError, Unavailable
from triskele.identity import Identity
from triskele.limits import DEFAULT_LIMITS
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, party_pb2, party_pb2_grpc
from triskele_server.benchmark.processes import own_peak_megabytes
from triskele_server.benchmark.scene import WAIT_SECONDS, RoundTimes, Updates

PROCESSES: Final = 2
AT_A_TIME: Final = 4  # uploads, or downloads, of one process
_RETRIES: Final = RetryPolicy(attempts=40, total=600.0)
_READY_SECONDS: Final = 300.0


@dataclass(frozen=True)
class ClientWork:
    """What one client process does. `address` is the plaintext server's; without it the round is a secure one."""

    paths: Sequence[Path]
    first: int  # index of the first participant
    dimension: int
    task: str
    address: str = ""


@dataclass
class _Told:
    """What the threads of a process have to tell."""

    uploaded: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    likeness: list[float] = field(default_factory=list)


class _Crowd:
    """One process's participants."""

    def __init__(self, work: ClientWork) -> None:
        self.work = work
        self.updates = Updates(work.dimension)
        self.told = _Told()
        self.started = threading.Event()
        self._ready = threading.Semaphore(0)
        self._memory = threading.Semaphore(AT_A_TIME)

    def run(self, pipe: Connection) -> None:
        """Make everybody ready, wait for the start, take part, tell."""
        take_part = self._plain if self.work.address else self._secure
        threads = [
            threading.Thread(target=self._guarded, args=(take_part, i), daemon=True)
            for i in range(len(self.work.paths))
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            self._ready.acquire()
        pipe.send("ready")
        pipe.recv()
        before = time.process_time()
        self.started.set()
        for thread in threads:
            thread.join()
        pipe.send((self.told, time.process_time() - before, own_peak_megabytes(os.getpid())))

    def _guarded(self, take_part: Callable[[int], None], offset: int) -> None:
        try:
            take_part(offset)
        except (TriskeleError, OSError) as error:
            self.told.errors.append(f"{type(error).__name__}: {error}"[:200])
            self._ready.release()  # whoever failed before the start must not hold it up

    def _wait_for_start(self) -> None:
        self._ready.release()
        self.started.wait()

    def _secure(self, offset: int) -> None:
        with Participant.from_config(self.work.paths[offset], retries=_RETRIES) as member:
            open_round = next(member.rounds(self.work.task))
            coordinator = open_round.membership.coordinator
            self._wait_for_start()
            with self._memory:
                open_round.submit(self.updates.row(self.work.first + offset))
                self.told.uploaded.append(time.time())
            view = coordinator.wait_ended(open_round.task, open_round.number, WAIT_SECONDS)
            if view.state != "RELEASED":
                raise PartyFault(f"the round ended as {view.state}: {view.blame}")
            with self._memory:
                mean = coordinator.fetch_aggregate(open_round.task, open_round.number).mean
                self.told.done.append(time.time())
                self._look_at(offset, mean)

    def _plain(self, offset: int) -> None:
        with _plain_channel(self.work.paths[offset], self.work.address) as channel:
            parties: Any = party_pb2_grpc.PartyStub  # generated without types
            results: Any = coordinator_pb2_grpc.CoordinatorStub
            self._wait_for_start()
            with self._memory, typed_errors("the plaintext server"):
                row = self.updates.row(self.work.first + offset)
                parties(channel).Upload(_requests(row.data.cast("B")), timeout=WAIT_SECONDS)
                self.told.uploaded.append(time.time())
                del row
            with typed_errors("the plaintext server"):
                reply = iter(
                    results(channel).FetchResult(coordinator_pb2.FetchResultRequest(round=1), timeout=WAIT_SECONDS)
                )
                next(reply)  # the header comes when the mean is there
                with self._memory:
                    mean = _received(reply, self.work.dimension)
                    self.told.done.append(time.time())
                    self._look_at(offset, mean)

    def _look_at(self, offset: int, mean: np.ndarray) -> None:
        """Of one participant's aggregate: that they are all the same, digests and the other tests say."""
        if offset == 0:
            self.told.likeness.append(self.updates.likeness(mean))


@contextmanager
def _plain_channel(path: Path, address: str) -> Iterator[grpc.Channel]:
    """An open connection to the plaintext server, with a participant's certificate and the client's own options."""
    config = ParticipantConfig.load(path)
    server = Identity(config.federation, "coordinator", "main")
    with grpc.secure_channel(
        address, Credentials.load(config).channel, options=channel_options(server, DEFAULT_LIMITS)
    ) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_READY_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise Unavailable("the plaintext server does not answer") from error
        yield grpc.intercept_channel(channel, MetadataInterceptor())


def _requests(row: memoryview) -> Iterator[party_pb2.UploadRequest]:
    yield party_pb2.UploadRequest(header=party_pb2.UploadHeader())
    for start in range(0, len(row), DEFAULT_LIMITS.chunk_bytes):
        data = bytes(row[start : start + DEFAULT_LIMITS.chunk_bytes])
        yield party_pb2.UploadRequest(chunk={"offset": start, "data": data})


def _received(reply: Iterator[coordinator_pb2.ResultChunk], dimension: int) -> np.ndarray:
    mean = np.empty(dimension, "<f4")
    room, filled = mean.data.cast("B"), 0
    for message in reply:
        data = message.chunk.data
        room[filled : filled + len(data)] = data
        filled += len(data)
    return mean


def _main(work: ClientWork, pipe: Connection) -> None:
    _Crowd(work).run(pipe)


def take_part(paths: Sequence[Path], *, dimension: int, task: str, address: str = "") -> RoundTimes:
    """All participants take part in one round, at once; returns when everybody has the aggregate.

    Raises PartyFault with what went wrong where somebody has not.
    """
    context = multiprocessing.get_context("spawn")
    shares = np.array_split(np.arange(len(paths)), min(PROCESSES, len(paths)))
    running: list[tuple[SpawnProcess, Connection]] = []
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            work = ClientWork([paths[i] for i in share], int(share[0]), dimension, task, address)
            process = context.Process(target=_main, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((process, ours))
        for _, pipe in running:
            _heard(pipe, _READY_SECONDS)
        started = time.time()
        for _, pipe in running:
            pipe.send("start")
        results = [_heard(pipe, WAIT_SECONDS) for _, pipe in running]
    finally:
        for process, _ in running:
            process.join(10)
            if process.is_alive():
                process.kill()
    told = [result[0] for result in results]
    errors = [error for one in told for error in one.errors]
    if errors:
        raise PartyFault(f"{len(errors)} participants failed, the first: {errors[0]}")
    return RoundTimes(
        started,
        tuple(t for one in told for t in one.uploaded),
        tuple(t for one in told for t in one.done),
        sum(result[1] for result in results),
        max(result[2] for result in results),
        min(value for one in told for value in one.likeness),
    )


def _heard(pipe: Connection, seconds: float) -> Any:
    try:
        if pipe.poll(seconds):
            return pipe.recv()
    except EOFError:
        pass
    raise PartyFault("a client process ended, or told nothing in time")
