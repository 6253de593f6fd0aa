"""The participant: what a training job imports.

from triskele import Participant

with Participant.from_config("participant.toml") as me:
    for round in me.rounds("face-model"):
        result = round.submit(update, weight=n_examples).result()
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Self

from triskele.config import ParticipantConfig
from triskele.connection import DEFAULT_RETRIES, Connections, RetryPolicy
from triskele.coordinator import Coordinator
from triskele.credentials import Credentials
from triskele.ids import ParticipantId, RoundNumber
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.round import Membership, Round
from triskele.views import RoundView, TaskView
from triskele.watch import RoundWatch


class Participant:
    """One member of a federation. Use it in a `with` statement, or close it."""

    def __init__(
        self,
        config: ParticipantConfig,
        credentials: Credentials,
        *,
        limits: Limits = DEFAULT_LIMITS,
        retries: RetryPolicy = DEFAULT_RETRIES,
    ) -> None:
        self.id = ParticipantId(config.participant)
        self._connections = Connections(config, credentials, limits)
        self._coordinator = Coordinator(self._connections, limits, retries)
        self._membership = Membership(self.id, credentials, self._coordinator)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, retries: RetryPolicy = DEFAULT_RETRIES
    ) -> Self:
        """The participant that participant.toml describes; raises ConfigurationError naming the file and the key."""
        config = ParticipantConfig.load(path)
        return cls(config, Credentials.load(config), limits=limits, retries=retries)

    def __repr__(self) -> str:
        return f"Participant({self.id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
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
