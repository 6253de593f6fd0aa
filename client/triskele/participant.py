"""The participant: what a training job imports.

from triskele import Participant

with Participant.from_config("participant.toml") as me:
    for round in me.rounds("face-model"):
        result = round.submit(update, weight=n_examples).result()

Every call that waits has a twin for asyncio, named async_...:

async with Participant.from_config("participant.toml") as me:
    async for round in me.async_rounds("face-model"):
        submitted = await round.async_submit(update, weight=n_examples)
        result = await submitted.async_result()

One participant may take part in several tasks at once, from several threads or asyncio tasks.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from triskele.config import ParticipantConfig
from triskele.connection import DEFAULT_RETRIES, Connections, RetryPolicy
from triskele.coordinator import Coordinator
from triskele.credentials import Credentials, trusted_parties
from triskele.errors import NotFound
from triskele.ids import ParticipantId, RoundNumber
from triskele.in_thread import in_thread
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.renewal import Renewed
from triskele.round import Membership, Round, SubmittedUpdate
from triskele.structure import Update
from triskele.tracing import TRACES
from triskele.upload import Progress
from triskele.views import RoundView, TaskView
from triskele.watch import RoundWatch


class Participant:
    """One member of a federation. Use it in a `with` or `async with` statement, or close it. Safe with threads."""

    def __init__(
        self,
        config: ParticipantConfig,
        credentials: Renewed[Credentials],
        *,
        limits: Limits = DEFAULT_LIMITS,
        retries: RetryPolicy = DEFAULT_RETRIES,
    ) -> None:
        self.id = ParticipantId(config.participant)
        self._connections = Connections(config, lambda: credentials.current().channel, limits)
        patience = self._connections.patient(retries)
        self._coordinator = Coordinator(self._connections, trusted_parties(config), limits, patience)
        self._membership = Membership(self.id, credentials, self._coordinator, config.relay)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, retries: RetryPolicy = DEFAULT_RETRIES
    ) -> Self:
        """The participant that participant.toml describes; raises ConfigurationError naming the file and the key."""
        config = ParticipantConfig.load(path)
        TRACES.configure(f"participant-{config.participant}")
        return cls(config, Credentials.renewed(config), limits=limits, retries=retries)

    def __repr__(self) -> str:
        return f"Participant({self.id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; what other threads or asyncio tasks are waiting for ends with an error."""
        self._connections.close()

    def tasks(self) -> list[TaskView]:
        """The coordinator's tasks; raises InvalidTask if one of them could not be run safely."""
        return self._coordinator.tasks()

    def rounds(self, task: str) -> Iterator[Round]:
        """Each round of the task that is open, once, waiting for the next; ends when the task is finished.

        Survives restarts of the coordinator. Nothing is held open while the caller works on a round; if the round
        ends meanwhile, `submit` raises WrongState.
        """
        spec = self._coordinator.task(task).spec
        number = RoundNumber(1)
        while (view := self._coordinator.wait_open(spec, number)) is not None:
            yield Round(spec, view, self._membership)
            number = RoundNumber(view.round + 1)

    async def async_rounds(self, task: str) -> AsyncIterator[Round]:
        """As `rounds`, for asyncio: `async for`; a wait is ended by cancelling it."""
        found = await in_thread(self._coordinator, lambda coordinator: coordinator.task(task))
        number = RoundNumber(1)
        while (view := await self._async_wait_open(found, number)) is not None:
            yield Round(found.spec, view, self._membership)
            number = RoundNumber(view.round + 1)

    async def async_submit(
        self,
        task: str,
        update: Update,
        *,
        weight: int | None = None,
        clip: bool = True,
        progress: Progress | None = None,
        local_noise: float | None = None,
    ) -> SubmittedUpdate:
        """Submit to the open round of the task, waiting for one; returns when all three parties hold the update.

        Raises as `Round.async_submit`, and NotFound if the task is finished or there is none of that name.
        """
        found = await in_thread(self._coordinator, lambda coordinator: coordinator.task(task))
        view = await self._async_wait_open(found, RoundNumber(1))
        if view is None:
            raise NotFound(f"task {task!r} is finished; it has no open round any more")
        target = Round(found.spec, view, self._membership)
        return await target.async_submit(update, weight=weight, clip=clip, progress=progress, local_noise=local_noise)

    def round(self, task: str, number: int) -> Round:
        """One round as it stands now, open or not; raises NotFound."""
        found = self._coordinator.task(task)
        return Round(found.spec, self._coordinator.round(found, RoundNumber(number)), self._membership)

    def round_views(self, task: str) -> list[RoundView]:
        """The task's rounds as they stand now; of a very long task the newest only."""
        return self._coordinator.rounds(self._coordinator.task(task).spec)

    def watch(self, task: str, *, from_round: int = 1, timeout: float | None = None) -> RoundWatch:
        """The rounds from `from_round` on as they are, then one view per change; ends with the task. Close it."""
        return self._coordinator.watch(self._coordinator.task(task).spec, RoundNumber(from_round), timeout)

    def aggregates(
        self, task: str, *, from_round: int = 1, like: Update | None = None
    ) -> Iterator[tuple[RoundNumber, Any]]:
        """Number and aggregate of every released round from `from_round` on, in order, as far as they go now.

        What a participant needs that joins late or was away: the model of today is the first one plus these. They
        come as `Round.aggregate` gives them. Rounds that ended without a result are left out.
        """
        found = self._coordinator.task(task)
        for number in range(from_round, found.current_round + 1):
            view = self._coordinator.round(found, RoundNumber(number))
            if view.state == "RELEASED":
                yield view.round, Round(found.spec, view, self._membership).aggregate(like)

    async def _async_wait_open(self, task: TaskView, from_round: RoundNumber) -> RoundView | None:
        return await in_thread(self._coordinator, lambda coordinator: coordinator.wait_open(task.spec, from_round))
