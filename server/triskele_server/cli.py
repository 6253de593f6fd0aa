"""The commands that the server adds to `triskele`. Everything heavy is imported by the command that needs it.

Errors of Triskele leave a command as they are; `triskele` prints their text and gives the exit code.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from triskele.errors import ConfigurationError
from triskele_server.benchmark.command import run_bench
from triskele_server.operations import commands as operator_commands


def commands() -> typer.Typer:
    """`triskele coordinator | party | status | top | preflight | backup | rules | demo | bench | provision | task`."""
    app = typer.Typer(help="Run and set up the servers of a federation.")
    for name, command in _COMMANDS.items():
        app.command(name)(_needing_extras(command))
    provision = typer.Typer(invoke_without_command=True, callback=_needing_extras(run_provision))
    for name, command in _PROVISION_COMMANDS.items():
        provision.command(name)(_needing_extras(command))
    app.add_typer(provision, name="provision")
    task = typer.Typer(help="Task files: check, show, write.", no_args_is_help=True)
    for name, command in _TASK_COMMANDS.items():
        task.command(name)(_needing_extras(command))
    app.add_typer(task, name="task")
    return app


def _needing_extras(command: Callable[..., None]) -> Callable[..., None]:
    """The same command; where a package of the extras is missing it says how to get it."""

    @functools.wraps(command)
    def checked(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"this command needs {error.name}, which is not installed: pip install 'triskele[server,demo]', "
                "and pip install --no-deps crypten==0.4.1"
            ) from error

    return checked


ConfigFile = Annotated[Path, typer.Option("--config", help="TOML file written by `triskele provision`.")]


def run_coordinator(config: ConfigFile) -> None:
    """Run the coordinator until SIGTERM. Logs go to standard error as JSON lines."""
    _end_on_sigterm()
    from triskele_server.config import load_coordinator  # noqa: PLC0415  keeps `triskele --help` fast
    from triskele_server.coordinator.process import serve  # noqa: PLC0415  the same

    _run(serve(load_coordinator(config)))


def run_party(config: ConfigFile) -> None:
    """Run a party until SIGTERM. Logs go to standard error as JSON lines."""
    _end_on_sigterm()
    from triskele_server.config import load_party  # noqa: PLC0415  keeps `triskele --help` fast
    from triskele_server.party.process import serve  # noqa: PLC0415  the same

    _run(serve(load_party(config)))


def run_provision(
    context: typer.Context,
    *,
    directory: Annotated[Path | None, typer.Option(help="Folder to write; it must not exist or be empty.")] = None,
    participants: Annotated[int | None, typer.Option(min=1, help="How many participants, named p00, p01, ….")] = None,
    federation: Annotated[str, typer.Option(help="Name of the federation, part of every identity.")] = "demo",
    host: Annotated[str, typer.Option(help="Address that all servers listen on.")] = "127.0.0.1",
    base_port: Annotated[int, typer.Option(help="Coordinator's port; party i has base + 10 (i + 1).")] = 7000,
    operator: Annotated[bool, typer.Option("--operator", help="Also an operator: may look at everything.")] = False,
    reader: Annotated[bool, typer.Option("--reader", help="Also a reader: may fetch aggregates.")] = False,
    forwarder: Annotated[
        bool, typer.Option("--forwarder", help="Also a forwarder: a reader that brings parties sealed uploads.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report the files written as JSON.")] = False,
) -> None:
    """Write a federation: authority, certificates, keys and configurations. Keys are written, never printed."""
    if context.invoked_subcommand is not None:
        return
    if directory is None or participants is None:
        raise ConfigurationError("give --directory and --participants, or a command: add-participant, rotate, revoke")
    from triskele_server.provision import PortPlan, provision  # noqa: PLC0415  keeps `triskele --help` fast

    made = provision(
        directory,
        participants=participants,
        federation=federation,
        host=host,
        ports=PortPlan.from_base(base_port),
        operator=operator,
        reader=reader,
        forwarder=forwarder,
    )
    if as_json:
        report = {
            "directory": str(made.directory),
            "federation": made.federation,
            "coordinator": str(made.coordinator),
            "parties": [str(path) for path in made.parties],
            "participants": {name: str(path) for name, path in made.participants.items()},
        }
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"Wrote the federation {made.federation!r} with {len(made.participants)} participants to {directory}.")
    typer.echo(f"Add task files to {made.coordinator.parent / 'tasks'}, then start each of these:")
    typer.echo(f"  triskele coordinator --config {made.coordinator}")
    for path in made.parties:
        typer.echo(f"  triskele party --config {path}")
    typer.echo(f"Keep {directory / 'ca' / 'ca.key'} off-line: whoever has it can join under any name.")


Provisioned = Annotated[
    Path, typer.Option("--directory", help="Folder that `triskele provision` wrote, with ca/ca.key.")
]


def add_participant(
    names: Annotated[list[str], typer.Argument(help="Names of the new participants.")],
    directory: Provisioned,
    as_json: Annotated[bool, typer.Option("--json", help="Report the files written as JSON.")] = False,
) -> None:
    """Make folders, keys and certificates for new participants; servers need no restart."""
    from triskele_server.membership import add_participants  # noqa: PLC0415  keeps `triskele --help` fast

    made = add_participants(directory, names)
    if as_json:
        typer.echo(json.dumps({"participants": {name: str(path) for name, path in made.items()}}, indent=2))
        return
    for name, path in made.items():
        typer.echo(f"{name}: bring {path.parent} to its owner, by a way that nobody else reads")


def rotate_member(
    member: Annotated[str, typer.Argument(help="coordinator, party-0 to party-2, operator, or a participant's name.")],
    directory: Provisioned,
    signing: Annotated[
        bool, typer.Option("--signing", help="Of a party: also the key that signs certificates of rounds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Renew a member's keys and certificates; a running member takes them over when its files change."""
    from triskele_server.membership import rotate  # noqa: PLC0415  keeps `triskele --help` fast

    done = rotate(directory, member, signing=signing)
    if as_json:
        report = {"identity": done.identity.uri, "files": [str(p) for p in done.files], "replaced": list(done.replaced)}
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"New keys and certificates of {done.identity.uri}:")
    for path in done.files:
        typer.echo(f"  {path}")
    typer.echo("Once it runs with them, shut the old ones out:")
    for entry in done.replaced:
        typer.echo(f"  triskele provision revoke --directory {directory} {entry}")


def revoke_member(
    entry: Annotated[str, typer.Argument(help="A member's name, its spiffe:// id, or serial:… of one certificate.")],
    directory: Provisioned,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shut a member or one certificate out: adds to the deny list of every server."""
    from triskele_server.membership import revoke  # noqa: PLC0415  keeps `triskele --help` fast

    lists = revoke(directory, entry)
    if as_json:
        typer.echo(json.dumps({"deny_lists": [str(path) for path in lists]}, indent=2))
        return
    typer.echo("Bring each of these to its server, which reads it again by itself:")
    for path in lists:
        typer.echo(f"  {path}")


def run_demo(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training per attack.")] = 6,
    participants: Annotated[int, typer.Option(min=4, max=100, help="How many participants.")] = 20,
    malicious: Annotated[int, typer.Option(min=0, help="How many of them attack.")] = 4,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Rule of the secure rounds; may be given more than once. Default: flame and fltrust."),
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="Attack to run; may be given more than once.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
) -> None:
    """Train a face recogniser under attack: plain averaging, and coordinator and parties as real processes."""
    from rich.console import Console  # noqa: PLC0415  keeps `triskele --help` fast

    from triskele_server.demo.run import DEFAULT_ATTACKS, DEFAULT_RULES, run_demo  # noqa: PLC0415  the same

    run_demo(
        Console(),
        rounds=rounds,
        participants=participants,
        malicious=malicious,
        rules=rule or DEFAULT_RULES,
        attacks=attack or DEFAULT_ATTACKS,
        report=report,
    )


def list_rules(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the aggregation rules installed here: options, what each opens, and the digest of its source."""
    from triskele_server.rules import find, known  # noqa: PLC0415  keeps `triskele --help` fast

    rules = [find(name) for name in known()]
    if as_json:
        report = [
            {
                "name": r.name,
                "kind": r.kind,
                "options": r.options,
                "reference": r.reference,
                "built_in": r.built_in,
                "source_digest": r.source_digest,
            }
            for r in rules
        ]
        typer.echo(json.dumps(report, indent=2))
        return
    for r in rules:
        options = ", ".join(f"{name}={default}" for name, default in r.options.items()) or "no options"
        origin = "" if r.built_in else f"  {r.function.__module__}, source {r.source_digest}"
        typer.echo(f"{r.name:18} {r.kind.replace('_', '-'):16} {options}{origin}")


def _end_on_sigterm() -> None:
    """From here until the process handles the signal itself: the kernel has no default for PID 1 of a container."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _run(process: Coroutine[Any, Any, None]) -> None:
    import asyncio  # noqa: PLC0415  keeps `triskele --help` fast

    asyncio.run(process)


_COMMANDS: dict[str, Callable[..., None]] = {
    "coordinator": run_coordinator,
    "party": run_party,
    "status": operator_commands.run_status,
    "top": operator_commands.run_top,
    "preflight": operator_commands.run_preflight,
    "backup": operator_commands.run_backup,
    "rules": list_rules,
    "demo": run_demo,
    "bench": run_bench,
}

_PROVISION_COMMANDS: dict[str, Callable[..., None]] = {
    "add-participant": add_participant,
    "rotate": rotate_member,
    "revoke": revoke_member,
}

_TASK_COMMANDS: dict[str, Callable[..., None]] = {
    "create": operator_commands.create_task,
    "show": operator_commands.show_tasks,
    "validate": operator_commands.validate_tasks,
}
