"""`python -m bench.robustness`: see `--help`, and docs/robustness.md for what it measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from bench.robustness import report
from bench.robustness.attacks import ATTACKS
from bench.robustness.data import DATA_SETS
from bench.robustness.defences import DEFENCES, Execution
from bench.robustness.run import cells, run

DATA = ("digits-0.5", "digits-0.1", "faces")
PARTICIPANTS = (20, 50)
LARGE = 50
LARGE_RULES = ("mean", "norm-clip", "multi-krum", "flame", "fltrust")
"""Rules that are run for LARGE participants and more, if the command line names none."""


app = typer.Typer(add_completion=False)


@app.command()
def main(
    *,
    rules: Annotated[
        str, typer.Option(help=f"Of: {', '.join(DEFENCES)}. Default: all; five for 50 participants.")
    ] = "",
    attacks: Annotated[str, typer.Option(help=f"Of: {', '.join(ATTACKS)}. Default: all.")] = "",
    datasets: Annotated[str, typer.Option(help=f"Of: {', '.join(DATA_SETS)}.")] = ",".join(DATA),
    participants: Annotated[str, typer.Option(help="Numbers of participants; 20 % of them are malicious.")] = "20,50",
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: the data set's own.")] = None,
    seeds: Annotated[str, typer.Option(help="Results are averaged over these.")] = "0",
    gram: Annotated[Literal["auto", "exact", "sketch"], typer.Option(help="As in a task.")] = "auto",
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Rules in the clear instead of by three parties.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    out: Annotated[Path, typer.Option(help="Markdown page; the heat map is written beside it.")] = Path(
        "build/robustness.md"
    ),
    json: Annotated[Path | None, typer.Option(help="Every round of every run.")] = None,
) -> None:
    """Federated training under attack: every rule against every attack. Lists are separated by commas."""
    command = shlex.join(["python", "-m", "bench.robustness", *sys.argv[1:]])
    execution = Execution(plaintext, gram)
    chosen_attacks = _listed("attacks", attacks, ATTACKS)
    chosen_data = _listed("datasets", datasets, DATA_SETS)
    chosen_seeds = [_number("seeds", seed) for seed in seeds.split(",")]
    plan = []
    for data in chosen_data:
        for n in [_number("participants", number) for number in participants.split(",")]:
            default = LARGE_RULES if n >= LARGE else tuple(DEFENCES)
            chosen = _listed("rules", rules, DEFENCES) if rules else default
            plan += cells(
                data_sets=[data],
                participants=[n],
                defences=chosen,
                attacks=chosen_attacks,
                seeds=chosen_seeds,
                rounds=rounds,
            )
    console = Console(stderr=True)
    results = run(plan, execution, workers=workers, console=console)
    found = report.panels(results)
    measured = report.markdown(found, command=command, execution=execution, seeds=chosen_seeds)
    report.write_between_markers(out, measured)
    report.heat_map(found, out.with_suffix(".png"))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(report.as_json(results, command=command, execution=execution), "utf-8")
    console.print(f"{out}, {out.with_suffix('.png')}{f', {json}' if json else ''}")


def _listed(option: str, given: str, known: Collection[str]) -> list[str]:
    names = given.split(",") if given else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"unknown {unknown[0]!r}; known: {', '.join(known)}", param_hint=f"--{option}")
    return names


def _number(option: str, given: str) -> int:
    if not given.isdecimal():
        raise typer.BadParameter(f"{given!r} is not a number", param_hint=f"--{option}")
    return int(given)


if __name__ == "__main__":
    app()
