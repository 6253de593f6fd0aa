"""A federation as its operators know it, in one order: a traced round, a backup, a party put back, one that is away."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e.conftest import scheduled
from e2e.test_commands import triskele
from triskele import Participant
from triskele.errors import IncompatibleVersion, WrongState
from triskele.protocol import PROTOCOL
from triskele.tracing import TRACES, VARIABLE, RoundTrace
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation
from triskele_server.membership import rotate
from triskele_server.metrics.mpc import STEPS

pytestmark = pytest.mark.timeout(240)

DIMENSION = 400
MEMBERS = 3
TASK = scheduled("watched", dimension=DIMENSION, rounds=20, quorum=MEMBERS)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every process of this file writes its spans, this one too."""
    folder = tmp_path_factory.mktemp("traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"folder:{folder}")
        yield folder
    TRACES.use(None)


@pytest.fixture(scope="module")
def federation(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    directory = tmp_path_factory.mktemp("day") / "federation"
    with LocalFederation.create(directory, participants=MEMBERS, tasks=[TASK], operator=True) as running:
        yield running


@pytest.fixture(scope="module")
def members(federation: LocalFederation) -> Iterator[list[Participant]]:
    opened = [Participant.from_config(path) for path in federation.made.participants.values()]
    yield opened
    for member in opened:
        member.close()


def run_round(members: list[Participant], number: int) -> list[np.ndarray]:
    """The next round, which has this number; what each participant got."""

    def take_part(member: Participant) -> np.ndarray:
        round_ = next(r for r in member.rounds("watched") if r.number >= number)
        assert round_.number == number
        return round_.submit(np.full(DIMENSION, 0.01 * number)).result(timeout=100)

    with ThreadPoolExecutor(MEMBERS) as pool:
        return list(pool.map(take_part, members))


def spans(traces: Path) -> dict[str, list[dict[str, Any]]]:
    """What each process has written."""
    return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in traces.iterdir()}


def ended_round(traces: Path, number: int) -> dict[str, Any]:
    """The root span, which ends a moment after participants have their result."""
    until = time.monotonic() + 20
    while True:
        for span in spans(traces)[COORDINATOR]:
            if (span["name"], span["attributes"].get("triskele.round")) == ("round", number):
                return span
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_round_is_one_trace_across_all_processes_and_holds_no_secret(
    federation: LocalFederation, members: list[Participant], traces: Path
) -> None:
    run_round(members, 1)
    root, found = ended_round(traces, 1), spans(traces)
    own = f"0x{RoundTrace(TASK.spec.digest, 1).ids[0]:032x}"
    of_round = {p: [s for s in each if s["context"]["trace_id"] == own] for p, each in found.items()}
    workers = [f"{name}-mpc" for name in PARTY_NAMES]
    assert set(of_round) == {COORDINATOR, *PARTY_NAMES, *workers, "participant-p00"}  # the test's own process
    # Whatever is not of this round is of the next one, which has begun: no span stands alone.
    later = f"0x{RoundTrace(TASK.spec.digest, 2).ids[0]:032x}"
    assert {s["context"]["trace_id"] for each in found.values() for s in each} <= {own, later}
    # One tree: every span's parent is a span of the trace, but the root's.
    every = {s["context"]["span_id"]: s for each in of_round.values() for s in each}
    assert [s for s in every.values() if s["parent_id"] not in every] == [root]
    assert (root["parent_id"], root["attributes"]["triskele.state"]) == (None, "RELEASED")
    for worker in workers:
        assert [s["name"] for s in of_round[worker]] == [*(s for s in STEPS if s != "gram"), "compute"]
        compute = of_round[worker][-1]
        attempt = every[compute["parent_id"]]
        assert (attempt["name"], every[attempt["parent_id"]]["name"]) == (
            "attempt",
            "/triskele.v1.PartyControl/RunRound",
        )
    uploads = [s for s in of_round["party-1"] if s["name"] == "/triskele.v1.Party/Upload"]
    assert sorted(every[every[u["parent_id"]]["parent_id"]]["attributes"]["triskele.participant"] for u in uploads) == [
        "p00", "p01", "p02",
    ]  # fmt: skip
    known = {"task", "round", "task_name", "state", "reason", "who", "participant", "party", "attempt", "rounds"}
    attributes = {k: v for s in every.values() for k, v in s["attributes"].items()}
    assert set(attributes) <= {f"triskele.{name}" for name in known | {"bytes_sent"}}
    assert all(s["events"] == s["links"] == [] for s in every.values())
    # A line of the log says which trace it belongs to.
    logged = [json.loads(line) for line in federation.log("party-2").read_text().splitlines()]
    assert {line.get("trace") for line in logged if line.get("rpc") == "/triskele.v1.Party/Upload"} == {own[2:]}


def test_every_line_of_a_round_names_task_and_round(federation: LocalFederation) -> None:
    digest = TASK.spec.digest[:8].hex()
    for name in PARTY_NAMES:
        lines = [json.loads(line) for line in federation.log(name).read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        assert {(s["task"], s["round"], s["attempt"], s["process"]) for s in steps} == {(digest, 1, 1, f"{name}-mpc")}
        rpcs = [line for line in lines if line["event"] == "rpc"]
        calls = [line for line in rpcs if line["rpc"] != "/triskele.v1.PartyControl/Cosign"]  # of the log of all tasks
        assert {(c["task"], c["round"] in (1, 2)) for c in calls} == {(digest, True)}
        assert {c["caller"].split("/")[3] for c in calls} == {"coordinator", "participant", "party"}
        assert len({c["rpc"] for c in calls}) >= 7
        streams = [c for c in calls if c["rpc"] == "/triskele.v1.Peer/Exchange"]
        assert [(s["round"], s["attempt"], s["process"]) for s in streams] == [(1, 1, f"{name}-mpc")]


def test_members_put_back_to_an_earlier_day_open_nothing_twice_and_serve_the_same_bytes(
    federation: LocalFederation, members: list[Participant], tmp_path: Path
) -> None:
    made = federation.made
    coordinator, party = made.coordinator.parent / "data", made.parties[1].parent / "data"
    rounds = [next(r for r in member.rounds("watched") if r.number == 2) for member in members]
    handles = [rounds[i].submit(np.full(DIMENSION, 0.02)) for i in range(MEMBERS - 1)]
    shutil.copytree(party, tmp_path / "party")  # as a snapshot of the volume would: shares of an open round in it
    handles.append(rounds[-1].submit(np.full(DIMENSION, 0.02)))
    for handle in handles:
        handle.result(timeout=100)
    report = json.loads(
        triskele("backup", "--config", str(made.coordinator), "--to", str(tmp_path / "kept"), "--json").stdout
    )
    assert [Path(file).name.split("-")[-1] for file in report["files"]] == ["coordinator.db", "1.words", "2.words"]
    released = members[0].round("watched", 1).aggregate()
    run_round(members, 3)
    saved = save_log(federation, tmp_path / "log.jsonl", entries=3)

    for name, folder, kept in ((COORDINATOR, coordinator, "kept"), ("party-1", party, "party")):
        federation.kill(name)
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / kept, folder)
        if name == COORDINATOR:  # parties cosign no shorter log: what the database lost comes back from a saved copy
            restored = run_module(
                "triskele_server.coordinator.log_restore", str(saved), "--config", str(made.coordinator)
            )
            assert restored["added"] in (1, 2)  # the backup was taken while round 2 was being closed
        federation.start(name)
    federation.wait_ready(COORDINATOR, "party-1")
    # The coordinator has forgotten how round 3 ended: the parties do not compute it again, and round 4 is sound.
    run_round(members, 4)
    view = members[0].round("watched", 3).view
    assert (view.state, view.blame.reason if view.blame else "") == ("FAILED", "out_of_step")
    np.testing.assert_array_equal(members[0].round("watched", 1).aggregate(), released)
    # Of round 2 the party has lost its keys of the mask: the same words are served, and nobody unmasks them again.
    for kept in (tmp_path / "kept").rglob("*.words"):
        assert next(coordinator.rglob(kept.name)).read_bytes() == kept.read_bytes()
    with pytest.raises(WrongState, match=r"party 1: .* only a released round has keys"):
        members[0].round("watched", 2).aggregate()
    # The party ends the round that went on without it, deletes its shares, and computes nothing of it again.
    ended = wait_for_line(federation, "party-1", event="round_ended", reason="ended_by_coordinator", round=2)
    assert ended["state"] == "FAILED"
    steps = [x for x in lines_of(federation, "party-1") if (x["event"], x.get("step")) == ("step", "combine")]
    assert [x["round"] for x in steps] == [1, 2, 3, 4]
    assert [path for path in (party / "rounds").rglob("*") if path.is_file()] == []
    # One log, which every party goes on cosigning: round 3 stands in it as it was released.
    audited = json.loads(triskele("audit", str(save_log(federation, tmp_path / "after.jsonl", entries=4)), "--keys",
                                  str(made.directory / "keys"), "--json").stdout)  # fmt: skip
    (task,) = audited["tasks"]
    assert (audited["clean"], [r["state"] for r in task["rounds"]][:4]) == (True, ["RELEASED"] * 4)
    assert (tmp_path / "after.jsonl").read_bytes().startswith(saved.read_bytes().rsplit(b"\n", 2)[0])


def save_log(federation: LocalFederation, path: Path, *, entries: int) -> Path:
    """The log, once it has so many entries: a round is closed a moment after participants have its result."""
    until = time.monotonic() + 20
    while True:
        done = triskele("audit", "--config", str(federation.made.operator), "--save", str(path), "--json")
        if done.returncode == 0 and json.loads(done.stdout)["entries"] >= entries:
            return path
        assert time.monotonic() < until, done
        time.sleep(0.1)


def run_module(module: str, *arguments: str) -> dict[str, Any]:
    keys = ("--keys", str(Path(arguments[-1]).parents[1] / "keys"))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, *keys], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(federation: LocalFederation, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in federation.log(name).read_text().splitlines() if line.startswith("{")]


def wait_for_line(federation: LocalFederation, name: str, **fields: Any) -> dict[str, Any]:
    until = time.monotonic() + 20
    while True:
        for line in lines_of(federation, name):
            if fields.items() <= line.items():
                return line
        assert time.monotonic() < until, fields
        time.sleep(0.1)


def status(federation: LocalFederation, name: str) -> tuple[int, dict[str, Any]]:
    done = triskele("status", "--config", str(federation.made.operator), "--json")
    return done.returncode, next(s for s in json.loads(done.stdout)["servers"] if s["name"] == name)


def test_a_party_that_is_away_of_another_version_or_expired_is_told_with_what_to_do(
    federation: LocalFederation, members: list[Participant], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 5
    federation.kill("party-2")
    code, seen = status(federation, "party 2")
    assert (code, seen["up"], seen["problem"]) == (
        4, False, "nobody listens there (Connection refused): start it, or correct the address or its listen setting",
    )  # fmt: skip

    # A party of the next protocol, as in the middle of an upgrade.
    start = (
        "import sys; from triskele import cli, protocol; protocol.PROTOCOL = {}; sys.argv[0] = 'triskele'; cli.main()"
    )
    newer = start.format(PROTOCOL + 1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFederation, "program", [sys.executable, "-c", newer])
        federation.start("party-2")
    federation.wait_ready("party-2")
    told = f"it speaks protocol {PROTOCOL + 1}, this program {PROTOCOL}: it is newer: upgrade this program"
    code, seen = status(federation, "party 2")
    assert (code, seen["up"], seen["problem"]) == (4, True, told)
    checked = triskele("preflight", "--config", str(federation.made.coordinator), "--json")
    (fault,) = [f for f in json.loads(checked.stdout)["findings"] if f["outcome"] == "fault"]
    assert (checked.returncode, fault["check"], f"{fault['found']}: {fault['remedy']}") == (2, "party 2", told)
    refusal = f"the caller speaks protocol {PROTOCOL}, this server {PROTOCOL + 1}: upgrade the caller"
    round_ = next(r for r in members[0].rounds("watched") if r.number == number)
    with pytest.raises(IncompatibleVersion, match=f"party 2: {refusal}"):
        round_.submit(np.full(DIMENSION, 0.01 * number))
    until = time.monotonic() + 10
    while refusal not in federation.log(COORDINATOR).read_text():  # asked every half a second
        assert time.monotonic() < until
        time.sleep(0.1)
    assert '"reason": "incompatible_version"' in federation.log("party-2").read_text()

    # Back on the old version, while party 0's certificate has expired.
    federation.kill("party-2")
    federation.start("party-2")
    directory = federation.made.directory
    rotate(directory, "party-0", now=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3000))
    code, seen = status(federation, "party 0")
    assert (code, seen["problem"]) == (
        4, "its certificate has expired: its operator renews it: triskele provision rotate",
    )  # fmt: skip
    rotate(directory, "party-0")
    federation.wait_ready("party-2")
    run_round(members, number)  # no round was lost by any of it
    assert status(federation, "party 0")[0] == 0
