"""What was measured, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from triskele_server.benchmark.measure import Comparison, Measured, plain_update_bytes
from triskele_server.benchmark.operations import Cost
from triskele_server.benchmark.sweep import DATA_PATH, LEAST_DIMENSION, Growth


def as_json(
    measured: Sequence[Comparison],
    growth: Growth | None,
    operations: Mapping[str, Sequence[Cost]],
    load: Sequence[float],
) -> dict[str, Any]:
    """Everything that the tables show. `load`: the machine's load averages before the run."""
    report: dict[str, Any] = {"load_before": [round(x, 1) for x in load], "rounds": [_round(c) for c in measured]}
    if growth is not None:
        report["growth"] = {
            "data_path_exponent": round(growth.exponent, 3),
            "plain_exponent": round(growth.plain_exponent, 3),
            "whole_exponent": round(growth.whole_exponent, 3),
            "filter_spread_over_dimension": {str(n): round(x, 2) for n, x in growth.filter_spread.items()},
        }
    if operations:
        report["operations"] = {
            name: {
                "chain": max(cost.depth for cost in costs),
                "waits": [cost.rounds for cost in costs],
                "bytes_per_element": [cost.sent for cost in costs],
            }
            for name, costs in operations.items()
        }
    return report


def _round(c: Comparison) -> dict[str, Any]:
    scene = c.scene
    return {
        "participants": scene.participants,
        "dimension": scene.dimension,
        "rule": scene.rule,
        "decisions": scene.decisions,
        "ring_bits": scene.task().spec.ring_bits,
        "latency_ms": scene.link_delay * 1000,
        "ratio": round(c.ratio, 2),
        "cpu_ratio": round(c.cpu_ratio, 2),
        "upload_ratio": round(_upload_ratio(c), 4),
        "phases": {name: round(seconds, 3) for name, seconds in c.phases.items()},
        "between_parties": {
            name: {"rounds": step.rounds, "bytes_sent": step.bytes_sent} for name, step in c.steps.items()
        },
        "secure": _side(c.secure),
        "plain": [_side(plain) for plain in c.plain],
    }


def _side(measured: Measured) -> dict[str, Any]:
    return {
        "wall_seconds": round(measured.times.wall, 3),
        "upload_seconds": round(measured.times.upload, 3),
        "upload_bytes_per_participant": measured.upload_bytes // len(measured.times.done),
        "cpu_seconds": {name: round(p.cpu_seconds, 2) for name, p in measured.processes.items()},
        "peak_megabytes": {name: round(p.peak_megabytes, 1) for name, p in measured.processes.items()},
    }


def _upload_ratio(c: Comparison) -> float:
    """Bytes that a participant uploads by those of its update as float32."""
    return c.secure.upload_bytes / c.scene.participants / plain_update_bytes(c.scene)


def show(
    console: Console, measured: Sequence[Comparison], growth: Growth | None, operations: Mapping[str, Sequence[Cost]]
) -> None:
    """The tables."""
    if len(measured) > 1:
        console.print(_sizes(measured))
    else:
        for c in measured:
            console.print(_phases(c), _processes(c))
    for c in measured[-1:]:
        console.print(
            f"{c.scene.rule}, {c.scene.participants} participants, {c.scene.dimension:,} parameters, "
            f"{c.scene.task().spec.ring_bits} bits: secure "
            f"{c.secure.times.wall:.2f} s, plaintext {c.plain_wall:.2f} s, ratio {c.ratio:.2f} "
            f"(processor time: {c.secure.cpu_seconds:.1f} s and {c.plain_cpu_seconds:.1f} s, ratio {c.cpu_ratio:.2f}); "
            f"a participant uploads {_upload_ratio(c):.3f} times its float32 update",
            highlight=False,
        )
    if growth is not None:
        spread = ", ".join(f"{x:.2f} at n = {n}" for n, x in growth.filter_spread.items())
        console.print(
            f"The data path, beyond what the same participants take with {LEAST_DIMENSION} parameters, grows as "
            f"(n·d)^{growth.exponent:.2f}, the plaintext round so as (n·d)^{growth.plain_exponent:.2f}; whole rounds "
            f"as (n·d)^{growth.whole_exponent:.2f}; the filter's longest time over the dimensions by its shortest: "
            f"{spread}",
            highlight=False,
        )
    if operations:
        console.print(_operations(operations))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _phases(c: Comparison) -> Table:
    table = _table("Secure round by phase", "phase", "seconds", "rounds between parties", "MB sent per party")
    for name, seconds in c.phases.items():
        step = c.steps.get(name)
        rounds, sent = ("", "") if step is None else (str(step.rounds), f"{step.bytes_sent / 1e6:.2f}")
        table.add_row(name, f"{seconds:.2f}", rounds, sent)
    return table


def _processes(c: Comparison) -> Table:
    table = _table("Processes", "process", "CPU seconds", "peak MB")
    for label, measured in (("", c.secure), ("plaintext before: ", c.plain[0]), ("after: ", c.plain[1])):
        for name, process in measured.processes.items():
            table.add_row(label + name, f"{process.cpu_seconds:.2f}", f"{process.peak_megabytes:.0f}")
    return table


def _sizes(measured: Sequence[Comparison]) -> Table:
    """Fits 80 columns; what is left out is in the JSON."""
    names = [*DATA_PATH, "filter"]
    table = _table("Seconds by size", "n", "d", "secure", "plain", "ratio", *names)
    table.box, table.padding = None, (0, 2, 0, 0)
    for c in measured:
        figures = (c.secure.times.wall, c.plain_wall, c.ratio, *(c.phases.get(name, 0.0) for name in names))
        table.add_row(str(c.scene.participants), str(c.scene.dimension), *(f"{x:.2f}" for x in figures))
    return table


def _operations(operations: Mapping[str, Sequence[Cost]]) -> Table:
    table = _table("Operations of the engine", "operation", "chain", "bytes sent per element, parties 0, 1, 2")
    for name, costs in operations.items():
        table.add_row(name, str(max(cost.depth for cost in costs)), "  ".join(f"{cost.sent:.1f}" for cost in costs))
    return table
