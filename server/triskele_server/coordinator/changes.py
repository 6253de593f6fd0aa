"""Which rounds changed since one last looked: wakes the watchers of a task. In memory; the store holds the truth."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from triskele.errors import Unavailable
from triskele.ids import RoundNumber, TaskDigest
from triskele_server.coordinator.rounds import RoundId


@dataclass
class _Board:
    version: int = 0
    moved_in: int = 0  # the version in which a round entered a state last
    changed_in: dict[RoundNumber, int] = field(default_factory=dict)  # the version in which a round changed last
    entered_in: dict[RoundNumber, int] = field(default_factory=dict)  # the same for its state alone
    news: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # news of a state: counts wake nobody who waits for it


class RoundChanges:
    """One counter per task, raised with every change. A slow watcher misses steps in between, never the last one."""

    def __init__(self) -> None:
        self._boards: defaultdict[TaskDigest, _Board] = defaultdict(_Board)
        self._stopped = False

    def stop(self) -> None:
        """The process ends: send all watchers home, so that they need not be cut off."""
        self._stopped = True
        for board in self._boards.values():
            board.news.set()
            board.moved.set()

    def announce(self, id_: RoundId, *, counts_only: bool = False) -> None:
        """The round changed in the store: it entered a state, or (`counts_only`) one more has enrolled or uploaded."""
        board = self._boards[id_.task]
        board.version += 1
        if not counts_only:
            board.moved_in = board.entered_in[id_.number] = board.version
            board.moved.set()
            board.moved = asyncio.Event()
        board.changed_in[id_.number] = board.version
        board.news.set()
        board.news = asyncio.Event()

    def version(self, task: TaskDigest, *, counts: bool = True) -> int:
        """To be read before the store: changes after it are found by `since`. Without `counts` that of states alone."""
        board = self._boards[task]
        return board.version if counts else board.moved_in

    def since(self, task: TaskDigest, version: int, *, counts: bool = True) -> list[RoundNumber]:
        """The rounds that changed after `version`, in order; without `counts`, those that entered a state."""
        board = self._boards[task]
        changes = board.changed_in if counts else board.entered_in
        return sorted(number for number, changed in changes.items() if changed > version)

    async def pause(self, task: TaskDigest, version: int, seconds: float) -> None:
        """Return after `seconds`, or as soon as a round has entered a state after `version`, or the process ends."""
        board = self._boards[task]
        try:
            async with asyncio.timeout(seconds):
                while board.moved_in <= version and not self._stopped:
                    await board.moved.wait()
        except TimeoutError:
            return

    async def wait(self, task: TaskDigest, version: int, *, counts: bool = True) -> None:
        """Return once anything has changed after `version`, without `counts` once a round has entered a state.

        Raises Unavailable when the process ends.
        """
        board = self._boards[task]
        while (board.version if counts else board.moved_in) <= version:
            if self._stopped:
                raise Unavailable("the coordinator is being stopped; connect again")
            await (board.news if counts else board.moved).wait()
