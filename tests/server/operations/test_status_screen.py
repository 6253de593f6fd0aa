"""What an operator reads of `triskele status` and `triskele top` on a terminal of the usual 80 columns."""

from __future__ import annotations

import datetime
import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from triskele_server.operations.status import ServerStatus, Status, TaskStatus
from triskele_server.operations.status_screen import shown

NOW = datetime.datetime(2026, 11, 24, 16, 30, 21, tzinfo=datetime.UTC)
AWAY = "nobody listens there (Connection refused): start it, or correct the address or its listen setting"
SERVERS = tuple(
    ServerStatus(name, f"triskele.{place}.example:443", up=True, version="0.1.0", clock_ahead=-0.04)
    for name, place in (("coordinator", "consortium"), ("party 0", "bank"), ("party 1", "hospital"), ("party 2", "uni"))
)
LOST = "round 7 FAILED: party_fault (party:1)"
OPEN = TaskStatus("face-model-of-banks", "flame", 200, 112, False, "OPEN", 20, 12, 20, 3599.6, 110, 1, LOST)
FINISHED = replace(OPEN, name="voices", state="RELEASED", finished=True, seconds_left=None, failed=0, last_failure="")
STATUS = Status("consortium.example", SERVERS, (OPEN, FINISHED))


def lines(status: Status, every: float | None = None, **how: object) -> list[str]:
    console = Console(width=80, file=io.StringIO(), force_terminal=False, highlight=False, **how)  # type: ignore[arg-type]
    console.print(shown(status, NOW, every))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_names_and_numbers_are_whole_on_80_columns() -> None:
    seen = lines(STATUS)
    assert seen[0].split() == ["consortium.example", "4", "of", "4", "servers", "up", "16:30:21", "UTC"]
    assert [line for line in seen if line.startswith("party 1")] == [
        "party 1      up     0.1.0    -0.0 s  triskele.hospital.example:443"
    ]
    (task,) = (line for line in seen if line.startswith("face-model-of-banks"))
    assert re.split(" {2,}", task)[1:] == ["112 of 200", "OPEN", "12 of 20", "3600 s", "110", "1"]
    assert re.split(" {2,}", seen[-2]) == ["voices", "112 of 200", "finished", "12 of 20", "110", "0"]
    assert not [line for line in seen if "…" in line or len(line) > 80]


def test_what_is_wrong_stands_in_whole_sentences_below() -> None:
    away = replace(SERVERS[2], up=False, version="", problem=AWAY)
    seen = lines(replace(STATUS, servers=(*SERVERS[:2], away, SERVERS[3])))
    assert "3 of 4 servers up" in seen[0]
    assert "party 1      down                    triskele.hospital.example:443" in seen
    assert f"party 1: {AWAY}" in " ".join(line.strip() for line in seen)
    assert "  face-model-of-banks: round 7 FAILED: party_fault (party:1)" in seen


def test_top_says_how_often_it_looks_and_how_it_ends() -> None:
    assert lines(STATUS, every=2.0)[0].endswith("16:30:21 UTC  every 2 s, Ctrl-C ends")


@pytest.mark.parametrize("tasks", [(), (OPEN,)])
def test_a_terminal_without_unicode_gets_ascii(tasks: tuple[TaskStatus, ...]) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(width=80, file=file, force_terminal=False)
    console.print(shown(replace(STATUS, tasks=tasks), NOW))  # UnicodeEncodeError otherwise
