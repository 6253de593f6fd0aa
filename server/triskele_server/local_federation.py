"""A whole federation on this machine: coordinator and three parties as real processes, mutual TLS on loopback.

The demo, the benchmarks and the end-to-end tests stand on it. Production processes are started by an orchestrator.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triskele.errors import Unavailable
from triskele.ids import PARTIES
from triskele_server.config import ScheduledTask
from triskele_server.provision import PortPlan, Provisioned, provision, write_task

START_SECONDS = 90.0  # importing torch three times on a busy machine
STOP_SECONDS = 15.0
COORDINATOR = "coordinator"
PARTY_NAMES = tuple(f"party-{i}" for i in PARTIES)


@dataclass
class LocalFederation:
    """Four processes, by name: "coordinator", "party-0", "party-1", "party-2". Logs are in `<directory>/logs`."""

    program: ClassVar[Sequence[str]] = (sys.executable, "-m", "triskele")  # what processes are started as
    made: Provisioned
    ports: PortPlan
    link_delay: float = 0.0  # seconds that frames between parties are held back: a benchmark's
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _logs: dict[str, IO[bytes]] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        participants: int | Sequence[str],
        tasks: Sequence[ScheduledTask],
        operator: bool = False,
        reader: bool = False,
        forwarder: bool = False,
        link_delay: float = 0.0,
    ) -> Self:
        """Provision a federation with these tasks on free ports; nothing runs yet."""
        ports = PortPlan.free()
        made = provision(
            directory, participants=participants, ports=ports, operator=operator, reader=reader, forwarder=forwarder
        )
        for task in tasks:
            write_task(directory, task.spec, task.schedule)
        (directory / "logs").mkdir()
        return cls(made, ports, link_delay)

    def __enter__(self) -> Self:
        """Start all processes and wait until each serves."""
        try:
            for name in (COORDINATOR, *PARTY_NAMES):
                self.start(name)
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """Where a process logs to."""
        return self.made.directory / "logs" / f"{name}.log"

    def start(self, name: str) -> None:
        """Start one process."""
        role = COORDINATOR if name == COORDINATOR else "party"
        config = self.made.coordinator if name == COORDINATOR else self.made.parties[PARTY_NAMES.index(name)]
        self._logs[name] = self.log(name).open("ab")
        command = [*self.program, role, "--config", str(config)]
        if self.link_delay and role == "party":
            module = "triskele_server.benchmark.delayed_party"
            command = [sys.executable, "-m", module, "--config", str(config), "--link-delay", str(self.link_delay)]
        self._processes[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and files
            command, stdin=subprocess.DEVNULL, stdout=self._logs[name], stderr=self._logs[name]
        )

    def wait_ready(self, *names: str) -> None:
        """Wait until the named processes (all, if none is named) say on their health port that they serve.

        Raises Unavailable with the end of its log if one stops instead or takes too long.
        """
        until = time.monotonic() + START_SECONDS
        for name in names or (COORDINATOR, *PARTY_NAMES):
            while not self._serves(name):
                if self._processes[name].poll() is not None or time.monotonic() > until:
                    raise Unavailable(f"{name} did not start; the end of {self.log(name)}:\n{self._log_end(name)}")
                time.sleep(0.1)

    def process_ids(self) -> dict[str, int]:
        """Of the running processes, by name; a party's worker is its child."""
        return {name: process.pid for name, process in self._processes.items()}

    def kill(self, name: str) -> None:
        """End a process at once, as a crash would (SIGKILL)."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        self._logs.pop(name).close()

    def stop(self) -> None:
        """End every process in order (SIGTERM), and those that do not end at once."""
        for process in self._processes.values():
            process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._logs[name].close()
        self._processes.clear()

    def _serves(self, name: str) -> bool:
        plan = self.ports.coordinator if name == COORDINATOR else self.ports.parties[PARTY_NAMES.index(name)]
        with grpc.insecure_channel(f"127.0.0.1:{plan.health}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.RpcError):
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    def _log_end(self, name: str) -> str:
        return self.log(name).read_text("utf-8", "replace")[-2000:]
