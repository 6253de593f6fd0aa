"""`triskele party` as a process: it becomes ready, survives kill -9 with its data, and ends in order on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triskele.errors import ConfigurationError
from triskele.task import TaskSpec
from triskele_proto.v1 import control_pb2, control_pb2_grpc
from triskele_server.config import load_party
from triskele_server.party.process import running
from triskele_server.provision import PortPlan, provision
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.tls import TlsFiles

READY_SECONDS = 60.0  # the worker process imports torch


class Process:
    """One `triskele party` and its log."""

    def __init__(self, config, log) -> None:
        self.config = load_party(config)
        self._log = log
        code = "import sys; from triskele.cli import main; sys.exit(main())"
        with log.open("ab") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", code, "party", "--config", str(config)], stderr=stderr, start_new_session=True
            )

    def wait_ready(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self.config.probes.health_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            deadline = time.monotonic() + READY_SECONDS
            while time.monotonic() < deadline and self.popen.poll() is None:
                try:
                    if stub.Check(health_pb2.HealthCheckRequest(), timeout=1).status == 1:
                        return
                except grpc.RpcError:
                    time.sleep(0.05)
        raise AssertionError(f"not ready: {self._log.read_text()}")

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    made = provision(tmp_path / "federation", participants=1, ports=PortPlan.free())
    started = []

    def begin() -> Process:
        process = Process(made.parties[0], tmp_path / "log")
        started.append(process)
        return process

    begin.directory = made.directory
    yield begin
    for process in started:
        if process.popen.poll() is None:
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait(20)


def test_party_comes_back_with_its_rounds_after_kill_minus_9_and_ends_with_0_on_sigterm(start):
    spec = TaskSpec("face", 10, 1.0, max_participants=4)
    folder = start.directory / "coordinator"

    async def call(process, method, request):
        tls = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        async with open_channel(process.config.listen, process.config.identity, tls) as channel:
            return await getattr(control_pb2_grpc.PartyControlStub(channel), method)(request, timeout=20)

    first = start()
    first.wait_ready()
    opened = asyncio.run(call(first, "OpenRound", control_pb2.OpenRoundRequest(task=spec.canonical(), round=1)))
    first.popen.kill()  # the party only; its worker has to notice by itself
    first.popen.wait(20)

    second = start()
    second.wait_ready()
    found = asyncio.run(call(second, "RoundStatus", control_pb2.RoundRequest(task_digest=spec.digest, round=1)))
    assert found == opened

    second.popen.send_signal(signal.SIGTERM)
    assert second.popen.wait(20) == 0
    events = second.events()
    assert [e["event"] for e in events if e["event"] in ("serving", "stopping")] == ["serving", "serving", "stopping"]
    assert {e["process"] for e in events if e["event"] == "rpc"} == {"party-0"}


def test_sigterm_during_the_start_ends_in_order_too(start):
    process = start()
    deadline = time.monotonic() + READY_SECONDS
    while not _catches_sigterm(process.popen.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0


def _catches_sigterm(pid: int) -> bool:
    """Whether the process has set a handler for SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_party_without_its_key_says_so_with_exit_code_2(start, tmp_path):
    config = start.directory / "party-0" / "party.toml"
    config.write_text(config.read_text().replace("tls.key", "other.key"))
    process = start()
    assert process.popen.wait(60) == 2
    assert "other.key" in (tmp_path / "log").read_text()


def test_data_folder_in_use_is_told(start_party):
    async def scenario():
        async with start_party() as party:
            with pytest.raises(ConfigurationError, match="another party process"):
                async with running(party.config, party.runner):
                    pass
        async with start_party():  # free again
            pass

    asyncio.run(scenario())
