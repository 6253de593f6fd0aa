"""The servers as a container runs them: PID 1 of a namespace, read-only root file system, no capability, user 10001."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from confined_federation import USER, ConfinedFederation, children, not_permitted, status
from rendered_chart import CHART

from triskele import Participant
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES

REASON = not_permitted()
# Making namespaces takes root, which `make test` does not ask for; where it is not given these tests say so and skip.
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.timeout(240)]

DIMENSION = 200
KERNEL_FILE_SYSTEMS = {"proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "cgroup", "cgroup2", "mqueue"}


def scheduled(name: str) -> ScheduledTask:
    spec = TaskSpec(name=name, dimension=DIMENSION, clip_norm=4.0, max_participants=3, rule="mean")
    return ScheduledTask(spec, Schedule(rounds=1, quorum=3, deadline_seconds=150.0, grace_seconds=0.1))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfinedFederation]:
    directory = tmp_path_factory.mktemp("pid-one") / "federation"
    tasks = [scheduled("computed"), scheduled("open")]
    with ConfinedFederation.create(directory, participants=3, tasks=tasks) as running:
        yield running


@pytest.fixture(scope="module")
def members(federation: ConfinedFederation) -> Iterator[list[Participant]]:
    opened = [Participant.from_config(path) for path in federation.made.participants.values()]
    yield opened
    for member in opened:
        member.close()


def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(0.1, 0.01, (3, DIMENSION))


@pytest.mark.parametrize("name", [COORDINATOR, "party-0"])
def test_the_process_is_confined_as_the_chart_confines_it(federation: ConfinedFederation, name: str) -> None:
    pid = federation.first_process(name)
    seen = status(pid)
    assert seen["NSpid"].split()[-1] == "1"
    assert set(seen["Uid"].split()) == {str(USER)}
    assert (seen["CapEff"], seen["CapBnd"], seen["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    mounts = {m[1]: m for m in map(str.split, Path(f"/proc/{pid}/mounts").read_text().splitlines())}  # the last covers
    writable = {point for point, mount in mounts.items() if "rw" in mount[3].split(",")}
    assert {point for point in writable if mounts[point][2] not in KERNEL_FILE_SYSTEMS} == {"/srv/data", "/tmp"}  # noqa: S108
    assert "ro" in mounts["/"][3].split(",")


def test_the_probe_of_helm_test_hears_that_a_party_serves(federation: ConfinedFederation) -> None:
    address = f"127.0.0.1:{federation.ports.parties[1].health}"
    probe = [sys.executable, str(CHART / "files" / "probe.py"), address, "20"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{address}: SERVING\n"), done.stderr


def test_round_in_flight_goes_on_after_sigterm_and_restart_of_a_party(
    federation: ConfinedFederation, members: list[Participant]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        handles = list(pool.map(lambda i: next(members[i].rounds("computed")).submit(rows()[i]), range(3)))
        with members[0].watch("computed", timeout=60) as views:
            seen = next(view.state for view in views if view.state != "OPEN")
        assert federation.terminate("party-1") == 0
        federation.start("party-1")
        results = list(pool.map(lambda handle: handle.result(timeout=120), handles))
    assert seen in ("SEALED", "CHECKED", "FILTERED")
    for result in results:
        np.testing.assert_allclose(result, rows().mean(0), atol=1e-4)
    federation.wait_ready("party-1")


def test_dead_worker_is_reaped_and_a_round_that_was_open_meanwhile_ends(
    federation: ConfinedFederation, members: list[Participant]
) -> None:
    """PID 1 inherits nobody to reap for it; and the coordinator is restarted in order while the round is open."""
    handles = [next(member.rounds("open")).submit(row) for member, row in zip(members[:2], rows(), strict=False)]
    party = federation.first_process("party-0")
    (worker,) = (pid for pid in children(party) if b"--multiprocessing-fork" in command_line(pid))
    os.kill(worker, signal.SIGKILL)
    assert federation.terminate(COORDINATOR) == 0
    federation.start(COORDINATOR)
    federation.wait_ready(COORDINATOR)
    handles.append(next(members[2].rounds("open")).submit(rows()[2]))
    for handle in handles:
        np.testing.assert_allclose(handle.result(timeout=120), rows().mean(0), atol=1e-4)
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():  # a zombie stays for as long as nobody waits for it
        assert time.monotonic() < until
        time.sleep(0.1)
    states = {pid: status(pid)["State"] for pid in children(party)}
    assert worker not in states
    assert not [state for state in states.values() if state.startswith("Z")]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("name", [COORDINATOR, "party-2"])
def test_sigterm_during_the_start_ends_pid_1_too(federation: ConfinedFederation, name: str) -> None:
    """The kernel gives PID 1 no default for SIGTERM: without a handler of our own the signal would be lost."""
    federation.terminate(name)
    federation.start(name)
    federation.listens_to_sigterm(name)
    assert federation.terminate(name) == 0
    assert "serving" not in federation.log(name).read_text().splitlines()[-1]


def test_everything_ends_in_order_on_sigterm(federation: ConfinedFederation) -> None:
    """Last in this file: it stops the federation. `terminate` raises if one takes longer than promised."""
    federation.start(COORDINATOR)
    federation.wait_ready(COORDINATOR)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(federation.terminate, (COORDINATOR, "party-0", "party-1"))) == [0, 0, 0]
    for name in (COORDINATOR, *PARTY_NAMES):
        assert "Traceback" not in federation.log(name).read_text()
