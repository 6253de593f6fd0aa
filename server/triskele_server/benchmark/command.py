"""The command `triskele bench`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


def run_bench(
    *,
    participants: Annotated[int, typer.Option(min=6, max=1000, help="How many participants.")] = 20,
    dimension: Annotated[int, typer.Option(min=1000, help="Parameters of the model.")] = 100_000,
    rule: Annotated[str, typer.Option(help="Rule of the secure round; stages before it, joined by +.")] = "norm-clip",
    decisions: Annotated[str, typer.Option(help="public or hidden.")] = "public",
    ring: Annotated[str, typer.Option(help="Bits of a word: 32, 64, or auto, as a task file's `ring`.")] = "auto",
    latency_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that each frame between parties is held back.")
    ] = 0.0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Halves and quarters too, and how the cost grows.")] = False,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file; - for standard output.")
    ] = None,
) -> None:
    """Measure a secure round beside a plaintext FedAvg round: real processes on this machine, mutual TLS."""
    from rich.console import Console  # noqa: PLC0415  keeps `triskele --help` fast

    from triskele.errors import InvalidTask  # noqa: PLC0415  the same
    from triskele_server.benchmark import report as reports  # noqa: PLC0415  the same
    from triskele_server.benchmark.measure import run  # noqa: PLC0415  the same
    from triskele_server.benchmark.operations import OPERATIONS, measured  # noqa: PLC0415  the same
    from triskele_server.benchmark.scene import Scene  # noqa: PLC0415  the same
    from triskele_server.benchmark.sweep import growth, sizes  # noqa: PLC0415  the same
    from triskele_server.rules import check_task  # noqa: PLC0415  the same

    if decisions not in ("public", "hidden"):
        raise InvalidTask(f"decisions {decisions!r} is neither 'public' nor 'hidden'")
    given: Any = decisions  # one of the two now
    bits: Any = int(ring) if ring.isdigit() else ring  # the scene's task refuses others
    scene = Scene(participants, dimension, rule, given, bits, latency_ms / 1000)
    check_task(scene.task().spec)
    told = Console(stderr=True)
    load = os.getloadavg()
    rounds = run(sizes(scene) if sweep else [scene], lambda text: told.print(text, highlight=False))
    costs = {name: measured(operation) for name, operation in OPERATIONS.items()}
    fitted = growth(rounds) if sweep else None
    content = reports.as_json(rounds, fitted, costs, load)
    if report == Path("-"):
        typer.echo(json.dumps(content))
        return
    reports.show(Console(), rounds, fitted, costs)
    if report is not None:
        report.write_text(json.dumps(content, indent=2), "utf-8")
