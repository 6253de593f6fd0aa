"""participant.toml: who this participant is, where the coordinator listens, and its certificates and keys.

federation = "demo"
participant = "p00"
coordinator = "coordinator.example.org:7000"
[tls]
authority = "ca.crt"        # paths are relative to this file
certificate = "tls.crt"
key = "tls.key"
[signing]
certificate = "signing.crt"
key = "signing.key"         # Ed25519, PKCS8 PEM
[trust]
parties = ["party-0.pub", "party-1.pub", "party-2.pub"]     # whose signatures a result must have
signatures = 3              # of how many of the three parties; 2 to go on while one has lost its key

reader.toml or forwarder.toml, for the server of another framework: `reader = "..."` or `forwarder = "..."` instead of
`participant`, no [signing], and for a forwarder `sealing`, the certificates of the three parties' sealing keys.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from triskele.errors import ConfigurationError, InvalidTask
from triskele.identity import Identity
from triskele.ids import checked_name


def _name(text: str) -> str:
    try:
        return checked_name(text, "name")
    except InvalidTask as error:
        raise ValueError(str(error)) from None


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not an address of the form host:port")
    return text


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    directory = info.context  # given by `load`
    return directory / path if isinstance(directory, Path) else path


_Name = Annotated[str, AfterValidator(_name)]
_File = Annotated[Path, AfterValidator(_beside_the_file)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TlsFiles(_Section):
    """PEM files of the connection: the federation's authority, this participant's certificate and its key."""

    authority: _File
    certificate: _File
    key: _File


class SigningFiles(_Section):
    """PEM files of the manifest signature."""

    certificate: _File
    key: _File


class TrustFiles(_Section):
    """PEM files of the keys that parties 0, 1, 2 sign certificates with, and how many of the three must have signed."""

    parties: tuple[_File, _File, _File]
    signatures: Annotated[int, Field(ge=2, le=3)] = 3


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; raises ConfigurationError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    # ValueError: not UTF-8, not TOML, or an integer of more digits than Python reads
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}") from error


class MemberConfig(_Section):
    """What every member that calls has: its federation, the coordinator's address, and files of the connection."""

    federation: _Name
    coordinator: Annotated[str, AfterValidator(_address)]
    tls: TlsFiles
    trust: TrustFiles

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check the file; raises ConfigurationError naming the file and the key."""
        file = Path(path)
        content = read_toml(file)
        try:
            return cls.model_validate(content, context=file.parent)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(f"{file}: {problems}") from None


class FrameworkServerConfig(MemberConfig):
    """The content of reader.toml or forwarder.toml."""

    reader: _Name | None = None
    forwarder: _Name | None = None
    sealing: tuple[_File, ...] = ()  # certificates of parties 0, 1, 2

    @model_validator(mode="after")
    def _has_one_role(self) -> Self:
        if (self.reader is None) == (self.forwarder is None):
            raise ValueError("give one of reader and forwarder")
        if len(self.sealing) != (0 if self.forwarder is None else 3):
            raise ValueError("a forwarder has three sealing certificates, a reader none")
        return self


class ParticipantConfig(MemberConfig):
    """The content of participant.toml, with absolute or caller-relative paths."""

    participant: _Name
    signing: SigningFiles
    relay: bool = True  # the heavy share goes up once; false: to each of its two holders

    @property
    def identity(self) -> Identity:
        """Whom this participant's certificates must speak for."""
        return Identity(self.federation, "participant", self.participant)
