"""The public keys with which parties 0, 1, 2 sign certificates: everything that whoever checks one has to trust.

A folder of three files, party-0.pub to party-2.pub: Ed25519, PEM. A file may hold several keys, one after the other:
a new one, and those that signed before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from triskele.errors import ConfigurationError
from triskele.ids import PARTIES, PartyIndex

_BEGIN = b"-----BEGIN PUBLIC KEY-----"
_MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class PartyKeys:
    """The keys of parties 0, 1, 2, and how many of the three must have signed: all, or two.

    Raises ConfigurationError if a party has no key, or two parties have the same one.
    """

    keys: tuple[tuple[Ed25519PublicKey, ...], tuple[Ed25519PublicKey, ...], tuple[Ed25519PublicKey, ...]]
    signatures: int = len(PARTIES)

    def __post_init__(self) -> None:
        if self.signatures not in (2, 3):
            raise ConfigurationError(f"signatures {self.signatures}: two or three parties must have signed")
        if len(self.keys) != len(PARTIES) or not all(self.keys):
            raise ConfigurationError("the keys of all three parties are needed")
        names = [key_id(key) for keys in self.keys for key in keys]
        if len(set(names)) != len(names):
            raise ConfigurationError("a party's key is given twice, or for two parties: each has keys of its own")

    def of(self, party: PartyIndex) -> tuple[Ed25519PublicKey, ...]:
        """The keys of one party."""
        return self.keys[party]

    @classmethod
    def from_files(cls, paths: Sequence[Path], signatures: int = len(PARTIES)) -> PartyKeys:
        """Read the files of parties 0, 1, 2; raises ConfigurationError naming the file."""
        if len(paths) != len(PARTIES):
            raise ConfigurationError(f"{len(paths)} files of party keys: there are three parties")
        first, second, third = (_keys(path) for path in paths)
        return cls((first, second, third), signatures)

    @classmethod
    def from_folder(cls, folder: Path, signatures: int = len(PARTIES)) -> PartyKeys:
        """Read party-0.pub, party-1.pub, party-2.pub of a folder; raises ConfigurationError."""
        return cls.from_files([folder / key_file(party) for party in PARTIES], signatures)


def key_file(party: int) -> str:
    """The name of the file with a party's public keys."""
    return f"party-{party}.pub"


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 bytes of a key, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def _keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    keys = []
    for block in content.split(_BEGIN)[1:]:
        try:
            key = load_pem_public_key(_BEGIN + block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"{path}: is not a file of PEM public keys") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError(f"{path}: holds a key that is not an Ed25519 key")
        keys.append(key)
    if not keys:
        raise ConfigurationError(f"{path}: holds no PEM public key")
    return tuple(keys)
