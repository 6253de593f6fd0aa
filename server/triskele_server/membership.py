"""Who belongs to a provisioned federation, changed later: `triskele provision add-participant | rotate | revoke`.

All of it happens where the folder that `triskele provision` wrote is kept, with ca/ca.key. Nothing needs a restart:
servers read deny lists and certificates again when the files change. What was changed is then brought to the
machine that runs the member, by the means by which the folder was brought there.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from triskele.errors import ConfigurationError, InvalidTask
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, checked_name
from triskele.transparency.party_keys import key_file
from triskele_server.config import load_coordinator
from triskele_server.provision import DENY_LIST, write_participant
from triskele_server.rpc.certificates import Authority, Credential, certifying_key
from triskele_server.rpc.deny_list import checked_entry, serial_entry

_SERVERS = ("coordinator", *(f"party-{index}" for index in PARTIES))


@dataclass(frozen=True)
class Rotated:
    """A member's new files, and the entries that shut out the certificates which they replace."""

    identity: Identity
    files: tuple[Path, ...]
    replaced: tuple[str, ...]


def add_participants(
    directory: Path, names: Sequence[str], *, now: datetime.datetime | None = None
) -> dict[ParticipantId, Path]:
    """Folders for new participants, by name; raises ConfigurationError, and then has written none of them."""
    coordinator = load_coordinator(directory / "coordinator" / "coordinator.toml")
    authority = _authority(directory, coordinator.federation, now)
    try:
        checked = [ParticipantId(checked_name(name, "participant")) for name in names]
    except InvalidTask as error:
        raise ConfigurationError(str(error)) from error
    taken = sorted(name for name in set(checked) if (directory / "participants" / name).exists())
    if taken or len(set(checked)) != len(checked):
        raise ConfigurationError(f"participants must be new, each named once; there already: {', '.join(taken)}")
    return {
        name: write_participant(directory, authority, coordinator.federation, name, coordinator.listen)
        for name in checked
    }


def rotate(directory: Path, member: str, *, signing: bool = False, now: datetime.datetime | None = None) -> Rotated:
    """New keys and certificates of a member ("party-0", "coordinator", "operator", a participant's name).

    The old certificates stay good until they expire; `revoke` the entries in `replaced` once the member runs with
    the new ones. A participant's signing key is renewed too: rotate between its rounds. With `signing` so is the key
    with which a party signs certificates; the public key files of all members then hold the new one and the old ones.
    Raises ConfigurationError.
    """
    folder = _folder(directory, member)
    old = {
        name: _certificate(folder / f"{name}.crt") for name in ("tls", "signing") if (folder / f"{name}.crt").exists()
    }
    identity = _identity(old["tls"], folder)
    authority = _authority(directory, identity.federation, now)
    made: dict[str, Credential] = {"tls": authority.tls(identity)}
    if "signing" in old:
        made["signing"] = authority.signing(identity)
    files = []
    for name, credential in made.items():
        # The key first: a pair that does not fit is not taken over by a process that runs.
        for suffix, content in (("key", credential.key), ("crt", credential.certificate)):
            files.append(folder / f"{name}.{suffix}")
            _replace(files[-1], content)
    if signing:
        files += _new_certifying_key(directory, folder, identity)
    return Rotated(identity, tuple(files), tuple(serial_entry(c.serial_number) for c in old.values()))


def _new_certifying_key(directory: Path, folder: Path, identity: Identity) -> list[Path]:
    """The public key first, everywhere: a signature that somebody cannot check is a round that he cannot use."""
    if identity.role != "party":
        raise ConfigurationError(f"{identity.name} is no party: only parties sign certificates of rounds")
    name, made = key_file(int(identity.name)), certifying_key()
    public = sorted(path for path in directory.rglob(name) if path.is_file())
    for path in public:
        _replace(path, made.certificate + _text(path).encode())
    private = folder / "signing.key"
    _replace(private, made.key)
    return [*public, private]


def revoke(directory: Path, entry: str) -> tuple[Path, ...]:
    """Add an entry to the deny list of every server: a SPIFFE id, `serial:` and a number, or a member's name.

    The lists' paths; raises ConfigurationError.
    """
    if not entry.startswith(("spiffe://", "serial:")):
        folder = _folder(directory, entry)
        entry = _identity(_certificate(folder / "tls.crt"), folder).uri
    entry = checked_entry(entry)
    paths = tuple(directory / server / DENY_LIST for server in _SERVERS)
    for path in paths:
        lines = _text(path).splitlines()
        if entry not in lines:
            _replace(path, "\n".join([*lines, entry, ""]).encode())
    return paths


def _authority(directory: Path, federation: str, now: datetime.datetime | None) -> Authority:
    folder = directory / "ca"
    loaded = Credential(_text(folder / "ca.crt").encode(), _text(folder / "ca.key").encode())
    return Authority(federation, now or datetime.datetime.now(datetime.UTC), loaded)


def _folder(directory: Path, member: str) -> Path:
    for folder in (directory / member, directory / "participants" / member):
        if member == Path(member).name and (folder / "tls.crt").exists():
            return folder
    raise ConfigurationError(f"{directory} has no member {member!r}: name a folder of it or of its participants")


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_text(path).encode())
    except ValueError as error:
        raise ConfigurationError(f"{path}: is not a PEM certificate") from error


def _identity(certificate: x509.Certificate, folder: Path) -> Identity:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ConfigurationError(f"{folder / 'tls.crt'}: speaks for {len(uris)} members, not for one")
    return Identity.parse(uris[0])


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read") from error


def _replace(path: Path, content: bytes) -> None:
    """By another file, so that nobody reads half of it; keys are for their owner only."""
    beside = path.with_name(f".{path.name}.new")
    mode = 0o600 if path.suffix == ".key" else 0o644
    try:
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        beside.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from error
