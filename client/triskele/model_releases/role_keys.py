"""The keys of a repository's four roles, as files of a folder.

`<role>.pem` or `<role>-<name>.pem` is a private key that this machine signs with (Ed25519, PKCS #8, PEM); a `.pub`
file of the same form is the public key of somebody else. Roles: root says which keys there are, targets vouches for
models, snapshot and timestamp for what is the newest.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from triskele.errors import ConfigurationError
from triskele.ids import checked_name
from triskele.unusable import UNUSABLE_KEY

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
_FILE: Final = re.compile(r"(root|targets|snapshot|timestamp)(?:-[a-z0-9._-]+)?\.(pem|pub)")
_MAX_FILE_BYTES: Final = 1 << 14


@dataclass(frozen=True)
class RoleKeys:
    """The keys of each role, by key id: all public ones, and those of them that can sign here. Never printed."""

    public: Mapping[str, Mapping[str, SSlibKey]] = field(repr=False)
    signers: Mapping[str, Mapping[str, CryptoSigner]] = field(repr=False)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read every key of a folder; raises ConfigurationError naming the file."""
        public: dict[str, dict[str, SSlibKey]] = {role: {} for role in ROLES}
        signers: dict[str, dict[str, CryptoSigner]] = {role: {} for role in ROLES}
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: is no folder; `triskele model key` makes one with a key in it")
        for path in sorted(folder.iterdir()):
            named = _FILE.fullmatch(path.name)
            if named is None:
                continue
            if named[2] == "pem":
                signer = CryptoSigner(_private(path))
                signers[named[1]][signer.public_key.keyid] = signer
                public[named[1]][signer.public_key.keyid] = signer.public_key
            else:
                key = SSlibKey.from_crypto(_public(path))
                public[named[1]][key.keyid] = key
        return cls(public, signers)

    @classmethod
    def completed(cls, folder: Path) -> Self:
        """The keys of a folder, after every role without one has got a new key; raises ConfigurationError."""
        folder.mkdir(parents=True, exist_ok=True)
        found = cls.from_folder(folder)
        for role in ROLES:
            if not found.public[role]:
                write_key(folder, role)
        return cls.from_folder(folder)


def write_key(folder: Path, role: str, name: str | None = None) -> tuple[Path, Path]:
    """Make a key for a role; returns the files of the private and of the public key. Raises ConfigurationError."""
    if role not in ROLES:
        raise ConfigurationError(f"no role {role!r}: roles are {', '.join(ROLES)}")
    stem = role if name is None else f"{role}-{checked_name(name, 'name')}"
    private, public = folder / f"{stem}.pem", folder / f"{stem}.pub"
    if private.exists() or public.exists():
        raise ConfigurationError(f"{private}: there is a key of that name already; choose another with --name")
    signer = CryptoSigner.generate_ed25519()
    key = _public_pem(signer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_private(private, signer.private_bytes)
        public.write_bytes(key)
    except OSError as error:
        raise ConfigurationError(f"{private}: cannot be written ({error.strerror})") from error
    return private, public


def _write_private(path: Path, content: bytes) -> None:
    """As a temporary file is made: nobody else can read it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _public_pem(signer: CryptoSigner) -> bytes:
    private = load_pem_private_key(signer.private_bytes, None)
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_content(path), password=None)
    except UNUSABLE_KEY as error:
        raise ConfigurationError(f"{path}: is not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path}: is not an Ed25519 key")
    return key


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_content(path))
    except UNUSABLE_KEY as error:
        raise ConfigurationError(f"{path}: is not a public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path}: is not an Ed25519 key")
    return key


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
