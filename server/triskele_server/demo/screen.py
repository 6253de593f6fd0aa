"""What the demo shows: a live view of the round under way, and the table at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triskele import RoundView
from triskele_server.demo.experiment import RoundReport

_PHASES = ("OPEN", "SEALED", "CHECKED", "FILTERED", "COMBINED", "RELEASED")


class Screen:
    """A live view on a terminal; on anything else, one line per round."""

    def __init__(self, console: Console, participants: int, rounds: int) -> None:
        self._console = console
        self._participants = participants
        self._rounds = rounds
        self._lock = threading.Lock()
        self._view: RoundView | None = None
        self._run = ""
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

    def begin(self, run: str) -> None:
        """A new training run."""
        with self._lock:
            self._run, self._view, self._reports = run, None, []

    def show(self, view: RoundView) -> None:
        """The round under way has changed."""
        with self._lock:
            self._view = view

    def report(self, report: RoundReport) -> None:
        """A round of training is over."""
        with self._lock:
            self._reports.append(report)
        if not self._console.is_terminal:
            self.say(f"  {self._run}: round {report.round}/{self._rounds}  {_outcome(report)}")

    def _render(self) -> RenderableType:
        with self._lock:
            view, reports = self._view, list(self._reports)
        lines: list[RenderableType] = [Text(f"{self._run}   {time.monotonic() - self._started:.0f} s", style="bold")]
        done = len(reports) / self._rounds
        lines.append(ProgressBar(total=1.0, completed=done, width=60))
        if view is not None:
            reached = _PHASES.index(view.state) if view.state in _PHASES else -1
            phases = Text(f"round {view.round}  ")
            for i, phase in enumerate(_PHASES):
                phases.append(phase + " ", style="green" if i < reached else "bold yellow" if i == reached else "dim")
            lines += [phases, Text(f"uploads {view.uploaded}/{self._participants}")]
        lines += [Text(f"round {r.round}: {_outcome(r)}") for r in reports[-4:]]
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


def final_table(results: Sequence[Mapping[str, Any]], rule: str) -> Table:
    """Accuracy and backdoor success after the last round, plain averaging beside Triskele."""
    table = Table(title=f"After the last round: plain federated averaging (FedAvg) and Triskele with {rule}")
    table.add_column("attack", no_wrap=True)
    for measure in ("accuracy", "backdoor"):
        for who in ("FedAvg", "Triskele"):
            table.add_column(f"{measure}\n{who}", justify="right")
    table.add_column("malicious\naccepted", justify="right")
    for result in results:
        plain, secure = result["plain"][-1], result["triskele"][-1]
        accepted = [r["malicious_accepted"] for r in result["triskele"]]
        table.add_row(
            result["attack"],
            *(_percent(r[measure]) for measure in ("accuracy", "backdoor_success") for r in (plain, secure)),
            "hidden" if None in accepted else f"{sum(accepted) / len(accepted):.1f} of {result['malicious']}",
        )
    return table


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.1%}"
