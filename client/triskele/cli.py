"""The `triskele` command: submit an update, watch rounds; commands of installed extras join in.

Exit codes: 0 done; 1 a fault of Triskele, of a server or of a repository of models; 2 wrong usage, or a fault in the
caller's update, configuration or timing; 3 the round ended without a result; 4 somebody could not be reached: try
again.
Results go to standard output, progress and errors to standard error; an error is one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from triskele import model_commands
from triskele.array_files import check_writable, read_arrays, write_arrays
from triskele.audit_command import audit_log
from triskele.command_extras import ExtendedGroup
from triskele.errors import NotFound, ParticipantFault, RoundFailed, TriskeleError, Unavailable
from triskele.participant import Participant
from triskele.progress_display import UploadBars, rounds_table, show_live
from triskele.round import Round, SubmittedUpdate
from triskele.verify_command import verify

EXIT_OK, EXIT_FAULT, EXIT_USAGE, EXIT_ROUND_FAILED, EXIT_UNAVAILABLE = range(5)
EXIT_INTERRUPTED = 130

# The class that every wrong use raises; typer has moved it between versions, so it is taken by its public subclass.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=ExtendedGroup,
    help="Federated learning in which no server sees an update.",
    epilog="Exit codes: 0 done, 1 a fault of ours or another's, 2 wrong usage or input, 3 round failed, 4 unavailable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and with them updates and keys
)

app.add_typer(model_commands.app, name="model")

Config = Annotated[Path, typer.Option("--config", help="participant.toml of this participant.")]
Task = Annotated[str, typer.Option("--task", help="Name of the task.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def submit(
    *,
    config: Config,
    task: Task,
    update: Annotated[Path, typer.Argument(help="The update: a .npz or .safetensors file.")],
    weight: Annotated[int | None, typer.Option(help="Number of examples, if the task is weighted.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the aggregate to this .npz or .safetensors file.")] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", help="Submit to this round; without it, to the next open one.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Write the round's certificate and its place in the log to this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit an update to a round, wait for the aggregate and write it to a file."""
    if output is not None:
        check_writable(output)
    arrays = read_arrays(update)  # before a round is waited for
    with Participant.from_config(config) as me:
        target = _round(me, task, round_number)
        with UploadBars(Console(stderr=True), shown=not as_json) as bars:
            submitted = target.submit(arrays, weight=weight, progress=bars.update)
        aggregate = submitted.result()
        if output is not None:
            write_arrays(output, aggregate)
        if certificate is not None:
            target.save_certificate(certificate)
        _report(submitted, output, as_json=as_json)


@app.command()
def watch(config: Config, task: Task, as_json: Json = False) -> None:
    """Follow the rounds of a task as they happen; with --json one line per change. Ends with the task."""
    with Participant.from_config(config) as me, me.watch(task) as views:
        if as_json:
            for view in views:
                _print_json(view.to_json())
        else:
            show_live(Console(), task, views)


@app.command()
def rounds(config: Config, task: Task, as_json: Json = False) -> None:
    """List the rounds of a task."""
    with Participant.from_config(config) as me:
        views = me.round_views(task)
    if as_json:
        _print_json({"task": task, "rounds": [view.to_json() for view in views]})
    else:
        Console().print(rounds_table(task, views))


app.command("audit")(audit_log)
app.command("verify")(verify)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the entry point of the `triskele` script."""
    command = typer.main.get_command(app)
    try:
        outcome = command.main(None if args is None else list(args), prog_name="triskele", standalone_mode=False)
    except TriskeleError as error:
        return _fail(str(error), exit_code(error))
    except _USAGE_ERROR as error:
        return _fail(error.format_message() if hasattr(error, "format_message") else str(error), EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    return outcome if isinstance(outcome, int) else EXIT_OK


def exit_code(error: TriskeleError) -> int:
    """The documented exit code for an error."""
    match error:
        case RoundFailed():
            return EXIT_ROUND_FAILED
        case Unavailable():
            return EXIT_UNAVAILABLE
        case ParticipantFault():
            return EXIT_USAGE
        case _:
            return EXIT_FAULT


def _round(me: Participant, task: str, number: int | None) -> Round:
    if number is not None:
        return me.round(task, number)
    target = next(me.rounds(task), None)
    if target is None:
        raise NotFound(f"task {task!r} is finished; it has no open round any more")
    return target


def _report(submitted: SubmittedUpdate, output: Path | None, *, as_json: bool) -> None:
    view = submitted.view
    if as_json:
        _print_json(
            {
                **view.to_json(),
                "slot": submitted.slot,
                "accepted": submitted.accepted,
                "weight_total": submitted.weight_total,
                "output": None if output is None else str(output),
            }
        )
        return
    verdict = {True: "accepted", False: "refused", None: "not told whether it was accepted"}[submitted.accepted]
    Console().print(f"round {view.round} {view.state}: this update was {verdict}", highlight=False)
    if output is not None:
        Console().print(f"aggregate written to {output}", highlight=False)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _fail(message: str, code: int) -> int:
    if message:  # none after the help that stands for a missing command
        print("triskele: " + " ".join(message.split()), file=sys.stderr)
    return code
