"""`triskele verify`: check the certificate of one round, off line, and say in words what it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from triskele.errors import ConfigurationError, PartyFault
from triskele.transparency.certificate import Certificate
from triskele.transparency.explanations import explain
from triskele.transparency.logged_certificate import CERTIFICATE, PROOF, LoggedCertificate
from triskele.transparency.party_keys import PartyKeys


def verify(
    *,
    certificate: Annotated[
        Path, typer.Argument(help="A folder with certificate.json and proof.json, or certificate.json itself.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(help="Folder with party-0.pub, party-1.pub, party-2.pub; default: the certificate's own folder."),
    ] = None,
    signatures: Annotated[int, typer.Option(help="How many of the three parties must have signed: 2 or 3.")] = 3,
    words: Annotated[
        Path | None, typer.Option(help="Released words, as the coordinator stores them: are they the signed ones?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check a round's certificate, off line: the parties' signatures, and its place in their log."""
    folder = certificate if certificate.is_dir() else certificate.parent
    path = certificate / CERTIFICATE if certificate.is_dir() else certificate
    logged = LoggedCertificate.read(path, folder / PROOF)
    checked = logged.verified(PartyKeys.from_folder(keys or folder, signatures))
    if words is not None:
        _check_words(words, checked)
    if as_json:
        print(json.dumps(_report(checked, logged.index)), flush=True)
    else:
        _print(checked, logged.index, own_keys=keys is None)


def _check_words(path: Path, certificate: Certificate) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    if found != certificate.released.output.digest:
        raise PartyFault(f"{path.name}: these are not the words that the parties have signed")


def _left_out(certificate: Certificate) -> list[tuple[int, str, str, str]]:
    """Slot, name, reason and its explanation of everybody who is not in the aggregate, as far as that is public."""
    computation = certificate.account.computation
    refused = () if computation is None else computation.refused
    return [
        (e.slot, e.participant, e.reason, explain(e.reason, certificate.task))
        for e in sorted((*certificate.account.left_out, *refused), key=lambda e: e.slot)
    ]


def _report(certificate: Certificate, index: int) -> dict[str, Any]:
    left_out = [
        {"slot": slot, "participant": name, "reason": reason, "explanation": text}
        for slot, name, reason, text in _left_out(certificate)
    ]
    return {
        "verified": True,
        "entry": index,
        "left_out": left_out,
        "account": certificate.account.model_dump(mode="json"),
    }


def _print(certificate: Certificate, index: int, *, own_keys: bool) -> None:
    console, account, task = Console(highlight=False, soft_wrap=True), certificate.account, certificate.task
    console.print(f"[green]verified[/green] round {certificate.round} of task {task.name} in {account.federation}:")
    console.print(f"  {account.state}, entry {index} of the log that the parties cosign")
    if account.blame is not None:
        blame = account.blame
        console.print(f"  because {escape(explain(blame.reason, task))}: {escape(blame.who)} {escape(blame.detail)}")
    if (computation := account.computation) is not None:
        accepted = "not told" if computation.accepted is None else str(len(computation.accepted))
        rule = "+".join(task.stages)
        console.print(f"  submissions {len(computation.submissions)}, accepted {accepted}, rule {rule}")
        console.print(f"  opened: {escape(', '.join(computation.openings))}")
        console.print(f"  aggregate: sha256 {computation.output.digest}")
        if (spent := computation.privacy) is not None:
            bound = "" if spent.epsilon is None else f", epsilon {spent.epsilon}"
            console.print(f"  privacy: {spent.claim}, {spent.rounds} rounds{bound}")
    for slot, name, _, text in _left_out(certificate):
        console.print(f"  slot {slot}, {name}: {text}")
    if own_keys:
        console.print(
            "[yellow]note[/yellow] the keys are those beside the certificate: they prove something only if you put "
            "them there yourself; --keys names yours"
        )
