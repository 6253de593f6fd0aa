"""The commands of operators. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from triskele.errors import ConfigurationError

MemberFile = Annotated[
    Path, typer.Option("--config", help="coordinator.toml, party.toml or participant.toml of the member to check.")
]
OperatorFile = Annotated[Path, typer.Option("--config", help="operator.toml, from `triskele provision --operator`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run_preflight(config: MemberFile, as_json: AsJson = False) -> None:
    """Check a member before it takes part: certificates, clocks, addresses, versions, policy, disk. Exit 2: faults."""
    from triskele_server.operations.preflight import preflight, worst  # noqa: PLC0415  keeps `triskele --help` fast

    findings = preflight(config)
    if as_json:
        typer.echo(json.dumps({"worst": worst(findings), "findings": [vars(f) for f in findings]}, indent=2))
    else:
        marks = {
            "ok": ("ok", typer.colors.GREEN),
            "warning": ("warning", typer.colors.YELLOW),
            "fault": ("FAULT", typer.colors.RED),
        }
        for finding in findings:
            text, colour = marks[finding.outcome]
            typer.echo(f"{typer.style(f'{text:7}', fg=colour)} {finding.check}: {finding.found}")
            if finding.remedy:
                typer.echo(f"        do: {finding.remedy}")
    if worst(findings) == "fault":
        raise typer.Exit(2)


def run_backup(
    config: Annotated[Path, typer.Option("--config", help="coordinator.toml; the coordinator may run meanwhile.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist or be empty.")],
    as_json: AsJson = False,
) -> None:
    """Back up the coordinator: its SQLite database and the released aggregates, checked against each other."""
    from triskele_server.config import load_coordinator  # noqa: PLC0415  keeps `triskele --help` fast
    from triskele_server.operations.backup import back_up  # noqa: PLC0415  the same

    settings = load_coordinator(config)
    files = back_up(settings, to)
    if as_json:
        report = {"folder": str(to), "database": not settings.database_url, "files": [str(file) for file in files]}
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(
        f"{len(files)} files in {to}. To restore: stop the coordinator, put them in the place of its data folder."
    )
    if settings.database_url:
        typer.echo("The database is in a server of its own: copy it with that server's tools BEFORE this (pg_dump).")


def run_status(config: OperatorFile, as_json: AsJson = False) -> None:
    """Show the federation: servers, versions, clocks, tasks and their rounds. Exit 4 if a server does not answer."""
    from rich.console import Console  # noqa: PLC0415  keeps `triskele --help` fast

    from triskele_server.operations.status import Observer  # noqa: PLC0415  the same
    from triskele_server.operations.status_screen import shown  # noqa: PLC0415  the same

    with Observer(config) as observer:
        status = observer.look()
    if as_json:
        typer.echo(json.dumps(status.to_json(), indent=2))
    else:
        Console(highlight=False).print(shown(status, datetime.datetime.now(datetime.UTC)))
    if not status.well:
        raise typer.Exit(4)


def run_top(
    config: OperatorFile,
    seconds: Annotated[float, typer.Option(min=0.2, help="Between two looks.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many looks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each look.")] = False,
) -> None:
    """Show the federation live, until Ctrl-C."""
    import itertools  # noqa: PLC0415  keeps `triskele --help` fast
    import time  # noqa: PLC0415  the same

    from rich.console import Console  # noqa: PLC0415  the same
    from rich.live import Live  # noqa: PLC0415  the same

    from triskele_server.operations.status import Observer  # noqa: PLC0415  the same
    from triskele_server.operations.status_screen import shown  # noqa: PLC0415  the same

    console = Console(highlight=False, quiet=as_json)
    whole = console.is_terminal and count is None and not as_json
    with (
        contextlib.suppress(KeyboardInterrupt),  # the way to end it
        Observer(config) as observer,
        Live(console=console, screen=whole, auto_refresh=False) as live,
    ):
        for look in itertools.count(1):
            status = observer.look()
            if as_json:
                print(json.dumps(status.to_json()), flush=True)
            else:
                live.update(shown(status, datetime.datetime.now(datetime.UTC), seconds), refresh=True)
            if look == count:
                return
            time.sleep(seconds)


def validate_tasks(files: Annotated[list[Path], typer.Argument(help="Task files.")], as_json: AsJson = False) -> None:
    """Check task files as the coordinator and the parties will."""
    _print_tasks(files, as_json=as_json, brief=True)


def show_tasks(files: Annotated[list[Path], typer.Argument(help="Task files.")], as_json: AsJson = False) -> None:
    """Show what task files say in full: defaults, digest, what is opened, what a participant uploads."""
    _print_tasks(files, as_json=as_json, brief=False)


def _print_tasks(files: list[Path], *, as_json: bool, brief: bool) -> None:
    from triskele_server.operations.tasks import validate  # noqa: PLC0415  keeps `triskele --help` fast

    found = [validate(path).to_json() for path in files]
    if as_json:
        typer.echo(json.dumps({"tasks": found}, indent=2))
        return
    for path, task in zip(files, found, strict=True):
        if brief:
            typer.echo(f"{path}: task {task['name']!r} can be run; it opens {', '.join(task['opens'])}")
            continue
        for key, value in task.items():
            typer.echo(f"{key:29} {value}")


def create_task(
    *,
    name: Annotated[str, typer.Argument(help="Name of the task, and of its file.")],
    coordinator: Annotated[
        Path, typer.Option("--coordinator", help="coordinator.toml; its task folder gets the file.")
    ],
    dimension: Annotated[int, typer.Option(min=1, help="Number of parameters that travel in a round.")],
    clip_norm: Annotated[float, typer.Option(help="L2 norm that updates are clipped to.")],
    rounds: Annotated[int, typer.Option(min=1)],
    quorum: Annotated[int, typer.Option(min=2, help="Complete submissions after which a round closes.")],
    rule: Annotated[
        list[str] | None, typer.Option(help="Stages, then the rule, in order. Default: flame, fltrust with --root.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="The root participant, for fltrust.")] = None,
    decisions: Annotated[str, typer.Option(help="public or hidden: whether it is told who was accepted.")] = "public",
    release: Annotated[
        str, typer.Option(help="participants or public: public shows the aggregate to coordinator and parties too.")
    ] = "participants",
    max_participants: Annotated[int, typer.Option(min=2)] = 100,
    min_accepted: Annotated[int, typer.Option(min=1)] = 2,
    max_weight: Annotated[int, typer.Option(min=0, help="Of an example weight; 0: updates count the same.")] = 0,
    model_dimension: Annotated[
        int, typer.Option(min=0, help="Of the model, if only a part of it travels; 0: all.")
    ] = 0,
    ring: Annotated[str, typer.Option(help="32, 64, or auto: 32 bits a parameter where everything fits.")] = "auto",
    deadline_seconds: Annotated[float, typer.Option(min=1)] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Write a task file; options of rules are added to it by hand, then `triskele task validate`."""
    from triskele.errors import InvalidTask  # noqa: PLC0415  keeps `triskele --help` fast
    from triskele.task import TaskSpec  # noqa: PLC0415  the same
    from triskele_server.config import Schedule  # noqa: PLC0415  the same
    from triskele_server.operations.tasks import create  # noqa: PLC0415  the same
    from triskele_server.rules import with_ring  # noqa: PLC0415  the same

    try:
        given = {"rule": tuple(rule)} if rule else {}
        spec = with_ring(
            TaskSpec(
                name=name,  # type: ignore[arg-type]  # checked by TaskSpec
                dimension=dimension,
                clip_norm=clip_norm,
                root=root,  # type: ignore[arg-type]  # the same
                decisions=decisions,  # type: ignore[arg-type]  # the same
                release=release,  # type: ignore[arg-type]  # the same
                max_participants=max_participants,
                min_accepted=min_accepted,
                max_weight=max_weight,
                model_dimension=model_dimension,
                **given,  # type: ignore[arg-type]  # the same
            ),
            int(ring) if ring.isdigit() else ring,
        )
    except InvalidTask as error:
        raise ConfigurationError(str(error)) from error
    path, task = create(coordinator, spec, Schedule(rounds=rounds, quorum=quorum, deadline_seconds=deadline_seconds))
    if as_json:
        typer.echo(json.dumps(task.to_json() | {"file": str(path)}, indent=2))
        return
    typer.echo(f"wrote {path}; it opens {', '.join(task.openings)}. The coordinator takes it at its next start.")
