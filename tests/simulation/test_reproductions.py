"""Bugs that were found: each stays as the shortest list of operations, or the shortest program, that showed it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from triskele.errors import ConfigurationError, PeerLost
from triskele.ids import PARTIES
from triskele_server.config import load_party
from triskele_server.party import worker as worker_module
from triskele_server.party.worker import MpcWorker

from .federation import play
from .operations import LoseRelay, RepeatRelay, Setup, Tick, UntilEnded, UntilSealed, Upload


class _Worker(MpcWorker):
    """Its process cannot be started the first few times."""

    failures = 0
    starts = 0

    async def start(self) -> None:
        self.starts += 1
        self._started = asyncio.get_running_loop().create_future()
        self._pipe = _Gone()  # type: ignore[assignment]  # what of a Connection is used
        if self.starts <= self.failures:
            raise ConfigurationError("the port is still in use")
        self._started.set_result(None)  # type: ignore[arg-type]  # never looked at


class _Gone:
    def send(self, _: Any) -> None:
        raise BrokenPipeError


def _worker(made: Any) -> _Worker:
    return _Worker(load_party(made.parties[PARTIES[0]]))


async def _a_job_between_two_workers(made: Any) -> None:
    worker = _worker(made)
    await worker.start()
    worker._died(worker._pipe)  # type: ignore[arg-type]  # as above
    async with asyncio.timeout(5):
        with pytest.raises(PeerLost):
            await worker.run(None, lambda _: None)  # type: ignore[arg-type]  # nobody looks at the job


def test_a_job_that_comes_between_two_workers_is_lost_and_does_not_wait_for_ever(made):
    asyncio.run(_a_job_between_two_workers(made))


def test_a_worker_that_cannot_be_started_again_is_tried_again_later(made, monkeypatch):
    monkeypatch.setattr(worker_module, "RESTART_SECONDS", 0.01)

    async def body() -> None:
        worker = _worker(made)
        await worker.start()
        worker.failures = 3
        worker._died(worker._pipe)
        async with asyncio.timeout(5):
            await worker._restart
        assert worker.starts == 4
        assert worker._pipe is not None

    asyncio.run(body())


def test_a_relay_that_is_lost_beside_another_one_ends_neither_for_good(made):
    # two relays of party 0 shared a connection: the first failure closed it under the second, whose worker ended
    play(
        made, Setup(eager=5, quorum=5, rounds=2), [UntilSealed(), LoseRelay(0, "request", 1), UntilEnded(), Tick(30.0)]
    )


def test_a_relay_that_comes_twice_costs_nobody_a_second_upload(made):
    # the second stream took the first one over, which its sender took for a refusal
    everybody = [Upload(member) for member in (0, 1, 2, 4)]
    play(made, Setup(eager=0, quorum=4, rounds=1), [RepeatRelay(0, 0.003), *everybody, UntilEnded()])
