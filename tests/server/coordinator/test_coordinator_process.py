"""The coordinator as a process of its own: starts, is killed, goes on, refuses what would break a running round."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from fake_parties import WORDS, Federation, federation, tls_files
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postgres_server import PostgresServer
from test_log import filled

from triskele.errors import ConfigurationError
from triskele.identity import Identity
from triskele.ids import PARTIES, TaskName
from triskele.task import TaskSpec
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.config import Schedule, ScheduledTask, load_coordinator
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.process import check_rules, check_unchanged, terms_of
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store
from triskele_server.provision import PortPlan, provision, write_task
from triskele_server.round_state import RoundState
from triskele_server.rpc.channel import open_channel

SPEC = TaskSpec(TaskName("faces"), 1000, 2.0, max_participants=3, min_accepted=2)
SCHEDULE = Schedule(rounds=1, quorum=2, deadline_seconds=300.0, grace_seconds=0.0)
START = """
import asyncio, sys
from pathlib import Path
from triskele_server.config import load_coordinator
from triskele_server.coordinator.process import serve
asyncio.run(serve(load_coordinator(Path(sys.argv[1]))))
"""


class Coordinator:
    """A real coordinator process of a provisioned federation."""

    def __init__(self, directory: Path, ports: PortPlan) -> None:
        self.directory = directory
        self.ports = ports
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        """Start it and wait until it is healthy."""
        configuration = self.directory / "coordinator" / "coordinator.toml"
        command = [sys.executable, "-c", START, str(configuration)]
        self._process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.DEVNULL)
        async with (
            asyncio.timeout(60),
            grpc.aio.insecure_channel(f"127.0.0.1:{self.ports.coordinator.health}") as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            reply = None
            while reply is None or reply.status != health_pb2.HealthCheckResponse.SERVING:
                assert self._process.poll() is None, "the coordinator ended instead of serving"
                try:
                    reply = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

    def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        assert self._process is not None
        os.kill(self._process.pid, how)
        status = self._process.wait(30)
        self._process = None
        return status

    @asynccontextmanager
    async def stub(self, participant: str) -> AsyncIterator[coordinator_pb2_grpc.CoordinatorStub]:
        tls = tls_files(self.directory / "participants" / participant)
        address = f"127.0.0.1:{self.ports.coordinator.listen}"
        async with open_channel(address, Identity("demo", "coordinator", "main"), tls) as channel:
            yield coordinator_pb2_grpc.CoordinatorStub(channel)

    async def enrol(self, participant: str) -> int:
        async with self.stub(participant) as stub:
            request = coordinator_pb2.EnrolRequest(task_digest=SPEC.digest, round=1)
            async with asyncio.timeout(30):
                while True:
                    try:
                        return (await stub.Enrol(request, timeout=30)).slot
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.NOT_FOUND:  # a coordinator that serves opens it soon
                            raise
                    await asyncio.sleep(0.05)

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        status = await asyncio.to_thread(self._process.wait, 60)
        self._process = None
        return status

    async def last_view(self, participant: str) -> coordinator_pb2.RoundView:
        """The task's last round, once nothing can change any more; asks again while the coordinator cannot answer."""
        async with asyncio.timeout(60):
            while True:
                try:
                    async with self.stub(participant) as stub:
                        request = coordinator_pb2.WatchRoundsRequest(task_digest=SPEC.digest)
                        return [view async for view in stub.WatchRounds(request, timeout=60)][-1]
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


@asynccontextmanager
async def cluster(tmp_path: Path, database_url: str = "") -> AsyncIterator[tuple[Coordinator, Federation]]:
    directory, ports = tmp_path / "demo", PortPlan.free()
    made = provision(directory, participants=["alice", "bob"], ports=ports)
    made.coordinator.write_text(f'database_url = "{database_url}"\n{made.coordinator.read_text()}')
    write_task(directory, SPEC, SCHEDULE)
    config = load_coordinator(directory / "coordinator" / "coordinator.toml")
    (tmp_path / "unused").mkdir()
    coordinator = Coordinator(directory, ports)
    async with federation(directory, tmp_path / "unused", [config.parties[p] for p in PARTIES]) as it:
        try:
            yield coordinator, it
        finally:
            coordinator.kill()


def test_coordinator_killed_in_open_and_restarted_finishes_the_same_round(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as (coordinator, it):
            await coordinator.start()
            async with coordinator.stub("alice") as stub:
                watching = stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(task_digest=SPEC.digest), timeout=60)
                assert (await watching.read()).state == "OPEN"
            assert await coordinator.enrol("bob") == 0
            it.upload("bob", 0)
            await it.polled()
            assert coordinator.end(signal.SIGKILL) == -signal.SIGKILL

            await coordinator.start()
            assert await coordinator.enrol("bob") == 0
            assert await coordinator.enrol("alice") == 1
            it.upload("alice", 1)
            async with coordinator.stub("alice") as stub:
                watching = stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(task_digest=SPEC.digest), timeout=60)
                views = [view async for view in watching]
                assert {view.round for view in views} == {1}
                assert views[-1].state == "RELEASED"
                assert list(views[-1].participants) == ["bob", "alice"]
                fetched = [
                    part.chunk.data
                    async for part in stub.FetchResult(
                        coordinator_pb2.FetchResultRequest(task_digest=SPEC.digest, round=1), timeout=60
                    )
                ]
                assert b"".join(fetched) == WORDS
            for party in it.parties:
                await party.until_called("end")
            assert list(it.parties[0].rounds) == [1]
            metrics = await asyncio.to_thread(
                lambda: urllib.request.urlopen(
                    f"http://127.0.0.1:{coordinator.ports.coordinator.metrics}/metrics"
                ).read()
            )
            assert b'triskele_coordinator_round_states_total{state="RELEASED"} 1.0' in metrics

    asyncio.run(scenario())


def test_a_log_of_earlier_days_is_cosigned_without_another_round(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as (coordinator, it):
            config = load_coordinator(coordinator.directory / "coordinator" / "coordinator.toml")
            config.data.mkdir(exist_ok=True)
            with closing(Store(config.database)) as store:
                filled(Log(store, config.federation), 2)
            await coordinator.start()
            for party in it.parties:
                await party.until_called("cosign")
            assert coordinator.end(signal.SIGTERM) == 0

    asyncio.run(scenario())


CLAIM = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"


def test_round_on_postgres_outlasts_broken_connections(tmp_path: Path, postgres: PostgresServer) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        async with cluster(tmp_path, url) as (coordinator, it):
            await coordinator.start()
            with pytest.raises(ConfigurationError, match="another coordinator"), claimed(url, 0.0):
                pass
            assert await coordinator.enrol("bob") == 0
            assert coordinator.end(signal.SIGKILL) == -signal.SIGKILL
            await coordinator.start()  # takes the claim of the one that was killed
            assert postgres.break_connections(url, spare=CLAIM)
            assert await coordinator.enrol("alice") == 1
            it.upload("bob", 0)
            for _ in range(5):
                assert await asyncio.to_thread(postgres.break_connections, url, spare=CLAIM)
                await it.polled()
            it.upload("alice", 1)
            view = await coordinator.last_view("alice")
            assert (view.round, view.state, list(view.participants)) == (1, "RELEASED", ["bob", "alice"])
            for party in it.parties:
                await party.until_called("end")

    asyncio.run(scenario())


def test_postgres_restarted_ends_the_coordinator_and_the_next_one_goes_on(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        async with cluster(tmp_path, url) as (coordinator, it):
            await coordinator.start()
            assert await coordinator.enrol("bob") == 0
            postgres.stop()
            try:
                assert await coordinator.ended() == 1
            finally:
                postgres.start()
            await coordinator.start()
            assert await coordinator.enrol("alice") == 1
            it.upload("bob", 0)
            it.upload("alice", 1)
            view = await coordinator.last_view("alice")
            assert (view.round, view.state, list(view.participants)) == (1, "RELEASED", ["bob", "alice"])

    asyncio.run(scenario())


def test_sigterm_ends_the_coordinator_cleanly_even_with_a_watcher(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as (coordinator, _):
            await coordinator.start()
            async with coordinator.stub("alice") as stub:
                watching = stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(task_digest=SPEC.digest), timeout=60)
                assert (await watching.read()).state == "OPEN"
                assert await asyncio.to_thread(coordinator.end, signal.SIGTERM) == 0
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watching.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_coordinator_never_loads_what_computes_on_shares(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    provision(directory, participants=2)
    write_task(directory, SPEC, SCHEDULE)
    code = """
import sys
from pathlib import Path
import triskele_server.coordinator.process as process
from triskele_server.config import load_coordinator, load_tasks
tasks = load_tasks(load_coordinator(Path(sys.argv[1])).tasks)
process.check_rules(tasks)
assert len(tasks) == 1
print(*sys.modules)
"""
    configuration = directory / "coordinator" / "coordinator.toml"
    done = subprocess.run([sys.executable, "-c", code, str(configuration)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "triskele_server.coordinator.runner" in loaded
    computing = ("triskele_server.mpc", "triskele_server.linear", "triskele_server.party")
    forbidden = ("torch", "crypten", "numba", "scipy", "pandas", *computing)
    assert {name for name in forbidden if name in loaded} == set()


def test_task_with_an_unknown_rule_is_refused_at_the_start() -> None:
    task = ScheduledTask(TaskSpec(TaskName("faces"), 10, 1.0, rule="no-such-rule"), SCHEDULE)
    with pytest.raises(ConfigurationError, match=r"faces.*no-such-rule"):
        check_rules([task])


def test_task_file_may_not_change_or_vanish_under_a_running_round(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'coordinator.db'}")
    changed = TaskSpec(SPEC.name, SPEC.dimension, 3.0, max_participants=3)
    store.put_task(SPEC, 3)
    store.open_round(RoundId(SPEC.digest, 1), terms_of(ScheduledTask(SPEC, SCHEDULE)), 100.0)
    check_unchanged(store.in_progress(), [ScheduledTask(SPEC, Schedule(rounds=9, quorum=3))])
    with pytest.raises(ConfigurationError, match=r"has changed.*round 1.*put the earlier file back"):
        check_unchanged(store.in_progress(), [ScheduledTask(changed, SCHEDULE)])
    with pytest.raises(ConfigurationError, match=r"no file.*round 1"):
        check_unchanged(store.in_progress(), [])
    store.seal(RoundId(SPEC.digest, 1), (), ())
    store.follow(RoundId(SPEC.digest, 1), RoundState.COMBINED)
    with pytest.raises(ConfigurationError):
        check_unchanged(store.in_progress(), [ScheduledTask(changed, SCHEDULE)])
    store.close()
