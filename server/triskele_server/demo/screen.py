"""What the demo shows: a live view of the round under way, and the tables at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triskele import RoundView
from triskele_server.demo.experiment import RoundReport

PLAIN: Final = "FedAvg"
"""How plain averaging is called beside the names of rules."""

_RULES_SIDE_BY_SIDE: Final = 2
_NUMBER_WIDTH: Final = 6  # "100.0%"
_PHASES = ("OPEN", "SEALED", "CHECKED", "FILTERED", "COMBINED", "RELEASED")
_ACCEPTED: Final = MappingProxyType({"flame": "in the majority cluster", "fltrust": "positive trust"})


class Screen:
    """A live view on a terminal; on anything else, one line per round."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._rounds = rounds
        self._lock = threading.Lock()
        self._view: RoundView | None = None
        self._attack, self._aggregation = "", PLAIN
        self._reports: list[RoundReport] = []
        self._started = time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, highlight=False)

    def begin(self, attack: str, aggregation: str) -> None:
        """A new training run, under PLAIN or a rule."""
        with self._lock:
            self._attack, self._aggregation, self._view, self._reports = attack, aggregation, None, []
        if not self._console.is_terminal:
            self.say(self._run())

    def show(self, view: RoundView) -> None:
        """The round under way has changed."""
        with self._lock:
            self._view = view

    def report(self, report: RoundReport) -> None:
        """A round of training is over."""
        with self._lock:
            self._reports.append(report)
        if not self._console.is_terminal:
            self.say(f"  {report.round}/{self._rounds}  {_outcome(report)}")

    def _run(self) -> str:
        """Attack, aggregation, and what it means to be accepted."""
        if self._aggregation == PLAIN:
            return f"{self._attack}, plain averaging"
        meaning = _ACCEPTED.get(self._aggregation)
        return f"{self._attack}, Triskele with {self._aggregation}" + (f" (accepted: {meaning})" if meaning else "")

    def _render(self) -> RenderableType:
        with self._lock:
            view, reports, run = self._view, list(self._reports), self._run()
        lines: list[RenderableType] = [Text(f"{run}   {time.monotonic() - self._started:.0f} s", style="bold")]
        done = len(reports) / self._rounds
        lines.append(ProgressBar(total=1.0, completed=done, width=60))
        if view is not None:
            reached = _PHASES.index(view.state) if view.state in _PHASES else -1
            phases = Text(f"round {view.round}  ")
            for i, phase in enumerate(_PHASES):
                phases.append(phase + " ", style="green" if i < reached else "bold yellow" if i == reached else "dim")
            lines += [phases, Text(f"uploads {view.uploaded}/{view.quorum}")]
        lines += [Text(f"{r.round}/{self._rounds}  {_outcome(r)}") for r in reports[-4:]]
        return Group(*lines)


def _outcome(report: RoundReport) -> str:
    parts = [f"accuracy {report.accuracy:6.1%}"]
    if report.backdoor_success is not None:
        parts.append(f"backdoor {report.backdoor_success:6.1%}")
    if report.accepted is not None:
        refused = int((~report.accepted).sum())
        parts.append(
            f"accepted {int(report.accepted.sum())} ({report.malicious_accepted} malicious), refused {refused}"
        )
    return "  ".join(parts)


def final_tables(results: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> list[Table]:
    """Plain averaging beside Triskele with each rule, after the last round; and what each rule let in on the way."""
    malicious, participants = results[0]["malicious"], results[0]["participants"]
    after = f"After the last round: plain averaging ({PLAIN}) and Triskele's rules"
    on_the_way = "Updates accepted, mean of the rounds"
    everybody = (PLAIN, *rules)
    groups = [
        (after, "accuracy", _Cells(everybody, "accuracy", _last_percentage)),
        (after, "backdoor", _Cells(everybody, "backdoor_success", _last_percentage)),
        (on_the_way, f"of {malicious} malicious", _Cells(rules, "malicious_accepted", _mean)),
        (on_the_way, f"of {participants - malicious} honest", _Cells(rules, "honest_accepted", _mean)),
    ]
    # Two groups fit side by side into 80 characters as long as there are at most two rules.
    together = [groups[:2], groups[2:]] if len(rules) <= _RULES_SIDE_BY_SIDE else [[group] for group in groups]
    return [_table(results, side_by_side) for side_by_side in together]


def inversion_table(rebuilt: Sequence[Mapping[str, Any]]) -> Table:
    """How like a participant's photograph each attacker's picture of it was."""
    table = Table(title="Rebuilt from an update of one photograph: similarity (SSIM)", box=box.SIMPLE_HEAD)
    table.add_column("the attacker has", no_wrap=True)
    table.add_column("mean", justify="right")
    table.add_column("largest", justify="right")
    for one in rebuilt:
        scores = one["similarities"]
        table.add_row(one["attacker"], f"{sum(scores) / len(scores):.2f}", f"{max(scores):.2f}")
    return table


def _table(results: Sequence[Mapping[str, Any]], groups: Sequence[tuple[str, str, _Cells]]) -> Table:
    """A row per attack; in each group a column per run, the group's name above the first."""
    table = Table(title=groups[0][0], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("attack", no_wrap=True)
    for _, name, cells in groups:
        for run in cells.runs:
            title = f"{name if run == cells.runs[0] else ''}\n{run}"
            table.add_column(title, justify="right", min_width=_NUMBER_WIDTH)
    for result in results:
        table.add_row(result["attack"], *(text for _, _, cells in groups for text in cells.of(result)))
    return table


@dataclass(frozen=True)
class _Cells:
    """One measure of several training runs under the same attack."""

    runs: Sequence[str]
    measure: str
    summary: Callable[[Sequence[Any]], str]

    def of(self, result: Mapping[str, Any]) -> list[str]:
        return [self.summary([report[self.measure] for report in result["runs"][run]]) for run in self.runs]


def _last_percentage(fractions: Sequence[float | None]) -> str:
    return "–" if fractions[-1] is None else f"{fractions[-1]:.1%}"


def _mean(counts: Sequence[int | None]) -> str:
    known = [count for count in counts if count is not None]
    return "hidden" if len(known) < len(counts) else f"{sum(known) / len(known):.1f}"
