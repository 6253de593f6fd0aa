"""Configuration files of the servers, read from TOML; paths in a file are relative to that file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from triskele.config import read_toml
from triskele.errors import ConfigurationError, InvalidTask
from triskele.identity import Identity
from triskele.ids import PARTIES, PartyIndex
from triskele.limits import DEFAULT_LIMITS
from triskele.task import Decisions, Release, TaskSpec
from triskele_server.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from triskele_server.rpc.tls import TlsFiles


def _resolved(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None or path.is_absolute() else Path(base) / path


def _address(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("must be host:port")
    return text


def _label(text: str) -> str:
    try:
        Identity.parse(f"spiffe://{text}/operator/any")
    except ConfigurationError as error:
        raise ValueError("must be 1 to 64 characters of a-z, 0-9, '.', '_', '-'") from error
    return text


def _party_keys(table: Any) -> Any:
    """TOML keys are text; party indices are not."""
    if isinstance(table, dict):
        return {int(k) if isinstance(k, str) and k.isdigit() else k: v for k, v in table.items()}
    return table


FilePath = Annotated[Path, AfterValidator(_resolved)]
Address = Annotated[str, AfterValidator(_address)]
Index = Annotated[PartyIndex, Field(ge=0, le=2)]
Addresses = Annotated[dict[Index, Address], BeforeValidator(_party_keys)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class TlsTable(_Table):
    """PEM files of this process."""

    authority: FilePath
    certificate: FilePath
    key: FilePath
    denied: FilePath | None = None  # members and certificates that are refused: rpc/deny_list.py

    @property
    def files(self) -> TlsFiles:
        """The same as the rpc package takes them."""
        return TlsFiles(self.certificate, self.key, self.authority, self.denied)


class ProbesTable(_Table):
    """Plain-text ports for kubelet and Prometheus: 0 takes a free port, negative or absent switches it off."""

    host: str = "127.0.0.1"
    health_port: int | None = None
    metrics_port: int | None = None


BUILT_IN_RULES = (
    *("bucketing", "nnm"),
    *("mean", "norm-clip", "flame", "fltrust", "multi-krum", "krum", "dnc", "foolsgold"),
    *("geometric-median", "centered-clip", "median", "trimmed-mean"),
)


class PolicyTable(_Table):
    """What this party lets a coordinator ask of it; a task outside is refused with the reason."""

    min_accepted: int = Field(2, ge=2)
    rules: tuple[str, ...] = BUILT_IN_RULES
    rule_sources: dict[str, str] = Field(default_factory=dict)  # of rules of other packages: SHA-256 of their source
    decisions: tuple[Decisions, ...] = ("public", "hidden")
    releases: tuple[Release, ...] = ("participants", "public")
    readers: bool = False  # whether a reader may unmask aggregates, as participants may
    max_dimension: int = Field(DEFAULT_LIMITS.max_dimension, ge=1)
    max_participants: int = Field(DEFAULT_LIMITS.max_participants, ge=2)
    min_noise_multiplier: float = Field(0.0, ge=0, allow_inf_nan=False)  # above 0: no task without noise
    max_epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)  # set: no task without a guarantee
    max_delta: float = Field(1e-5, gt=0, lt=1)  # beside max_epsilon


class PartyConfig(_Table):
    """One party. `listen` serves participants and the coordinator, `peer_listen` the two other parties."""

    federation: Annotated[str, AfterValidator(_label)]
    index: Index
    listen: Address
    peer_listen: Address
    peers: Addresses  # of the two other parties' peer_listen, as seen from here
    tls: TlsTable
    data: FilePath
    signing_key: FilePath  # Ed25519, PEM: signs the certificates of rounds; separate from TLS
    relay_to: Address | None = None  # the previous party's `listen`, as seen from here; without it nothing is relayed
    coordinator: str = "main"  # the only coordinator that may drive this party
    sealing_key: FilePath | None = None  # X25519, PEM; without it no forwarder may bring sealed uploads
    probes: ProbesTable = ProbesTable()
    policy: PolicyTable = PolicyTable()
    limits: ServerLimits = DEFAULT_SERVER_LIMITS

    @model_validator(mode="after")
    def _names_its_peers(self) -> Self:
        if set(self.peers) != set(PARTIES) - {self.index}:
            raise ValueError(f"peers must give the addresses of the two parties other than {self.index}")
        return self

    @property
    def identity(self) -> Identity:
        """This party."""
        return party_identity(self.federation, self.index)


class CoordinatorConfig(_Table):
    """The coordinator. `parties` are as seen from here, `advertised` (default: the same) as seen by participants."""

    federation: Annotated[str, AfterValidator(_label)]
    listen: Address
    parties: Addresses
    tls: TlsTable
    data: FilePath
    name: str = "main"
    tasks: FilePath
    database_url: str = ""  # SQLAlchemy URL; empty: SQLite in `data`
    advertised: Addresses = Field(default_factory=dict)
    probes: ProbesTable = ProbesTable()
    limits: ServerLimits = DEFAULT_SERVER_LIMITS

    @model_validator(mode="after")
    def _names_three_parties(self) -> Self:
        if set(self.parties) != set(PARTIES) or set(self.advertised) not in (set(), set(PARTIES)):
            raise ValueError("parties (and advertised, if given) must hold the addresses of parties 0, 1 and 2")
        return self

    @property
    def identity(self) -> Identity:
        """This coordinator."""
        return Identity(self.federation, "coordinator", self.name)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the coordinator's state."""
        return self.database_url or f"sqlite:///{self.data / 'coordinator.db'}"

    @property
    def party_addresses(self) -> dict[PartyIndex, str]:
        """Where participants reach parties 0, 1, 2."""
        return dict(self.advertised or self.parties)


class Schedule(_Table):
    """The [schedule] of a task file: how many rounds, and when each one closes."""

    rounds: int = Field(ge=1)
    quorum: int = Field(ge=2)  # complete submissions after which the grace period begins
    deadline_seconds: float = Field(600.0, gt=0, allow_inf_nan=False)
    grace_seconds: float = Field(1.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class ScheduledTask:
    """One task file."""

    spec: TaskSpec
    schedule: Schedule


def party_identity(federation: str, index: PartyIndex) -> Identity:
    """Party `index` of a federation."""
    return Identity(federation, "party", str(index))


def load_party(path: Path) -> PartyConfig:
    """Read party.toml; raises ConfigurationError naming file and key."""
    return _validated(PartyConfig, read_toml(path), path)


def load_coordinator(path: Path) -> CoordinatorConfig:
    """Read coordinator.toml; raises ConfigurationError naming file and key."""
    return _validated(CoordinatorConfig, read_toml(path), path)


def load_task(path: Path) -> ScheduledTask:
    """Read a task file: TaskSpec's fields, `ring` and a [schedule]; raises ConfigurationError naming file and key."""
    from triskele_server.rules import with_ring  # noqa: PLC0415  loads the rules' code, not for `--help`

    content = read_toml(path)
    schedule = _validated(Schedule, content.pop("schedule", {}), path, "schedule.")
    try:
        ring = content.pop("ring", "auto")
        for name in ("ring_bits", "fraction_bits"):
            if name in content:
                raise InvalidTask(f"{name} follows from ring: 'auto', 32 or 64")
        spec = with_ring(TaskSpec(**content), ring)
    except (InvalidTask, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if not spec.min_accepted <= schedule.quorum <= spec.max_participants:
        raise ConfigurationError(
            f"{path}: schedule.quorum: {schedule.quorum} is not between min_accepted ({spec.min_accepted}) and "
            f"max_participants ({spec.max_participants})"
        )
    return ScheduledTask(spec, schedule)


def load_tasks(folder: Path) -> tuple[ScheduledTask, ...]:
    """All task files (*.toml) of a folder, by file name; raises ConfigurationError, also if two share a name."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: the folder of task files does not exist")
    tasks: dict[str, ScheduledTask] = {}
    for path in sorted(folder.glob("*.toml")):
        task = load_task(path)
        if task.spec.name in tasks:
            raise ConfigurationError(f"{path}: name: another file already holds a task {task.spec.name!r}")
        tasks[task.spec.name] = task
    return tuple(tasks.values())


_Model = TypeVar("_Model", bound=_Table)


def _validated(model: type[_Model], content: Any, path: Path, prefix: str = "") -> _Model:
    try:
        return model.model_validate(content, context={"base": path.parent.absolute()})
    except ValidationError as error:
        problems = "; ".join(
            f"{prefix}{'.'.join(map(str, e['loc'])) or '(whole file)'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigurationError(f"{path}: {problems}") from error
