"""A federation's status on a terminal, which may be 80 columns wide: names and numbers are never cut, words wrap."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from triskele_server.operations.status import ServerStatus, Status, TaskStatus

_COLOURS: Final = {"RELEASED": "green", "FAILED": "red", "EXPIRED": "red", "OPEN": "yellow"}
_TO_THE_RIGHT: Final = ("left", "released", "failed")


def shown(status: Status, at: datetime.datetime, every: float | None = None) -> Group:
    """The whole screen; `every` so many seconds it is drawn anew, None: once."""
    return Group(*_parts(status, at, every))


def _parts(status: Status, at: datetime.datetime, every: float | None) -> Iterator[RenderableType]:
    yield _headline(status, at, every)
    yield Text()
    yield _servers(status.servers)
    for server in status.servers:
        if server.problem:
            yield _remark(f"{server.name}: {server.problem}", "yellow" if server.up else "red")
    yield Text()
    if not status.tasks:
        yield _remark("no tasks, or none that can be asked for", "dim")
        return
    yield _tasks(status.tasks)
    for task in status.tasks:
        if task.last_failure:
            yield _remark(f"{task.name}: {task.last_failure}", "red")


def _headline(status: Status, at: datetime.datetime, every: float | None) -> Table:
    up = sum(server.up for server in status.servers)
    colour = "green" if status.well else "red"
    left = Text.assemble((status.federation, "bold"), "  ", (f"{up} of {len(status.servers)} servers up", colour))
    repeated = "" if every is None else f"  every {every:g} s, Ctrl-C ends"
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(left, Text(f"{at:%H:%M:%S} UTC{repeated}", "dim"))
    return line


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        side: Literal["left", "right"] = "right" if heading in _TO_THE_RIGHT else "left"
        table.add_column(heading, justify=side, no_wrap=heading != "address", overflow="fold")
    return table


def _servers(servers: tuple[ServerStatus, ...]) -> Table:
    table = _table("server", "state", "version", "clock", "address")
    for server in servers:
        state = Text("down", "bold red")
        if server.up:
            state = Text("up", "yellow" if server.problem else "green")
        clock = f"{server.clock_ahead:+.1f} s" if server.up else ""
        table.add_row(server.name, state, Text(server.version), clock, Text(server.address))
    return table


def _tasks(tasks: tuple[TaskStatus, ...]) -> Table:
    table = _table("task", "round", "state", "uploads", "left", "released", "failed")
    for task in tasks:
        state = Text("finished" if task.finished else task.state, _COLOURS.get(task.state, "cyan"))
        table.add_row(
            Text(task.name),
            f"{task.current_round} of {task.rounds}",
            state,
            Text(f"{task.uploaded} of {task.quorum}", "green" if task.uploaded >= task.quorum else ""),
            "" if task.seconds_left is None else f"{task.seconds_left:.0f} s",
            str(task.released),
            Text(str(task.failed), "red" if task.failed else ""),
        )
    return table


def _remark(text: str, colour: str) -> Padding:
    return Padding(Text(text, colour), (0, 0, 0, 2))
