"""What `triskele status` and `triskele top` show: a federation at a glance, as an operator's certificate may see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

import grpc
from pydantic import AfterValidator

from triskele.config import MemberConfig
from triskele.connection import Connections, RetryPolicy
from triskele.coordinator import Coordinator
from triskele.credentials import trusted_parties
from triskele.errors import ConfigurationError, TriskeleError, Unavailable
from triskele.identity import Identity
from triskele.ids import PARTIES, PartyIndex, checked_name
from triskele.limits import DEFAULT_LIMITS
from triskele.views import RoundView, TaskView
from triskele_server.config import Addresses, party_identity
from triskele_server.operations.reach import Unreachable, ask, other_protocol
from triskele_server.rpc.tls import TlsFiles

_ONCE: Final = RetryPolicy(attempts=1, total=5.0)


class OperatorConfig(MemberConfig):
    """The content of operator.toml. `parties` are the addresses where they take calls, as seen from here."""

    operator: Annotated[str, AfterValidator(lambda name: checked_name(name, "operator"))]
    parties: Addresses

    @property
    def files(self) -> TlsFiles:
        """Of the connection, as the rpc package takes them."""
        return TlsFiles(self.tls.certificate, self.tls.key, self.tls.authority)


@dataclass(frozen=True)
class ServerStatus:
    """One server: what it says of itself, or why it says nothing. `clock_ahead` in seconds."""

    name: str
    address: str
    up: bool
    version: str = ""
    clock_ahead: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """One task, its newest round, and how the rounds that the coordinator lists ended."""

    name: str
    rule: str
    rounds: int
    current_round: int
    finished: bool
    state: str
    enrolled: int
    uploaded: int
    quorum: int
    seconds_left: float | None
    released: int
    failed: int
    last_failure: str


@dataclass(frozen=True)
class Status:
    """Everything; `well` if nothing is wrong with any server."""

    federation: str
    servers: tuple[ServerStatus, ...]
    tasks: tuple[TaskStatus, ...]

    @property
    def well(self) -> bool:
        """Whether every server answers, and can be understood."""
        return all(server.up and not server.problem for server in self.servers)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"well": self.well}


class Observer:
    """Asks all servers; connections stay open between two looks. Use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        self._config = OperatorConfig.load(path)
        if set(self._config.parties) != set(PARTIES):
            raise ConfigurationError(f"{path}: parties: give the addresses of parties 0, 1 and 2")
        files = self._config.files
        self._connections = Connections(self._config, _always(files.channel_credentials()), DEFAULT_LIMITS)
        self._coordinator = Coordinator(self._connections, trusted_parties(self._config), DEFAULT_LIMITS, _ONCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.close()

    def look(self, now: float | None = None) -> Status:
        """The federation as it is; what cannot be reached is part of the answer. `now` in Unix seconds."""
        config, moment = self._config, time.time() if now is None else now
        members: Mapping[str, tuple[str, Identity]] = {
            "coordinator": (config.coordinator, Identity(config.federation, "coordinator", "main"))
        } | {f"party {i}": (config.parties[i], party_identity(config.federation, PartyIndex(i))) for i in PARTIES}
        with ThreadPoolExecutor(len(members)) as pool:
            servers = tuple(pool.map(lambda item: self._server(item[0], *item[1]), members.items()))
        tasks: tuple[TaskStatus, ...] = ()
        if servers[0].up:
            try:
                tasks = tuple(self._task(view, moment) for view in self._coordinator.tasks())
            except Unavailable as error:
                servers = (ServerStatus("coordinator", config.coordinator, up=False, problem=str(error)), *servers[1:])
        return Status(config.federation, servers, tasks)

    def _server(self, name: str, address: str, identity: Identity) -> ServerStatus:
        try:
            answer = ask(address, identity, self._config.files)
        except Unreachable as error:
            return ServerStatus(name, address, up=False, problem=f"{error}: {error.remedy}")
        except TriskeleError as error:
            return ServerStatus(name, address, up=False, problem=str(error))
        other = other_protocol(answer.description)
        problem = "" if other is None else ": ".join(other)
        return ServerStatus(name, address, True, answer.description.version, round(answer.ahead, 3), problem)

    def _task(self, view: TaskView, now: float) -> TaskStatus:
        rounds = self._coordinator.rounds(view.spec)
        newest = rounds[-1] if rounds else None
        lost = [r for r in rounds if r.ended and r.state != "RELEASED"]
        is_open = newest is not None and newest.state == "OPEN"
        return TaskStatus(
            name=view.name,
            rule=" + ".join(view.spec.stages),
            rounds=view.rounds,
            current_round=view.current_round,
            finished=view.finished,
            state=newest.state if newest else "",
            enrolled=newest.enrolled if newest else 0,
            uploaded=newest.uploaded if newest else 0,
            quorum=newest.quorum if newest else 0,
            seconds_left=round(newest.deadline - now, 1) if newest is not None and is_open else None,
            released=sum(r.state == "RELEASED" for r in rounds),
            failed=len(lost),
            last_failure=_failure(lost[-1]) if lost else "",
        )


def _always(credentials: grpc.ChannelCredentials) -> Any:
    return lambda: credentials


def _failure(view: RoundView) -> str:
    reason = f"{view.blame.reason} ({view.blame.who})" if view.blame else "no reason given"
    return f"round {view.round} {view.state}: {reason}"
