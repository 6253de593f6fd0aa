"""What the processes of a federation take, read from /proc: memory, processor time, descriptors, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of one server's processes: the parent and, of a party, its worker."""

    resident_megabytes: float
    descriptors: int
    threads: int


def usage(process: int) -> Usage:
    """Added up over the process and its children."""
    members = [process, *children(process)]
    status = [_status(member) for member in members]
    return Usage(
        round(sum(s["VmRSS"] for s in status) / 1024, 1),
        sum(len(list(Path(f"/proc/{member}/fd").iterdir())) for member in members),
        sum(s["Threads"] for s in status),
    )


def peak_megabytes(process: int) -> float:
    """The largest resident size so far, of the process and its children."""
    return round(sum(_status(member)["VmHWM"] for member in (process, *children(process))) / 1024, 1)


def own_peak_megabytes(process: int) -> float:
    """The largest resident size so far, without children; of a party that is its intake."""
    return round(_status(process)["VmHWM"] / 1024, 1)


def cpu_seconds(process: int) -> float:
    """Processor time so far, user and system, without children."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children(process: int) -> list[int]:
    """Of all its threads: a party spawns its worker from another one than the first."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for found in lists for number in found.read_text("ascii").split()]


def worker_of(party: int) -> int:
    """The process that computes for a party: its child that has grown largest (another tracks resources)."""
    return max(children(party), key=lambda child: _status(child)["VmHWM"])


def _status(process: int) -> dict[str, int]:
    lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM", "Threads")}
