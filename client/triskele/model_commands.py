"""`triskele model`: publish models as signed releases, and pull and verify them on a device.

python-tuf (extra `models`) is imported by the command that needs it, not by `triskele --help`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from triskele.model_releases import ModelRepository, Published, VerifiedModel

app = typer.Typer(no_args_is_help=True, help="Publish models as signed releases; pull and verify them on a device.")

Repository = Annotated[Path, typer.Argument(help="Folder of the repository; any web server can serve it.")]
Keys = Annotated[Path, typer.Option("--keys", help="Folder with the keys of roles that this machine has.")]
Signatures = Annotated[
    int, typer.Option("--signatures", min=2, max=3, help="How many of the three parties must have signed.")
]
Days = Annotated[int, typer.Option("--days", min=1, max=365, help="Days that the new timestamp is valid.")]
Trust = Annotated[
    Path, typer.Option("--trust", help="Folder with root.json, party-0.pub, party-1.pub, party-2.pub: what is trusted.")
]
State = Annotated[
    Path | None, typer.Option("--state", help="Folder where the device keeps what it has seen; by default TRUST/state.")
]
Authority = Annotated[
    Path | None, typer.Option("--authority", help="PEM certificates to trust for https, instead of the system's.")
]
RootThreshold = Annotated[int | None, typer.Option("--root-threshold", min=1, help="Keys that must sign the root.")]
TargetsThreshold = Annotated[
    int | None, typer.Option("--targets-threshold", min=1, help="Keys that must sign a model.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def key(
    *,
    keys: Annotated[Path, typer.Argument(help="Folder for the key; it is made if it is not there.")],
    role: Annotated[str, typer.Option(help="root, targets, snapshot or timestamp.")],
    name: Annotated[str | None, typer.Option(help="Whose key it is; part of the file's name.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key for a role. Of its two files only the .pub goes to whoever runs `init` or `rotate`."""
    import triskele.model_releases  # noqa: F401, PLC0415  tells what to install
    from triskele.model_releases.role_keys import write_key  # noqa: PLC0415  imports tuf's signer

    private, public = write_key(keys, role, name)
    if as_json:
        _print_json({"private": str(private), "public": str(public)})
    else:
        _say(f"private key: {private}; public key: {public}")


@app.command()
def init(
    *,
    repository: Repository,
    keys: Keys,
    parties: Annotated[Path, typer.Option(help="Folder with party-0.pub, party-1.pub, party-2.pub.")],
    root_threshold: RootThreshold = None,
    targets_threshold: TargetsThreshold = None,
    signatures: Signatures = 3,
    days: Days = 7,
    as_json: Json = False,
) -> None:
    """Start a repository of models. Roles without a key in --keys get one."""
    from triskele.model_releases import RoleKeys, Thresholds  # noqa: PLC0415  imports tuf

    thresholds = Thresholds(root_threshold or 1, targets_threshold or 1)
    made = _repository(repository, signatures, days).create(RoleKeys.completed(keys), parties, thresholds)
    _report(made, as_json=as_json)


@app.command()
def publish(
    *,
    repository: Repository,
    model: Annotated[Path, typer.Argument(help="The model: a .npz or .safetensors file.")],
    keys: Keys,
    version: Annotated[int, typer.Option("--version", min=0, help="Its number: the newest and one; first 0.")],
    certificate: Annotated[
        list[Path] | None,
        typer.Option("--certificate", help="Folder of the logged certificate of a round that it came from; repeat it."),
    ] = None,
    signatures: Signatures = 3,
    days: Days = 7,
    as_json: Json = False,
) -> None:
    """Add a version of the model, made from the one before in the rounds whose certificates are given."""
    from triskele.model_releases import RoleKeys  # noqa: PLC0415  imports tuf

    store = _repository(repository, signatures, days)
    _report(store.publish(model, version, certificate or [], RoleKeys.from_folder(keys)), as_json=as_json)


@app.command()
def sign(repository: Repository, keys: Keys, signatures: Signatures = 3, days: Days = 7, as_json: Json = False) -> None:
    """Check and sign what awaits signatures: a version, or a change of keys."""
    from triskele.model_releases import RoleKeys  # noqa: PLC0415  imports tuf

    _report(_repository(repository, signatures, days).sign(RoleKeys.from_folder(keys)), as_json=as_json)


@app.command()
def refresh(
    repository: Repository, keys: Keys, signatures: Signatures = 3, days: Days = 7, as_json: Json = False
) -> None:
    """Vouch anew for what is the newest; before the timestamp expires, say daily. Needs snapshot and timestamp keys."""
    from triskele.model_releases import RoleKeys  # noqa: PLC0415  imports tuf

    _report(_repository(repository, signatures, days).refresh(RoleKeys.from_folder(keys)), as_json=as_json)


@app.command()
def rotate(
    *,
    repository: Repository,
    keys: Keys,
    outgoing: Annotated[Path | None, typer.Option(help="Folder with keys that sign once more and then go.")] = None,
    root_threshold: RootThreshold = None,
    targets_threshold: TargetsThreshold = None,
    signatures: Signatures = 3,
    days: Days = 7,
    as_json: Json = False,
) -> None:
    """Give the roles the keys in --keys, public ones of others too, and the root another year."""
    from triskele.model_releases import RoleKeys, Thresholds  # noqa: PLC0415  imports tuf

    store = _repository(repository, signatures, days)
    thresholds = None
    if root_threshold or targets_threshold:
        thresholds = Thresholds(root_threshold or 1, targets_threshold or 1)
    gone = None if outgoing is None else RoleKeys.from_folder(outgoing)
    _report(store.rotate(RoleKeys.from_folder(keys), outgoing=gone, thresholds=thresholds), as_json=as_json)


@app.command()
def show(repository: Repository, as_json: Json = False) -> None:
    """What is in a repository, who may sign, when it expires, what it waits for."""
    _report(_repository(repository, 3, 7).look(), as_json=as_json)


@app.command()
def pull(
    *,
    source: Annotated[str, typer.Option("--from", help="Where the repository is: https://… or a folder.")],
    trust: Trust,
    output: Annotated[Path, typer.Option(help="Write the model to this file.")],
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="This version; without it the newest.")
    ] = None,
    signatures: Signatures = 3,
    state: State = None,
    authority: Authority = None,
    as_json: Json = False,
) -> None:
    """Fetch a model, after everything that it builds on has been checked."""
    from triskele.model_releases import TrustFolder, pull_model  # noqa: PLC0415  imports tuf

    trusted = TrustFolder.from_folder(trust, signatures=signatures, state=state)
    pulled = pull_model(source, trusted, output, version=version, authority=authority)
    _report_model(pulled, f"written to {output}" if pulled.fetched else f"in {output} already", as_json=as_json)


@app.command()
def verify(
    *,
    model: Annotated[Path, typer.Argument(help="The model's file.")],
    trust: Trust,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Where the repository is; without it, what the last pull saw counts, offline."),
    ] = None,
    signatures: Signatures = 3,
    state: State = None,
    authority: Authority = None,
    as_json: Json = False,
) -> None:
    """Check that a file is a released model, and say which version."""
    from triskele.model_releases import TrustFolder, verify_model  # noqa: PLC0415  imports tuf

    trusted = TrustFolder.from_folder(trust, signatures=signatures, state=state)
    _report_model(verify_model(model, trusted, source, authority=authority), "verified", as_json=as_json)


def _repository(folder: Path, signatures: int, days: int) -> ModelRepository:
    from triskele.model_releases import Lifetimes, ModelRepository  # noqa: PLC0415  imports tuf

    return ModelRepository(folder, lifetimes=Lifetimes(timestamp=timedelta(days=days)), signatures=signatures)


def _report(outcome: Published, *, as_json: bool) -> None:
    if as_json:
        _print_json(outcome.to_json())
        return
    for release in outcome.releases[-10:]:
        rounds = ", ".join(str(round_.number) for round_ in release.rounds)
        _say(f"version {release.version}  {release.sha256}  {f'rounds {rounds}' if rounds else 'no rounds'}")
    for role, ids in outcome.keys.items():
        until = f"until {outcome.expires[role]:%Y-%m-%d %H:%M} UTC" if role in outcome.expires else "not yet signed"
        _say(f"{role:<10} {until}  keys {', '.join(keyid[:8] for keyid in ids)}")
    for role, number in outcome.awaited:
        _say(f"awaits {number} more signature{'s' if number > 1 else ''} of {role}: `triskele model sign` by its keys")


def _report_model(model: VerifiedModel, done: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(model.to_json())
        return
    release = model.release
    age = "the newest" if release.version == model.newest else f"the newest is {model.newest}"
    _say(f"version {release.version} ({age}) {done}; {model.rounds} certificates checked")
    _say(f"sha256 {release.sha256}; vouched for until {model.valid_until:%Y-%m-%d %H:%M} UTC")


def _say(line: str) -> None:
    Console(soft_wrap=True).print(line, highlight=False, markup=False)


def _print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), flush=True)
