"""All cells of the benchmark, in worker processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from bench.robustness.data import DATA_SETS
from bench.robustness.defences import Execution
from bench.robustness.training import Cell, RoundReport, train
from triskele.errors import InvalidTask

_limits: list[threadpool_limits] = []  # of this worker process; they end when the object does


@dataclass(frozen=True)
class CellResult:
    """What a cell gave: the model after each round, or why the rule was refused."""

    cell: Cell
    rounds: tuple[RoundReport, ...]
    failed_rounds: int
    refused: str | None
    seconds: float


def cells(
    *,
    data_sets: Iterable[str],
    participants: Iterable[int],
    defences: Iterable[str],
    attacks: Iterable[str],
    seeds: Iterable[int],
    rounds: int | None = None,
) -> list[Cell]:
    """Every combination; ``rounds`` None takes the data set's own number."""
    return [
        Cell(data, n, defence, attack, seed, rounds or DATA_SETS[data].rounds)
        for seed, data, n, defence, attack in product(seeds, data_sets, participants, defences, attacks)
    ]


def run(plan: Sequence[Cell], execution: Execution, *, workers: int, console: Console) -> list[CellResult]:
    """Train every cell; in the order of the plan. The first error ends the run."""
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    results: dict[Cell, CellResult] = {}
    # Spawned: torch and numba have threads, which a forked child would miss.
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare) as pool,
    ):
        bar = progress.add_task("training", total=len(plan))
        running = [pool.submit(run_cell, cell, execution) for cell in plan]
        try:
            for future in as_completed(running):
                result = future.result()
                results[result.cell] = result
                progress.update(bar, advance=1, description=_last(result))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[cell] for cell in plan]


def run_cell(cell: Cell, execution: Execution) -> CellResult:
    """One training run, here."""
    started = time.perf_counter()
    try:
        reports, failed = train(cell, execution)
        refused = None
    except InvalidTask as error:
        reports, failed, refused = [], 0, str(error)
    return CellResult(cell, tuple(reports), failed, refused, time.perf_counter() - started)


def _prepare() -> None:
    """One BLAS and one torch thread per worker: more of them would only wait for each other."""
    _limits.append(threadpool_limits(1))
    torch.set_num_threads(1)


def _last(result: CellResult) -> str:
    cell = result.cell
    outcome = "refused" if result.refused else f"{result.rounds[-1].accuracy:.1%}"
    return f"{cell.data}, {cell.participants} participants, {cell.defence}, {cell.attack}: {outcome}"
