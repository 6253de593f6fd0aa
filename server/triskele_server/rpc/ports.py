"""Which ports the processes of a federation on one host listen on."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from triskele.errors import ConfigurationError
from triskele.ids import PARTIES

_PORTS_PER_PROCESS = 10  # distance between the base ports of two processes
_BLOCK = 15  # ports of a federation: 3 of the coordinator, 4 of each party
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

        One that the system chose could be such a connection's by the time that its server has started. Until this
        process ends no other one that asks here for this account's ports gets them.
        """
        for _ in range(_DRAWS):
            base = _DRAWN.start + secrets.randbelow(len(_DRAWN) // _BLOCK) * _BLOCK
            if _claimed(base) and _all_free(host, range(base, base + _BLOCK)):
                first, second, third = (ProcessPorts(p, p + 1, p + 2, p + 3) for p in range(base + 3, base + _BLOCK, 4))
                return cls(ProcessPorts(base, base + 1, base + 2), (first, second, third))
        raise ConfigurationError(
            f"of {_DRAWS} blocks of {_BLOCK} ports of {host} drawn from {_DRAWN.start} to {_DRAWN.stop}, none is free"
        )


def _claimed(base: int) -> bool:
    """Whether the block of ports is this process's from now on: its file could be locked, and stays open."""
    folder = Path(tempfile.gettempdir()) / f"triskele-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / str(base), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def _all_free(host: str, ports: range) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        for port in ports:
            try:
                stack.enter_context(socket.socket(family)).bind((host, port))
            except OSError:
                return False
    return True
