"""Many participants at once, and many rounds in a row, against real processes: `python -m bench.load --help`.

burst: every participant enrols and uploads at the same moment, each over its own connections.
soak: what memory, descriptors, threads and disk of the servers do over many rounds.
Both compare every aggregate with numpy's mean and print JSON; exit code 1 if one is wrong.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triskele import Participant
from triskele.connection import RetryPolicy
from triskele.errors import TriskeleError
from triskele.task import TaskSpec
from triskele_server.benchmark.processes import Usage, peak_megabytes, usage
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

TASK: Final = "load"
CLIP_NORM: Final = 4.0
GRID: Final = CLIP_NORM / 2**20
RETRIES: Final = RetryPolicy(attempts=40, total=600.0)
CLIENT_PROCESSES: Final = 4
WAIT_SECONDS: Final = 900.0
WARM_UP: Final = 0.25  # of a soak's rounds: caches fill, allocators settle
Vector = NDArray[np.float64]

app = typer.Typer(add_completion=False, help=__doc__)


def update(number: int, index: int, dimension: int) -> Vector:
    """On the encoding's grid, of norm about 1."""
    rng = np.random.default_rng([number, index])
    return np.round(rng.normal(0, 1 / np.sqrt(dimension), dimension) / GRID) * GRID


def disk_megabytes(federation: LocalFederation) -> dict[str, float]:
    """What the data folders of all servers hold: released aggregates, which stay; databases with logs; the rest."""
    found = dict.fromkeys(("results", "databases", "rest"), 0)
    for path in federation.made.directory.glob("*/data/**/*"):
        if path.is_file():
            database = ".db" in path.name
            kind = "results" if path.parent.name == "results" else "databases" if database else "rest"
            found[kind] += path.stat().st_size
    return {kind: round(size / 1e6, 3) for kind, size in found.items()}


@contextmanager
def serving(participants: int, dimension: int, rounds: int) -> Iterator[LocalFederation]:
    """A running federation with one task; nothing is left of it afterwards."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    spec = TaskSpec(name=TASK, dimension=dimension, clip_norm=CLIP_NORM, max_participants=participants, rule="mean")
    schedule = Schedule(rounds=rounds, quorum=participants, deadline_seconds=WAIT_SECONDS, grace_seconds=0.0)
    with tempfile.TemporaryDirectory() as folder:
        federation = LocalFederation.create(
            Path(folder) / "federation", participants=participants, tasks=[ScheduledTask(spec, schedule)]
        )
        with federation:
            yield federation


# ---- burst --------------------------------------------------------------------------------------------------------


def submit_all(paths: Sequence[Path], first: int, dimension: int, start_at: float) -> dict[str, Any]:
    """One client process: a thread and a `Participant` for each path; all submit at `start_at` (Unix seconds)."""
    errors: Counter[str] = Counter()
    seconds: list[float] = []

    def submit(offset: int) -> None:
        try:
            with Participant.from_config(paths[offset], retries=RETRIES) as member:
                row = update(1, first + offset, dimension)
                time.sleep(max(0.0, start_at - time.time()))
                next(member.rounds(TASK)).submit(row)
                seconds.append(time.time() - start_at)
        except TriskeleError as error:
            errors[f"{type(error).__name__}: {error}"[:120]] += 1

    threads = [threading.Thread(target=submit, args=(offset,)) for offset in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": seconds, "errors": errors}


@app.command()
def burst(*, participants: int = 1000, dimension: int = 100_000) -> None:
    """All participants at once: how long until the last upload is complete, and until the release."""
    with serving(participants, dimension, rounds=1) as federation:
        paths = list(federation.made.participants.values())
        parts = np.array_split(np.arange(participants), CLIENT_PROCESSES)
        start_at = time.time() + 5 + participants / 50
        with ProcessPoolExecutor(CLIENT_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [
                pool.submit(submit_all, [paths[i] for i in part], int(part[0]), dimension, start_at) for part in parts
            ]
            with Participant.from_config(paths[0], retries=RETRIES) as member:
                mean = next(member.rounds(TASK)).aggregate(timeout=WAIT_SECONDS)
                released = time.time() - start_at
                view = member.round(TASK, 1).view
            done = [future.result() for future in running]
        expected = np.zeros(dimension)
        for index in range(participants):
            expected += update(1, index, dimension) / participants
        right = bool(np.abs(mean - expected).max() < GRID / 1024) and len(view.participants) == participants
        seconds = np.sort(np.concatenate([d["seconds"] for d in done]))
        _print(
            participants=participants,
            dimension=dimension,
            right=right,
            uploads={"median": _rounded(np.median(seconds)), "last": _rounded(seconds[-1])},
            released=_rounded(released),
            errors=dict(sum((d["errors"] for d in done), Counter())),
            peak_megabytes={name: peak_megabytes(p) for name, p in federation.process_ids().items()},
        )
    raise typer.Exit(0 if right else 1)


# ---- soak ---------------------------------------------------------------------------------------------------------


@app.command()
def soak(
    *,
    rounds: Annotated[int, typer.Option(min=8)] = 200,
    participants: int = 20,
    dimension: int = 10_000,
    every: Annotated[int, typer.Option(min=1, help="Rounds between two samples.")] = 10,
) -> None:
    """Many rounds in a row: what grows, between the end of the warm-up and the last round."""
    samples: list[dict[str, Usage]] = []
    disk: list[dict[str, float]] = []
    wrong = 0
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with (
        serving(participants, dimension, rounds) as federation,
        ThreadPoolExecutor(participants) as pool,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("rounds", total=rounds)
        members = [Participant.from_config(path) for path in federation.made.participants.values()]
        started = time.monotonic()
        tasks = [member.rounds(TASK) for member in members]

        def take_part(index: int) -> Vector:
            open_round = next(tasks[index])
            mean: Vector = open_round.submit(update(open_round.number, index, dimension)).result(timeout=WAIT_SECONDS)
            return mean

        for number in range(1, rounds + 1):
            results = list(pool.map(take_part, range(participants)))
            expected = np.mean([update(number, index, dimension) for index in range(participants)], axis=0)
            wrong += any(np.abs(result - expected).max() > GRID / 1024 for result in results)
            if number % every == 0:
                samples.append({name: usage(p) for name, p in federation.process_ids().items()})
                disk.append(disk_megabytes(federation))
            progress.update(bar, advance=1)
        seconds = time.monotonic() - started
        for member in members:
            member.close()
    warm = int(len(samples) * WARM_UP)
    _print(
        rounds=rounds,
        participants=participants,
        dimension=dimension,
        wrong=wrong,
        seconds_per_round=_rounded(seconds / rounds),
        after_warm_up={name: vars(u) for name, u in samples[warm].items()},
        at_the_end={name: vars(u) for name, u in samples[-1].items()},
        disk_megabytes={"after_warm_up": disk[warm], "at_the_end": disk[-1]},
    )
    raise typer.Exit(1 if wrong else 0)


def _rounded(value: Any) -> float:
    return round(float(value), 2)


def _print(**report: Any) -> None:
    print(json.dumps(report))


if __name__ == "__main__":
    app()
