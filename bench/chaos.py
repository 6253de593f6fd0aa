"""Kill coordinator and parties (SIGKILL) at random moments of many rounds: `python -m bench.chaos --help`.

A real federation on this machine; every released aggregate is compared with numpy's mean of the rounded updates of
those who were in it. Exit code 0 if none was wrong, none counted anybody twice, no round hung, and every round that
failed says why and who.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triskele import Participant
from triskele.connection import RetryPolicy
from triskele.errors import RoundFailed, TriskeleError
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

TASK: Final = "chaos"
CLIP_NORM: Final = 4.0
GRID: Final = CLIP_NORM / 2**20
HUNG_SECONDS: Final = 300.0  # a participant that has waited for so long for a round's end counts as hung
Vector = NDArray[np.float64]


@dataclass
class Findings:
    """What came of the rounds. `kills` counts by process and by the state the round was in."""

    rounds: int = 0
    released: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason and who
    unnamed: int = 0  # failed rounds without reason or who
    wrong: int = 0
    hung: int = 0
    not_submitted: Counter[str] = field(default_factory=Counter)  # by error
    kills: Counter[str] = field(default_factory=Counter)
    most_attempts: int = 1
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether every promise held."""
        return self.wrong == self.hung == self.unnamed == 0


def update(number: int, index: int, participants: int, dimension: int) -> Vector:
    """On the encoding's grid. The first entries are one-hot: a 2 / n in the mean there is a double count."""
    rng = np.random.default_rng([number, index])
    row = np.zeros(dimension)
    row[index] = 1.0
    row[participants:] = np.round(rng.normal(0, 1 / np.sqrt(dimension), dimension - participants) / GRID) * GRID
    return row


@dataclass
class Killer:
    """Kills one process after another, each after a random pause, and starts it again after another one."""

    federation: LocalFederation
    rng: random.Random
    findings: Findings
    mean_seconds: float
    state: Callable[[], str]
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop` is set; every process runs then."""
        while not self.stop.wait(self.rng.expovariate(1 / self.mean_seconds)):
            name = self.rng.choice((COORDINATOR, *PARTY_NAMES))
            self.findings.kills[f"{'coordinator' if name == COORDINATOR else 'party'} in {self.state()}"] += 1
            self.federation.kill(name)
            self.stop.wait(self.rng.uniform(0, 1))
            self.federation.start(name)
            self.federation.wait_ready(name)


class Chaos:
    """The participants of one federation, and what they see."""

    def __init__(self, federation: LocalFederation, findings: Findings, dimension: int) -> None:
        paths = list(federation.made.participants.values())
        retries = RetryPolicy(attempts=40, total=240.0)
        self.members = [Participant.from_config(path, retries=retries) for path in paths]
        self.findings = findings
        self.dimension = dimension
        self.state = "OPEN"
        self._observer = Participant.from_config(paths[0], retries=retries)
        self._observing = threading.Thread(target=self._observe)
        self._observing.start()

    def close(self) -> None:
        """Close all connections."""
        for member in (*self.members, self._observer):
            member.close()
        self._observing.join()

    def _observe(self) -> None:
        with contextlib.suppress(TriskeleError), self._observer.watch(TASK) as views:  # until it is closed
            for view in views:
                self.state = view.state

    def round(self, number: int, pool: ThreadPoolExecutor) -> None:
        """Everybody submits to round `number` and waits for its end."""
        results = list(pool.map(lambda index: self._take_part(number, index), range(len(self.members))))
        self.findings.rounds += 1
        if any(isinstance(result, TimeoutError) for result in results):
            self.findings.hung += 1
            return
        view = self.members[0].round(TASK, number).view
        if view.state != "RELEASED":
            blame = view.blame
            self.findings.failed[f"{view.state}: {blame.reason} ({blame.who})" if blame else view.state] += 1
            self.findings.unnamed += blame is None
            return
        self.findings.released += 1
        names = sorted(str(member.id) for member in self.members)
        present = [names.index(name) for name in view.participants]
        expected = np.mean([update(number, i, len(names), self.dimension) for i in present], axis=0)
        once = len(set(present)) == len(present) and len(view.accepted_slots) == len(present)
        read = [r for r in results if isinstance(r, np.ndarray)] + [self.members[0].round(TASK, number).aggregate()]
        right = all(np.array_equal(r, read[0]) and np.abs(r - expected).max() < GRID / 1024 for r in read)
        self.findings.wrong += not (right and once)

    def _take_part(self, number: int, index: int) -> Vector | BaseException:
        member = self.members[index]
        try:
            with member.watch(TASK, timeout=HUNG_SECONDS) as views:
                for view in views:
                    if view.round >= number:
                        break
            submitted = member.round(TASK, number).submit(update(number, index, len(self.members), self.dimension))
            result: Vector = submitted.result(timeout=HUNG_SECONDS)
        except (RoundFailed, TimeoutError) as error:
            return error
        except TriskeleError as error:  # the deadline passed while somebody was away, above all
            self.findings.not_submitted[type(error).__name__] += 1
            return self._end_of(member, number)
        return result

    def _end_of(self, member: Participant, number: int) -> Vector | BaseException:
        try:
            result: Vector = member.round(TASK, number).aggregate(timeout=HUNG_SECONDS)
        except (RoundFailed, TimeoutError) as error:
            return error
        return result


def run(directory: Path, *, rounds: int, participants: int, dimension: int, seed: int, mean_seconds: float) -> Findings:
    """A federation in `directory`, `rounds` rounds, kills about every `mean_seconds`."""
    spec = TaskSpec(name=TASK, dimension=dimension, clip_norm=CLIP_NORM, max_participants=participants, rule="mean")
    schedule = Schedule(rounds=rounds, quorum=participants, deadline_seconds=60.0, grace_seconds=0.2)
    findings = Findings()
    started = time.monotonic()
    federation = LocalFederation.create(directory, participants=participants, tasks=[ScheduledTask(spec, schedule)])
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with federation, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("rounds", total=rounds)
        chaos = Chaos(federation, findings, dimension)
        rng = random.Random(seed)  # noqa: S311 - when to kill is no secret
        killer = Killer(federation, rng, findings, mean_seconds, lambda: chaos.state)
        thread = threading.Thread(target=killer.run)
        thread.start()
        try:
            with ThreadPoolExecutor(participants) as pool:
                for number in range(1, rounds + 1):
                    chaos.round(number, pool)
                    done = f"{findings.released} released, {findings.wrong} wrong, {findings.kills.total()} kills"
                    progress.update(bar, advance=1, description=done)
        finally:
            killer.stop.set()
            thread.join()
            chaos.close()
        findings.most_attempts = _most_attempts(federation.log(COORDINATOR))
    findings.seconds = round(time.monotonic() - started, 1)
    return findings


def _most_attempts(log: Path) -> int:
    lines = log.read_text("utf-8").splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    return max((int(entry["attempt"]) for entry in entries if "attempt" in entry), default=1)


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1)] = 100,
    participants: Annotated[int, typer.Option(min=2)] = 5,
    dimension: Annotated[int, typer.Option(min=10)] = 20_000,
    seed: int = 0,
    mean_seconds: Annotated[float, typer.Option(help="Between a restart and the next kill, on average.")] = 2.0,
) -> None:
    """Prints the findings as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        findings = run(
            Path(folder) / "federation",
            rounds=rounds,
            participants=participants,
            dimension=dimension,
            seed=seed,
            mean_seconds=mean_seconds,
        )
    print(json.dumps(vars(findings)))
    raise typer.Exit(0 if findings.sound else 1)


if __name__ == "__main__":
    typer.run(main)
