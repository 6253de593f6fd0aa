"""`triskele audit`: check the whole log of certificates, from a file or from the coordinator."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import grpc
import typer
from pydantic import ConfigDict
from rich.console import Console
from rich.markup import escape

from triskele.config import MemberConfig
from triskele.connection import DEFAULT_RETRIES, Connections
from triskele.errors import ConfigurationError, PartyFault
from triskele.transparency.audit import Audit, audit
from triskele.transparency.audit_page import page
from triskele.transparency.party_keys import PartyKeys
from triskele.transparency.saved_log import SavedLog, fetch_log


class AuditorConfig(MemberConfig):
    """What participant.toml, reader.toml and operator.toml have in common, and all that an auditor needs of them."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


def audit_log(
    *,
    log: Annotated[Path | None, typer.Argument(help="A saved log; without it, the coordinator's.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="participant.toml, reader.toml or operator.toml: asks the coordinator."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="Folder with party-0.pub, party-1.pub, party-2.pub; default: --config's."),
    ] = None,
    signatures: Annotated[
        int | None, typer.Option(help="How many of the three parties must have signed: 2 or 3.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the coordinator's log to this file.")] = None,
    task: Annotated[str, typer.Option("--task", help="Show only this task; everything is checked.")] = "",
    html: Annotated[Path | None, typer.Option("--html", help="Write a readable report to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check every certificate in the log of rounds: signatures, order, openings, privacy. Status 1 if any is wrong."""
    member = None if config is None else AuditorConfig.load(config)
    trusted = _keys(member, keys, signatures)
    given = _log(log, member, trusted, save)
    found = audit(given, trusted, "" if member is None else member.federation, task=task)
    if task and not found.tasks:
        raise ConfigurationError(f"the log has no task {task!r} with a certificate that verifies")
    if html is not None:
        _write(html, page(found))
    if as_json:
        print(json.dumps(found.to_json()), flush=True)
    else:
        _report(found, html)
    if not found.clean:
        raise PartyFault(f"the log has {len(found.findings)} findings: {found.findings[0].what}")


def _keys(member: AuditorConfig | None, folder: Path | None, signatures: int | None) -> PartyKeys:
    if folder is not None:
        return PartyKeys.from_folder(folder, signatures or 3)
    if member is None:
        raise ConfigurationError("give --keys, the folder of the parties' public keys, or --config")
    return PartyKeys.from_files(member.trust.parties, signatures or member.trust.signatures)


def _log(path: Path | None, member: AuditorConfig | None, keys: PartyKeys, save: Path | None) -> SavedLog:
    if path is not None:
        if save is not None:
            raise ConfigurationError("--save is for the coordinator's log: leave out the file")
        return SavedLog.read(path)
    if member is None:
        raise ConfigurationError("give a saved log, or --config to ask the coordinator for its log")
    files = (member.tls.authority, member.tls.key, member.tls.certificate)
    credentials = grpc.ssl_channel_credentials(*map(_read, files))
    with closing(Connections(member, lambda: credentials)) as connections:
        fetched = fetch_log(connections, cosignatures=keys.signatures, retries=DEFAULT_RETRIES)
    if save is not None:
        fetched.write(save)
    return fetched


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error


def _write(path: Path, content: str) -> None:
    try:
        path.write_bytes(content.encode())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from error


def _report(found: Audit, html: Path | None) -> None:
    console = Console(highlight=False)
    for finding in found.findings:
        where = "the log" if finding.entry is None else f"entry {finding.entry}"
        console.print(f"[red]wrong[/red] {where}: {_plain(finding.what)} ({_plain(finding.whose)})", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {_plain(note)}", soft_wrap=True)
    for each in found.tasks:
        states = ", ".join(f"{each.count(s)} {s.lower()}" for s in ("RELEASED", "FAILED", "EXPIRED") if each.count(s))
        left = sum(one.refused + one.left_out for one in each.rounds)
        console.print(
            f"task {_plain(each.task.name)}: {len(each.rounds)} rounds, {states}; {left} submissions refused",
            soft_wrap=True,
        )
    if found.clean and found.cosigned is not None:
        who = ", ".join(str(party) for party in sorted(found.cosigned.times))
        root = found.cosigned.checkpoint.root.hex()
        console.print(
            f"[green]sound[/green] {found.entries} entries, cosigned by parties {who}, root {root}", soft_wrap=True
        )
    if html is not None:
        console.print(f"report written to {_plain(str(html))}", soft_wrap=True)


def _plain(text: str) -> str:
    """For the terminal: no markup, no control characters."""
    return escape("".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text))
