"""Which ports the processes of a federation on one host listen on."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from triskele.errors import ConfigurationError
from triskele.ids import PARTIES

_PORTS_PER_PROCESS = 10  # distance between the base ports of two processes
_PORTS_USED = 15  # 3 of the coordinator, 4 of each party
_DRAWN = range(15000, 32768)
_DRAWS = 100


@dataclass(frozen=True)
class ProcessPorts:
    """The ports of one process; `peer` is None for the coordinator."""

    listen: int
    health: int
    metrics: int
    peer: int | None = None


@dataclass(frozen=True)
class PortPlan:
    """The ports of a whole federation on one host."""

    coordinator: ProcessPorts
    parties: tuple[ProcessPorts, ProcessPorts, ProcessPorts]

    @classmethod
    def from_base(cls, base: int) -> PortPlan:
        """Coordinator at `base` (health +1, metrics +2), party i at base + 10 (i + 1) (and peers +3)."""
        if not 1 <= base <= 65535 - 4 * _PORTS_PER_PROCESS:
            raise ConfigurationError(f"base port {base} leaves no room for {4 * _PORTS_PER_PROCESS} ports")
        starts = [base + _PORTS_PER_PROCESS * (i + 1) for i in PARTIES]
        first, second, third = (ProcessPorts(p, p + 1, p + 2, p + 3) for p in starts)
        return cls(ProcessPorts(base, base + 1, base + 2), (first, second, third))

    @classmethod
    def free(cls, host: str = "127.0.0.1") -> PortPlan:
        """Ports that nobody listens on just now, drawn from below those that systems give to outgoing connections.

        One that the system chose could be such a connection's by the time that its server has started.
        """
        with ExitStack() as stack:
            ports = [_free_port(stack, host) for _ in range(_PORTS_USED)]
        first, second, third = (ProcessPorts(*ports[3 + 4 * i : 7 + 4 * i]) for i in PARTIES)
        return cls(ProcessPorts(*ports[:3]), (first, second, third))


def _free_port(stack: ExitStack, host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = stack.enter_context(socket.socket(family))
    for _ in range(_DRAWS):
        port = _DRAWN.start + secrets.randbelow(len(_DRAWN))
        with suppress(OSError):
            holder.bind((host, port))
            return port
    raise ConfigurationError(
        f"of {_DRAWS} ports of {host} drawn from {_DRAWN.start} to {_DRAWN.stop - 1}, none is free"
    )
