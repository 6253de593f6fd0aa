"""What the command line shows of uploads and rounds to a person."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from triskele.ids import PartyIndex
from triskele.upload import UploadProgress
from triskele.views import RoundView

_SHOWN_ROUNDS: Final = 10
_COLOURS: Final = {"RELEASED": "green", "FAILED": "red", "EXPIRED": "yellow"}


class UploadBars:
    """A bar for each party from its first byte on; `update` may be called from any thread. Nothing off a terminal."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._bars: dict[PartyIndex, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, progress: UploadProgress) -> None:
        """Show how far the upload to one party is; a party that gets seeds only is full at once."""
        total = progress.total or 1
        with self._lock:
            if not self._bars:
                self._progress.start()
            if progress.party not in self._bars:
                self._bars[progress.party] = self._progress.add_task(f"party {progress.party}", total=total)
            done = total if progress.complete else progress.sent
            self._progress.update(self._bars[progress.party], completed=done)


def show_live(console: Console, task: str, views: Iterable[RoundView]) -> None:
    """Show changes as they come: a table that stays in place on a terminal, one line per change elsewhere."""
    if not console.is_terminal:
        for view in views:
            console.print(progress_line(view), soft_wrap=True)
        return
    latest: dict[int, RoundView] = {}
    with Live(console=console, auto_refresh=False) as live:
        for view in views:
            latest[view.round] = view
            shown = [latest[number] for number in sorted(latest)][-_SHOWN_ROUNDS:]
            live.update(Group(rounds_table(task, shown), progress_line(view)), refresh=True)


def progress_line(view: RoundView) -> Text:
    """One change of a round in one line."""
    line = Text(time.strftime("%H:%M:%S "), style="dim")
    line.append(f"round {view.round} ", style="bold")
    line.append(view.state.ljust(9), style=_COLOURS.get(view.state, "cyan"))
    line.append(f" enrolled {view.enrolled}, uploaded {view.uploaded} of {view.quorum}")
    if view.decisions_public and view.state == "RELEASED":
        line.append(f", accepted {len(view.accepted_slots)}")
    if view.refused:
        line.append(f", invalid {len(view.refused)}")
    if view.blame is not None:
        line.append(f", {_blame(view)}", style="red")
    return line


def rounds_table(task: str, views: Iterable[RoundView]) -> Table:
    """All rounds of a task; whole numbers and names on 80 columns. Invalid: refused before the rule saw them."""
    table = Table(title=f"Rounds of {task}", title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("round", "state", "enrolled", "uploaded", "quorum", "accepted", "invalid", "reason"):
        words = heading == "reason"
        table.add_column(heading, justify="left" if words or heading == "state" else "right", no_wrap=not words)
    for view in views:
        table.add_row(
            str(view.round),
            Text(view.state, style=_COLOURS.get(view.state, "cyan")),
            str(view.enrolled),
            str(view.uploaded),
            str(view.quorum),
            str(len(view.accepted_slots)) if view.decisions_public else "hidden",
            str(len(view.refused)),
            Text(_blame(view)),  # as text: what comes from others is never read as markup
        )
    return table


def _blame(view: RoundView) -> str:
    if view.blame is None:
        return ""
    return f"{view.blame.reason} ({view.blame.who})" + (f": {view.blame.detail}" if view.blame.detail else "")
