"""A federation of four server processes and five participants, and what one list of operations does to it.

Real: coordinator (runner, service, store), parties (services, intake, control, store, share files, checkpoints, worker,
the round with its MPC, peer hub), the client's encoding and upload, every message as bytes, interceptors. In place of
the world: the clock, sockets with TLS, threads, fsync. `Federation.run` plays a list and checks it (invariants.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import structlog

from triskele.ids import PARTIES, held_shares
from triskele.submission import Submission
from triskele.task import TaskSpec
from triskele.transparency.checkpoint import Checkpoint
from triskele.transparency.party_keys import PartyKeys
from triskele_server import at_rest
from triskele_server.config import Schedule, ScheduledTask, load_coordinator, load_party
from triskele_server.coordinator.rounds import RoundRecord
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.provision import Provisioned
from triskele_server.round_state import RoundState

from .disk import let_go, watched_disk
from .network import Link, Network
from .openings import Openings
from .operations import (
    Crash,
    DiskFull,
    Hostile,
    Lose,
    LoseRelay,
    Operation,
    Part,
    RepeatRelay,
    Replay,
    Setup,
    Skew,
    SpoilFrame,
    Tick,
    UntilEnded,
    UntilSealed,
    Upload,
    WorkerCrash,
)
from .participants import LIMITS, Addresses, Member
from .processes import Coordinator, Party, Process
from .virtual_time import Incarnation, Killed, VirtualTimeLoop

DIMENSION = 8
DEADLINE_SECONDS = 40.0
GRACE_SECONDS = 5.0
PATIENCE_SECONDS = 6000.0  # after the last fault every round has ended by then
OPTIONS = {"multi-krum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3}}
EXPECTED_ERRORS = ("worker_died",)
MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it


@dataclass
class Trap:
    """Springs at the process's n-th step of a kind from now on."""

    host: str
    left: int
    what: Any


@dataclass
class Seen:
    """A round as it was shown once; `released` never changes again."""

    state: RoundState
    result: Any = None
    record: RoundRecord | None = None
    at: float = 0.0  # seconds of the loop's clock
    sealed_at: float | None = None


@dataclass
class Logged:
    """Log lines that tell of something that must not happen."""

    errors: list[str] = field(default_factory=list)

    def __call__(self, _: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if method in ("error", "critical", "exception") and event.get("event") not in EXPECTED_ERRORS:
            self.errors.append(f"{event.get('event')} {event.get('error', '')} {event.get('where', '')}")
        raise structlog.DropEvent


class Federation:
    """One federation for one list of operations."""

    def __init__(self, made: Provisioned, setup: Setup, data: Path) -> None:
        self.setup = setup
        self.loop = VirtualTimeLoop(random.Random(setup.seed))
        self.network = Network(made.federation, random.Random(setup.seed + 1))
        self.task = _task(setup)
        self.spec = self.task.spec
        self.openings = Openings(self.spec)
        self.logged = Logged()
        self._epoch = datetime.datetime.now(datetime.UTC).timestamp() + 3600.0
        self._skews: dict[str, float] = {}
        self.seen: dict[int, Seen] = {}
        self._writes: list[Trap] = []
        self._frames: list[Trap] = []
        self._full: dict[str, float] = {}
        self.disk_was_full = False
        self.left_behind: list[str] = []  # files of ended rounds
        self.name = made.federation
        self.keys = PartyKeys.from_folder(made.directory / "keys")
        self.checkpoints: dict[str, Checkpoint] = {}  # the newest one, by who cosigned it
        self.cosigned: list[Checkpoint] = []  # every one that was ever seen
        self._looked_at: tuple[int, int] | None = None
        self.operations: Sequence[Operation] = ()
        coordinator = load_coordinator(made.coordinator)
        configs = [load_party(made.parties[p]).model_copy(update={"data": data / f"party-{p}"}) for p in PARTIES]
        self.parties = [
            Party(self.network, config, self.openings, self._datetime_at(f"party-{config.index}")) for config in configs
        ]
        self.coordinator = Coordinator(
            self.network,
            coordinator.model_copy(update={"data": data / "coordinator"}),
            self.task,
            lambda: self._now_at("coordinator"),
        )
        addresses = Addresses(coordinator.listen, [config.listen for config in configs])
        self.members = [
            Member(self.network, i, path.parent, addresses, _vector(setup, i))
            for i, path in enumerate(made.participants.values())
        ]
        self.network.on_frame = self._on_frame

    @property
    def processes(self) -> list[Process]:
        return [self.coordinator, *self.parties]

    @property
    def hostile(self) -> bool:
        """Whether anybody sent what no honest client would."""
        return any(isinstance(operation, Hostile | Replay) for operation in self.operations)

    def process(self, host: str) -> Process:
        return next(p for p in self.processes if p.host == host)

    def run(self, operations: Sequence[Operation]) -> None:
        """Play the list, let everything come to its end, check."""
        from .invariants import check

        with self._installed():
            try:
                self.loop.run_until_complete(self._run(operations))
                check(self)
            finally:
                self.loop.run_until_complete(self._let_everything_go())
                self.loop.close()

    async def _run(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        for process in self.processes:
            process.start()
        await self._pass(3.0)
        for operation in operations:
            await self._play(operation)
            await self._pass(0.05)
        await self._calm_down()

    async def _play(self, operation: Operation) -> None:
        match operation:
            case Upload(member):
                self._take_part(self.members[member], self.current_round())
            case Hostile(member, kind):
                one = self.members[member]
                one.start(one.be_hostile, kind, self.spec, self.current_round(), self.members)
            case Replay(member):
                self.members[member].start(self.members[member].replay)
            case Tick(seconds):
                await self._pass(seconds)
            case UntilSealed():
                await self._until(lambda s: s is not RoundState.OPEN, DEADLINE_SECONDS + 10.0)
            case UntilEnded():
                await self._until(lambda s: s in (RoundState.RELEASED, RoundState.FAILED, RoundState.EXPIRED), 300.0)
            case _:
                self._break(operation)

    def _break(self, operation: Operation) -> None:
        match operation:
            case Crash(host, down, 0, 0):
                self._crash(self.process(host), down)
            case Crash(host, down, writes, 0):
                self._writes.append(Trap(host, writes, lambda: self._crash(self.process(host), down)))
            case Crash(host, down, _, frames):
                self._frames.append(Trap(host, frames, lambda: self._crash(self.process(host), down)))
            case WorkerCrash(party, frames):
                self._frames.append(Trap(f"party-{party}", frames, self.parties[party].kill_worker))
            case Lose(source, target, "request", count):
                self.network.link(source, target).lose_requests += count
            case Lose(source, target, _, count):
                self.network.link(source, target).lose_responses += count
            case LoseRelay(party, what, count):
                self._relays_of(party).lose_relays += [what] * count
            case RepeatRelay(party, lag):
                self._relays_of(party).repeat_relays.append(lag)
            case Part(one, other, seconds):
                self.network.part(one, other)
                self.network.later(seconds, self._mend, one, other)
            case SpoilFrame(source, target, after, fault):
                self.network.link(f"party-{source}", f"party-{target}").frame_faults.append((after, fault))
            case Skew(host, seconds):
                self._skews[host] = self._skews.get(host, 0.0) + seconds
            case DiskFull(host, after, seconds):
                self._writes.append(Trap(host, after + 1, lambda: self._fill(host, seconds)))

    async def _calm_down(self) -> None:
        """No faults from now on; time goes on until nothing is left to do, or patience is over."""
        self.network.heal()
        self._writes.clear()
        self._frames.clear()
        self._full.clear()
        self._skews.clear()
        for process in self.processes:
            process.start()
        until = self.loop.time() + PATIENCE_SECONDS
        while self.loop.time() < until and not self._at_rest():
            await self._pass(5.0)
        for party in self.parties:
            self.left_behind += [str(path) for path in (party.config.data / "rounds").rglob("*") if path.is_file()]
        if any(seen.state is RoundState.RELEASED for seen in self.seen.values()):
            for process in self.processes:  # what is released is released after any restart
                process.kill()
                process.start()
            await self._pass(5.0)
        self._look(closely=True)

    def _at_rest(self) -> bool:
        store = self.coordinator.store
        if not self.coordinator.life.alive or store is None or len(self.seen) < self.setup.rounds:
            return False
        records = store.rounds(self.spec.digest)
        return len(records) == self.setup.rounds and all(r.ended and r.closed for r in records)

    async def _pass(self, seconds: float) -> None:
        """Time goes on."""
        await self._until(lambda _: False, seconds)

    async def _until(self, reached: Callable[[RoundState], bool], at_most: float) -> None:
        """Time goes on until the round that is the current one now is in such a state; every change is looked at."""
        number, until = self.current_round(), self.loop.time() + at_most
        while (left := until - self.loop.time()) > 0 and not (number in self.seen and reached(self.seen[number].state)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.coordinator.news.wait()
            self.coordinator.news.clear()
            self._look()

    def _look(self, *, closely: bool = False) -> None:
        """At the coordinator's store, if anything changed there."""
        from .invariants import check_step

        coordinator = self.coordinator
        if coordinator.life.alive and coordinator.store is not None:
            version = coordinator.life.number, coordinator.changes.version(self.spec.digest)
            if closely or version != self._looked_at:
                self._looked_at = version
                before = set(self.seen)
                check_step(self, coordinator.store)
                for number in self.seen.keys() - before:
                    for member in self.members[: self.setup.eager]:
                        self._take_part(member, number)

    def current_round(self) -> int:
        """The newest round that anybody has seen."""
        return max(self.seen, default=1)

    def _take_part(self, member: Member, number: int) -> None:
        member.start(member.take_part, self.spec, number, self.loop.time, self._held)

    def _held(self, submission: Submission) -> list[bytes | None]:
        """The heavy share as its two holders have it on their disks; None where it is not, or not any more."""
        manifest = submission.manifest
        key = RoundKey(manifest.task, manifest.round)
        holders = [p for p in PARTIES if manifest.heavy in held_shares(p)]
        files = [ShareFiles(self.parties[p].config.data) for p in holders]
        paths = [f.share(key, manifest.participant, manifest.heavy, seed=False) for f in files]
        return [path.read_bytes() if path.exists() else None for path in paths]

    # ---- faults ----------------------------------------------------------------------------------------------------

    def _relays_of(self, party: int) -> Link:
        return self.network.link(f"party-{party}", f"party-{(party + 2) % 3}")

    def _crash(self, process: Process, down: float) -> None:
        process.kill()
        self.network.later(down, process.start)

    def _fill(self, host: str, seconds: float) -> None:
        self.disk_was_full = True
        self._full[host] = self.loop.time() + seconds

    def _mend(self, one: str, other: str) -> None:
        if self.network.parted(one, other):
            self.network.mend(one, other)

    def _on_write(self, life: Incarnation) -> bool:
        life.writes += 1
        _spring(self._writes, life.host)
        return self._full.get(life.host, 0.0) > self.loop.time()

    def _on_frame(self, life: Incarnation) -> None:
        life.frames += 1
        _spring(self._frames, life.host)
        if not life.alive:
            raise Killed

    def _now_at(self, host: str) -> float:
        return self._epoch + self.loop.time() + self._skews.get(host, 0.0)

    def _datetime_at(self, host: str) -> Any:
        return lambda: datetime.datetime.fromtimestamp(self._now_at(host), datetime.UTC)

    # ---- the process that all of this runs in ------------------------------------------------------------------------

    @contextmanager
    def _installed(self) -> Iterator[None]:
        asyncio.set_event_loop(None)
        before = structlog.get_config()
        structlog.configure(processors=[self.logged], cache_logger_on_first_use=False)
        collecting = gc.isenabled()
        gc.disable()  # a collection in between would unwind what was killed
        try:
            small = mock.patch.object(at_rest, "DEFAULT_LIMITS", LIMITS)  # a relay has several chunks too
            with small, watched_disk(self._on_write), self.openings.watching():
                yield
        finally:
            structlog.configure(**before)
            if collecting:
                gc.enable()

    async def _let_everything_go(self) -> None:
        for process in self.processes:
            process.retire()
        await self.loop.reap()
        for process in self.processes:
            for life in process.lives:
                let_go(life)


def play(made: Provisioned, setup: Setup, operations: Sequence[Operation]) -> Federation:
    """Run one list of operations on a fresh federation; raises AssertionError if an invariant does not hold."""
    folder = tempfile.mkdtemp(prefix="triskele-simulation-", dir=MEMORY if MEMORY.is_dir() else None)
    try:
        federation = Federation(made, setup, Path(folder))
        federation.run(operations)
        return federation
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spring(traps: list[Trap], host: str) -> None:
    for trap in [t for t in traps if t.host == host]:
        trap.left -= 1
        if trap.left <= 0:
            traps.remove(trap)
            trap.what()


def _task(setup: Setup) -> ScheduledTask:
    spec = TaskSpec(
        name="simulated",  # type: ignore[arg-type]  # a TaskName
        dimension=DIMENSION,
        clip_norm=1.0,
        rule=setup.rule,
        rule_options=OPTIONS.get(setup.rule, {}),
        root="p00" if setup.rule == "fltrust" else None,  # type: ignore[arg-type]  # a ParticipantId
        decisions=setup.decisions,
        max_participants=6,
        min_accepted=setup.min_accepted,
    )
    schedule = Schedule(
        rounds=setup.rounds,
        quorum=setup.quorum,
        deadline_seconds=DEADLINE_SECONDS,
        grace_seconds=GRACE_SECONDS,
    )
    return ScheduledTask(spec, schedule)


def _vector(setup: Setup, member: int) -> np.ndarray:
    """e_i; for FLTrust, which wants a common direction, leaning towards one that all share."""
    vector = np.zeros(DIMENSION)
    vector[member] = 1.0 if setup.rule != "fltrust" else 0.8
    if setup.rule == "fltrust":
        vector[-1] = 0.6
    return vector
