"""`triskele provision`: a working federation in a folder; certificates, keys and configurations for every process.

    DIR/ca/{ca.crt,ca.key}
    DIR/coordinator/{coordinator.toml,ca.crt,tls.crt,tls.key,denied.txt,tasks/}
    DIR/keys/party-{0,1,2}.pub                                          what whoever checks certificates trusts
    DIR/party-{0,1,2}/{party.toml,ca.crt,tls.crt,tls.key,signing.key,denied.txt}
    DIR/participants/<name>/{participant.toml,ca.crt,tls.crt,tls.key,signing.crt,signing.key,party-{0,1,2}.pub}
    DIR/operator/{operator.toml,ca.crt,tls.crt,tls.key,party-{0,1,2}.pub}   only if asked for
    DIR/reader/{reader.toml,ca.crt,tls.crt,tls.key,party-{0,1,2}.pub}       only if asked for
    DIR/forwarder/{forwarder.toml,ca.crt,tls.crt,tls.key,party-{0,1,2}.pub,sealing-{0,1,2}.crt},
        DIR/party-{0,1,2}/sealing.key                                       only if asked for

Each process needs its own folder and nothing else of DIR. ca.key belongs off-line; `membership` needs it for changes.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from triskele.errors import ConfigurationError, InvalidTask
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, PartyIndex, checked_name
from triskele.task import TaskSpec
from triskele.transparency.party_keys import key_file
from triskele_server.config import Schedule, party_identity
from triskele_server.rpc.certificates import Authority, Credential, certifying_key
from triskele_server.rpc.ports import PortPlan, ProcessPorts

__all__ = [
    "DENY_LIST", "MAX_PARTICIPANTS", "PortPlan", "ProcessPorts", "Provisioned", "provision", "toml_text",
    "write_files", "write_participant", "write_task", "write_task_file",
]  # fmt: skip

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_PARTICIPANTS = 1000  # identities made in one go
KEYS = "keys"  # the folder of the parties' public keys
DENY_LIST = "denied.txt"  # beside the configuration of each server: see rpc/deny_list.py


@dataclass(frozen=True)
class Provisioned:
    """Where everything was written."""

    directory: Path
    federation: str
    coordinator: Path  # configuration files
    parties: tuple[Path, Path, Path]
    participants: Mapping[ParticipantId, Path]
    operator: Path | None
    reader: Path | None = None
    forwarder: Path | None = None


def provision(
    directory: Path,
    *,
    participants: int | Sequence[str],
    federation: str = "demo",
    host: str = "127.0.0.1",
    ports: PortPlan | None = None,
    operator: bool = False,
    reader: bool = False,
    forwarder: bool = False,
    now: datetime.datetime | None = None,
) -> Provisioned:
    """Write a federation into `directory`, which must not exist or be empty; all of it or nothing.

    `participants` is a number (p00, p01, …) or names. `reader` and `forwarder` make an identity for the server of
    another framework, to fetch aggregates and, a forwarder, to bring uploads sealed to the parties.
    Raises ConfigurationError and leaves no file behind.
    """
    names = _participant_names(participants)
    _check_federation(federation)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} already exists: nothing was written, choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))  # mode 0700
    try:
        authority = Authority(federation, now or datetime.datetime.now(datetime.UTC))
        writer = _Writer(building, federation, host, ports or PortPlan.from_base(7000), authority)
        writer.write_all(names, operator=operator, reader=reader, forwarder=forwarder)
        building.rename(directory)  # fails if somebody filled the directory meanwhile
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Provisioned(
        directory,
        federation,
        directory / "coordinator" / "coordinator.toml",
        (_party_file(directory, 0), _party_file(directory, 1), _party_file(directory, 2)),
        {name: directory / "participants" / name / "participant.toml" for name in names},
        directory / "operator" / "operator.toml" if operator else None,
        directory / "reader" / "reader.toml" if reader else None,
        directory / "forwarder" / "forwarder.toml" if forwarder else None,
    )


def write_task(directory: Path, spec: TaskSpec, schedule: Schedule) -> Path:
    """Add a task file to the coordinator of the federation in `directory`; raises ConfigurationError if it exists."""
    return write_task_file(directory / "coordinator" / "tasks", spec, schedule)


def write_task_file(folder: Path, spec: TaskSpec, schedule: Schedule) -> Path:
    """A task file in `folder`; raises ConfigurationError if it exists or cannot be written."""
    content = {
        "name": spec.name,
        "dimension": spec.dimension,
        "clip_norm": spec.clip_norm,
        "rule": list(spec.stages),
        "max_rows": spec.max_rows,
        "decisions": spec.decisions,
        "release": spec.release,
        "gram": spec.gram,
        "ring": spec.ring_bits,
        "max_weight": spec.max_weight,
        "max_participants": spec.max_participants,
        "min_accepted": spec.min_accepted,
        "model_dimension": spec.model_dimension,
        "rule_options": {k: dict(v) if isinstance(v, Mapping) else v for k, v in spec.rule_options.items()},
        "schedule": schedule.model_dump(),
    }
    content |= {} if spec.root is None else {"root": spec.root}
    content |= {"participants": list(spec.participants)} if spec.participants else {}
    content |= {} if spec.privacy is None else {"privacy": asdict(spec.privacy)}
    content |= {"covers": True} if spec.covers else {}
    path = folder / f"{spec.name}.toml"
    try:
        _write(path, toml_text(content).encode())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def toml_text(content: Mapping[str, Any]) -> str:
    """TOML of a table of texts, numbers, booleans, lists and tables of them; tables come last."""
    return "\n".join(_toml_lines(content, ())) + "\n"


def _toml_lines(content: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{_toml_key(key)} = {_toml_value(value)}" for key, value in content.items() if not isinstance(value, Mapping)
    ]
    for key, table in content.items():
        if isinstance(table, Mapping) and table:
            inner = (*path, _toml_key(key))
            lines += ["", f"[{'.'.join(inner)}]", *_toml_lines(table, inner)]
    return lines


class _Writer:
    """Writes one federation below `root`."""

    def __init__(self, root: Path, federation: str, host: str, ports: PortPlan, authority: Authority) -> None:
        self._root = root
        self._federation = federation
        self._host = host
        self._ports = ports
        self._authority = authority

    def write_all(
        self, participants: Sequence[ParticipantId], *, operator: bool, reader: bool, forwarder: bool
    ) -> None:
        authority = self._authority.credential
        write_files(self._root / "ca", {"ca.crt": authority.certificate, "ca.key": authority.key})
        self._coordinator()
        (self._root / KEYS).mkdir(mode=0o700)
        for index in PARTIES:
            certifying = certifying_key()
            write_files(self._root / KEYS, {key_file(index): certifying.certificate})
            write_files(self._root / f"party-{index}", {"signing.key": certifying.key})
            self._party(index, sealing_key="sealing.key" if forwarder else None, readers=reader)
        (self._root / "participants").mkdir(mode=0o700)
        for name in participants:
            write_participant(
                self._root, self._authority, self._federation, name, self._address(self._ports.coordinator.listen)
            )
        if operator:
            addresses = {str(i): self._address(self._ports.parties[i].listen) for i in PARTIES}
            self._caller("operator", {"parties": addresses})
        if reader:
            self._caller("reader", {})
        if forwarder:
            self._forwarder()

    def _coordinator(self) -> None:
        ports = self._ports.coordinator
        folder = self._root / "coordinator"
        content = {
            "federation": self._federation,
            "listen": self._address(ports.listen),
            "data": "data",
            "tasks": "tasks",
            "parties": {str(i): self._address(self._ports.parties[i].listen) for i in PARTIES},
            "tls": _TLS | {"denied": DENY_LIST},
            "probes": self._probes(ports),
        }
        self._member(folder, Identity(self._federation, "coordinator", "main"), "coordinator.toml", content)
        write_files(folder, {DENY_LIST: b""})
        (folder / "tasks").mkdir(mode=0o700)

    def _party(self, index: PartyIndex, *, sealing_key: str | None, readers: bool) -> None:
        ports = self._ports.parties[index]
        peers = {str(i): self._address(p.peer) for i, p in enumerate(self._ports.parties) if i != index and p.peer}
        content = {
            "federation": self._federation,
            "index": index,
            "coordinator": "main",
            "listen": self._address(ports.listen),
            "peer_listen": self._address(ports.peer or 0),
            "data": "data",
            "signing_key": "signing.key",
            "relay_to": self._address(self._ports.parties[(index + 2) % 3].listen),
            "peers": peers,
            "tls": _TLS | {"denied": DENY_LIST},
            "probes": self._probes(ports),
            "policy": {"min_accepted": 2} | ({"readers": True} if readers else {}),
        } | ({} if sealing_key is None else {"sealing_key": sealing_key})
        folder = self._root / f"party-{index}"
        self._member(folder, party_identity(self._federation, index), "party.toml", content)
        write_files(folder, {DENY_LIST: b""})

    def _caller(self, role: Literal["operator", "reader", "forwarder"], more: Mapping[str, Any]) -> None:
        """A member that only ever calls: its role is its name, its folder and its file."""
        content = {
            "federation": self._federation,
            role: role,
            "coordinator": self._address(self._ports.coordinator.listen),
            "tls": _TLS,
            "trust": _TRUST,
        } | dict(more)
        self._member(self._root / role, Identity(self._federation, role, role), f"{role}.toml", content)
        write_files(self._root / role, party_keys(self._root))

    def _forwarder(self) -> None:
        sealing = [self._authority.sealing(party_identity(self._federation, index)) for index in PARTIES]
        names = [f"sealing-{index}.crt" for index in PARTIES]
        self._caller("forwarder", {"sealing": names})
        certificates = {name: made.certificate for name, made in zip(names, sealing, strict=True)}
        write_files(self._root / "forwarder", certificates)
        for index in PARTIES:
            write_files(self._root / f"party-{index}", {"sealing.key": sealing[index].key})

    def _member(self, folder: Path, identity: Identity, name: str, content: Mapping[str, Any]) -> None:
        _write_member(folder, self._authority, identity, name, content)

    def _probes(self, ports: ProcessPorts) -> dict[str, Any]:
        return {"host": self._host, "health_port": ports.health, "metrics_port": ports.metrics}

    def _address(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"


def write_participant(
    directory: Path, authority: Authority, federation: str, name: ParticipantId, coordinator: str
) -> Path:
    """A participant's folder in the federation's `directory`; its participant.toml. Raises OSError if it exists."""
    identity = Identity(federation, "participant", name)
    content = {
        "federation": federation,
        "participant": name,
        "coordinator": coordinator,
        "tls": _TLS,
        "signing": {"certificate": "signing.crt", "key": "signing.key"},
        "trust": _TRUST,
    }
    folder = directory / "participants" / name
    _write_member(folder, authority, identity, "participant.toml", content)
    signing = authority.signing(identity)
    write_files(folder, {"signing.crt": signing.certificate, "signing.key": signing.key} | party_keys(directory))
    return folder / "participant.toml"


def _write_member(
    folder: Path, authority: Authority, identity: Identity, name: str, content: Mapping[str, Any]
) -> None:
    tls: Credential = authority.tls(identity)
    write_files(
        folder,
        {
            name: toml_text(content).encode(),
            "ca.crt": authority.credential.certificate,
            "tls.crt": tls.certificate,
            "tls.key": tls.key,
        },
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """New files in a folder that is made if need be; raises OSError if one of them exists."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        _write(folder / name, content)


def party_keys(directory: Path) -> dict[str, bytes]:
    """The files of the parties' public keys of the federation in `directory`, by name; raises OSError."""
    return {key_file(index): (directory / KEYS / key_file(index)).read_bytes() for index in PARTIES}


_TRUST = {"parties": [key_file(index) for index in PARTIES]}
_TLS = {"authority": "ca.crt", "certificate": "tls.crt", "key": "tls.key"}


def _write(path: Path, content: bytes) -> None:
    """A new file, never an old one; keys are for their owner only."""
    mode = 0o600 if path.suffix == ".key" else 0o644
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _participant_names(participants: int | Sequence[str]) -> tuple[ParticipantId, ...]:
    if isinstance(participants, int):
        if not 1 <= participants <= MAX_PARTICIPANTS:
            raise ConfigurationError(f"{participants} participants: choose 1 to {MAX_PARTICIPANTS}")
        width = max(2, len(str(participants - 1)))
        participants = [f"p{i:0{width}d}" for i in range(participants)]
    try:
        names = tuple(ParticipantId(checked_name(name, "participant")) for name in participants)
    except InvalidTask as error:
        raise ConfigurationError(str(error)) from error
    if not names or len(set(names)) != len(names):
        raise ConfigurationError("participants: give at least one name, each once")
    return names


def _check_federation(federation: str) -> None:
    """The federation's name is part of DNS names (a label of at most 63 characters) and of SPIFFE ids."""
    if len(federation) > 64 or not all(_DNS_LABEL.fullmatch(label) for label in federation.split(".")):
        raise ConfigurationError(
            f"federation {federation[:80]!r} is no domain name: use letters a-z, digits and '-', parted by '.', "
            "64 characters at most"
        )


def _party_file(directory: Path, index: int) -> Path:
    return directory / f"party-{index}" / "party.toml"


def _toml_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
