"""Whole rounds through real processes: clients, gRPC, mutual TLS, MPC between three worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from bench import plaintext

from e2e.conftest import DIMENSION, INTERRUPTED, PARTICIPANTS, RELAYED
from triskele import Conflict, InvalidUpdate, Participant, Round, RoundFailed, SubmittedUpdate
from triskele.config import ParticipantConfig
from triskele.connection import RetryPolicy
from triskele.errors import InvalidUpload
from triskele.ids import PARTIES
from triskele.limits import DEFAULT_LIMITS
from triskele.model_releases import ModelRepository, RoleKeys, TrustFolder, pull_model
from triskele.sharing import Sharing
from triskele.submission import encode_update, prepare
from triskele.upload import upload
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

pytestmark = pytest.mark.timeout(240)

GRID = 4.0 / 2**20  # one unit of the encoding at clip_norm 4


def updates(seed: int, outlier: int | None = None, dimension: int = DIMENSION) -> np.ndarray:
    """Rows on the encoding's grid, so that rounding is exact; row `outlier` points the other way."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(1.0, 0.1, (PARTICIPANTS, dimension))
    if outlier is not None:
        rows[outlier] *= -1
    rows *= 2.0 / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.round(rows / GRID) * GRID


def everybody(members: list[Participant], action) -> list:
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(action, range(len(members))))


def finished(members: list[Participant], rounds: list[Round], rows: np.ndarray) -> list:
    return everybody(members, lambda i: rounds[i].submit(rows[i]).result(timeout=120))


def assert_written_nowhere(federation: LocalFederation, words: np.ndarray) -> None:
    """No file of coordinator, parties or logs holds eight entries of an aggregate in any form that it is handled in."""
    exact = np.rint(words).astype("<i8")
    forms = [exact, exact.astype("<i4"), exact.astype(">i8"), *(w.astype(t) for w in (words * GRID, words * GRID / 3)
             for t in ("<f8", "<f4"))]  # fmt: skip
    needles = [form[at : at + 8].tobytes() for form in forms for at in (0, 50, 500)]
    files = [path for path in federation.made.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".words" for path in files), "the released words are among them"
    for path in files:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), f"{path} holds the aggregate"


def test_two_rounds_give_every_participant_the_mean_of_the_selected(
    federation: LocalFederation, members: list[Participant]
) -> None:
    tasks = [member.rounds("krum") for member in members]
    for number in (1, 2):
        rows = updates(number, outlier=2)
        rounds = [next(task) for task in tasks]
        assert [r.number for r in rounds] == [number] * PARTICIPANTS
        parts = [{"b": row[100:], "a": row[:100]} for row in rows]
        handles = everybody(members, lambda i, r=rounds, p=parts: r[i].submit(p[i]))
        results = everybody(members, lambda i, h=handles: h[i].result(timeout=120))
        accepted = np.array([handle.accepted for handle in handles])
        assert accepted.sum() == 3
        assert not accepted[2]
        for result in results:
            found = np.concatenate([result["a"], result["b"]])
            np.testing.assert_allclose(found, rows[accepted].mean(0), atol=1e-12)
        assert_written_nowhere(federation, np.concatenate([results[0]["a"], results[0]["b"]]) * 3 / GRID)
        assert [o.split("[")[0] for o in handles[0].view.openings] == [
            "valid", "enough_accepted", "accepted", "masked_aggregate",
        ]  # fmt: skip
    assert list(tasks[0]) == []


def test_hidden_weighted_norm_clip_is_right_and_tells_nobody_who_was_clipped(members: list[Participant]) -> None:
    rows = updates(3)
    rows[0] *= 0.5
    rows[1] *= 2.0
    rows = np.round(rows / GRID) * GRID
    weights = np.array([100, 200, 300, 400, 1000])
    handles = everybody(members, lambda i: next(members[i].rounds("weighted")).submit(rows[i], weight=int(weights[i])))
    results = everybody(members, lambda i: handles[i].result(timeout=120))
    norms = np.linalg.norm(rows, axis=1)
    scales = np.minimum(1, np.median(norms) / norms)
    expected = (weights * scales) @ rows / weights.sum()
    assert np.linalg.norm(results[0] - expected) < 4.0 * 2**-18
    assert handles[0].accepted is None
    assert handles[0].view.accepted_slots == ()


def test_two_covers_among_three_updates_leave_their_mean_and_no_trace(members: list[Participant]) -> None:
    rows = np.round(updates(4) / GRID) * GRID
    rounds = [next(member.rounds("covered")) for member in members]

    def submit(i: int) -> SubmittedUpdate:
        return rounds[i].submit_cover() if i in (1, 3) else rounds[i].submit(rows[i], weight=1)

    handles = everybody(members, submit)
    for handle in handles:
        np.testing.assert_allclose(handle.result(timeout=120), rows[[0, 2, 4]].mean(0), atol=1e-12)
        assert handle.accepted
    assert [o.split("[")[0] for o in handles[1].view.openings] == [
        "valid",
        "enough_accepted",
        "weight_total",
        "masked_aggregate",
    ]
    with pytest.raises(InvalidUpdate, match="covers"):
        members[0].round("weighted", 1).submit_cover()


def test_a_task_with_noise_runs_until_its_budget_is_spent(members: list[Participant]) -> None:
    rows = updates(6)
    handles = everybody(members, lambda i: next(members[i].rounds("private")).submit(rows[i]))
    results = everybody(members, lambda i: handles[i].result(timeout=120))
    noise = (results[0] - rows.mean(0)) * PARTICIPANTS / 4.0  # in clip norms
    assert all(np.array_equal(result, results[0]) for result in results)
    assert noise.std() == pytest.approx(4.0 * 1.5**0.5, rel=0.1)
    assert list(members[0].rounds("private")) == []  # the task is finished
    with pytest.raises(RoundFailed) as refused:
        members[0].round("private", 2).aggregate(timeout=60)
    assert (refused.value.reason, refused.value.who) == ("privacy_budget_spent", "coordinator")


def test_an_adaptive_bound_goes_on_from_the_last_round_also_at_a_party_that_was_restarted(
    federation: LocalFederation, members: list[Participant]
) -> None:
    norms = np.array([0.5, 1.2, 1.6, 2.0, 3.0])
    rows = updates(8)
    rows *= (norms / np.linalg.norm(rows, axis=1))[:, None]
    bound = 1.0
    for number in (1, 2):
        handles = everybody(members, lambda i: next(members[i].rounds("adaptive")).submit(rows[i]))
        results = everybody(members, lambda i, own=handles: own[i].result(timeout=120))
        expected = (rows * np.minimum(1, bound / norms)[:, None]).mean(0)
        assert np.linalg.norm(results[0] - expected) < 4.0 * 2**-14, number
        assert [o.split("[")[0] for o in handles[0].view.openings][-2:] == ["clip_count", "masked_aggregate"]
        bound *= np.exp(2.0 * (0.5 - (norms <= bound).mean()))
        if number == 1:
            federation.kill(PARTY_NAMES[1])
            federation.start(PARTY_NAMES[1])
            federation.wait_ready(PARTY_NAMES[1])


def test_a_model_of_a_real_round_reaches_a_device_with_the_parties_certificate(
    federation: LocalFederation, members: list[Participant], tmp_path: Path
) -> None:
    rows = updates(9)
    rounds = [next(member.rounds("model")) for member in members]
    aggregate = finished(members, rounds, rows)[0]
    rounds[0].save_certificate(tmp_path / "round-1")
    for version, weights in ((0, np.zeros(DIMENSION)), (1, aggregate)):
        np.savez(tmp_path / f"model-{version}.npz", weights=weights)
    keys = RoleKeys.completed(tmp_path / "keys")
    repository = ModelRepository(tmp_path / "models")
    config = ParticipantConfig.load(federation.made.participants["p00"])
    repository.create(keys, Path(config.trust.parties[0]).parent)
    repository.publish(tmp_path / "model-0.npz", 0, [], keys)
    repository.publish(tmp_path / "model-1.npz", 1, [tmp_path / "round-1"], keys)
    trust = TrustFolder.from_folder(tmp_path / "models" / "trust", state=tmp_path / "state")
    pulled = pull_model(str(tmp_path / "models"), trust, tmp_path / "device.npz")
    assert (pulled.release.version, pulled.rounds) == (1, 1)
    assert pulled.release.rounds[0].task == rounds[0].task.digest.hex()
    with np.load(tmp_path / "device.npz") as model:
        np.testing.assert_array_equal(model["weights"], aggregate)


@pytest.mark.parametrize("name", [COORDINATOR, *PARTY_NAMES])
def test_round_completes_after_kill_of_a_process_during_open(
    federation: LocalFederation, members: list[Participant], name: str
) -> None:
    task, rows = f"kill-{name}", updates(5, outlier=4)
    rounds = [next(member.rounds(task)) for member in members]
    early = everybody(members[:2], lambda i: rounds[i].submit(rows[i]))
    federation.kill(name)
    federation.start(name)
    federation.wait_ready(name)
    again = rounds[0].submit(rows[0])  # a participant that does not know whether it was heard
    assert again.slot == early[0].slot
    late = everybody(members[2:], lambda i: rounds[i + 2].submit(rows[i + 2]))
    result = early[0].result(timeout=120)
    accepted = np.zeros(PARTICIPANTS, bool)
    for i, handle in enumerate([*early, *late]):
        handle.result(timeout=120)
        accepted[i] = bool(handle.accepted)
    assert accepted.sum() == 3
    assert not accepted[4]
    np.testing.assert_allclose(result, rows[accepted].mean(0), atol=1e-12)


@pytest.mark.parametrize("name", [COORDINATOR, *PARTY_NAMES])
def test_round_completes_after_kill_of_a_process_while_it_is_computed(
    federation: LocalFederation, members: list[Participant], name: str
) -> None:
    task, rows = f"computing-{name}", updates(7, outlier=3)
    handles = everybody(members, lambda i: next(members[i].rounds(task)).submit(rows[i]))
    with members[0].watch(task, timeout=60) as views:
        seen = next(view.state for view in views if view.state not in ("OPEN", "SEALED"))
    federation.kill(name)
    federation.start(name)
    federation.wait_ready(name)
    results = everybody(members, lambda i: handles[i].result(timeout=120))
    expected = plaintext.aggregate(rows, "flame", clip_norm=4.0).aggregate
    for result in results:
        np.testing.assert_array_equal(result, results[0])
        assert np.linalg.norm(result - expected) < 4.0 * 2**-16
    if name in PARTY_NAMES and seen == "CHECKED":
        log = federation.log(COORDINATOR).read_text()
        assert any(f'"task": "{task}"' in line and '"attempt": 2' in line for line in log.splitlines())


def test_killed_participant_resumes_its_upload_with_the_same_bytes(
    federation: LocalFederation, members: list[Participant], tmp_path
) -> None:
    dimension = INTERRUPTED
    rows = updates(6, dimension=dimension)
    np.savez(tmp_path / "update.npz", update=rows[0])
    config = next(iter(federation.made.participants.values()))
    command = [sys.executable, "-m", "triskele", "submit", "--config", str(config), "--task", "interrupted", "--json",
               str(tmp_path / "update.npz")]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with members[1].watch("interrupted", timeout=60) as views:
        next(view for view in views if view.enrolled)  # it uploads from here on
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = (
        members[0].round("interrupted", 1).submit({"update": rows[0]})
    )  # another process; a Conflict if bytes differed
    rest = everybody(members[1:], lambda i: next(members[i + 1].rounds("interrupted")).submit(rows[i + 1]))
    assert again.result(timeout=120)["update"].shape == (dimension,)
    np.testing.assert_allclose(rest[0].result(timeout=120), rows.mean(0), atol=1e-12)


def test_kill_of_both_holders_while_shares_are_relayed_costs_nothing(federation: LocalFederation) -> None:
    rows = updates(8, dimension=RELAYED)
    patient = RetryPolicy(attempts=200, total=200.0)
    with ExitStack() as stack:
        members = [
            stack.enter_context(Participant.from_config(path, retries=patient))
            for path in federation.made.participants.values()
        ]
        rounds = [next(member.rounds("relayed")) for member in members]
        pool = stack.enter_context(ThreadPoolExecutor(1))
        uploads = pool.submit(everybody, members, lambda i: rounds[i].submit(rows[i]))
        with members[0].watch("relayed", timeout=60) as views:
            next(view for view in views if view.enrolled)
        for name in PARTY_NAMES[1:]:  # in slots 2 and 5 they are the two holders
            federation.kill(name)
        for name in PARTY_NAMES[1:]:
            federation.start(name)
        federation.wait_ready(*PARTY_NAMES[1:])
        handles = uploads.result(timeout=200)
        results = everybody(members, lambda i: handles[i].result(timeout=120))
    for result in results:
        np.testing.assert_allclose(result, rows.mean(0), atol=1e-12)


def raw_submission(member: Participant, round_: Round, words: np.ndarray, tamper=None) -> None:
    """Submit ring words as a malicious participant would: without the client's encoding, perhaps tampered with."""
    me = round_.membership
    credentials = me.credentials.current()
    key, certificate = credentials.signing_key, credentials.signing_certificate
    encoded = encode_update(np.zeros(DIMENSION), round_.task, round_.number, weight=None, clip=True, key=key)
    encoded.words[:] = words
    enrolment = me.coordinator.enrol(round_.task, round_.number)
    submission = prepare(encoded, slot=enrolment.slot, participant=me.participant, key=key, certificate=certificate)
    if tamper is not None:
        tamper(submission.sharing)
    connections = me.coordinator.connections
    stubs = [connections.party(i, enrolment.party_addresses[i]) for i in PARTIES]
    upload(submission, stubs, limits=DEFAULT_LIMITS, retries=me.coordinator.retries)


def test_malicious_words_are_refused_by_name_and_do_not_touch_the_aggregate(members: list[Participant]) -> None:
    rows = updates(7)
    rounds = [next(member.rounds("hostile")) for member in members]
    handles = everybody(members[:3], lambda i: rounds[i].submit(rows[i]))
    wrapping = np.zeros(DIMENSION, np.int64)
    wrapping[[5, 77]] = -(2**63)
    raw_submission(members[3], rounds[3], wrapping)

    def swap_a_word(sharing: Sharing) -> None:
        sharing.heavy_words[0] ^= 1  # after signing: what is sent is not what was committed to

    with pytest.raises(InvalidUpload):
        raw_submission(members[4], rounds[4], np.zeros(DIMENSION, np.int64), tamper=swap_a_word)
    with pytest.raises(Conflict):
        rounds[0].submit(rows[1])  # another update of a participant whose first one stands
    raw_submission(members[4], rounds[4], np.zeros(DIMENSION, np.int64))  # what it had signed, untampered, is welcome
    result = handles[0].result(timeout=120)
    np.testing.assert_allclose(result, rows[:3].sum(0) / 4, atol=1e-12)
    assert [(r.participant, r.reason) for r in handles[0].view.refused] == [("p03", "failed_validity_check")]
    assert len(handles[0].view.accepted_slots) == 4


def test_participants_may_vanish_after_their_upload(federation: LocalFederation) -> None:
    rows = updates(8)
    for i, path in enumerate(list(federation.made.participants.values())[:3]):
        with Participant.from_config(path) as member:
            handle = next(member.rounds("vanished")).submit(rows[i])
    with Participant.from_config(next(iter(federation.made.participants.values()))) as member:
        deadline = time.monotonic() + 100
        while (view := member.round("vanished", 1).view).state != "RELEASED":
            assert time.monotonic() < deadline, view
            time.sleep(0.2)
    assert view.uploaded == 3
    assert handle.slot in view.accepted_slots


def test_metrics_of_real_rounds_have_moved(federation: LocalFederation) -> None:
    ports = {COORDINATOR: federation.ports.coordinator.metrics, "party-1": federation.ports.parties[1].metrics}
    seen = {}
    for name, port in ports.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
            lines = [line.rpartition(" ") for line in reply.read().decode().splitlines() if not line.startswith("#")]
        seen[name] = {series: float(value) for series, _, value in lines}
    coordinator, party = seen[COORDINATOR], seen["party-1"]
    moved = {
        COORDINATOR: (
            'triskele_coordinator_round_states_total{state="RELEASED"}',
            'triskele_coordinator_round_phase_seconds_count{state="SEALED"}',
            'triskele_coordinator_cohort_participants_count{stage="accepted"}',
            'triskele_coordinator_attempts_total{kind="first"}',
            'triskele_coordinator_party_reachable{party="2"}',
            'triskele_grpc_client_started_total{method="/triskele.v1.PartyControl/RoundStatus",party="0"}',
            'triskele_grpc_server_handled_total{code="OK",method="/triskele.v1.Coordinator/Enrol"}',
            'triskele_certificate_expiry_timestamp_seconds{certificate="own"}',
            "triskele_coordinator_results_bytes",
        ),
        "party-1": (
            'triskele_party_uploads_total{outcome="complete",reason=""}',
            'triskele_party_relays_total{outcome="sent"}',
            'triskele_party_relays_total{outcome="received"}',
            'triskele_party_round_states_total{state="RELEASED"}',
            'triskele_grpc_server_received_bytes_total{method="/triskele.v1.Party/Upload"}',
            'triskele_mpc_step_seconds_count{step="filter"}',
            'triskele_mpc_sent_bytes_total{step="check"}',
            'triskele_mpc_communication_rounds_total{step="combine"}',
            'triskele_grpc_client_handled_total{code="OK",method="/triskele.v1.Peer/Exchange",party="2"}',
            "triskele_party_upload_bytes_total",
            "triskele_database_bytes",
            "triskele_disk_free_bytes",
        ),
    }
    for name, series in moved.items():
        assert {s: seen[name].get(s, 0) > 0 for s in series} == dict.fromkeys(series, True)
    assert coordinator['triskele_coordinator_rounds{state="SEALED"}'] == 0
    assert party["triskele_party_rounds_running"] == 0
    assert not any(f'="p0{i}"' in series for series in (*coordinator, *party) for i in range(PARTICIPANTS))


def test_processes_end_in_order_on_sigterm_and_logs_hold_no_update(federation: LocalFederation) -> None:
    processes = dict(federation._processes)
    for process in processes.values():
        os.kill(process.pid, signal.SIGTERM)
    assert {name: process.wait(15) for name, process in processes.items()} == dict.fromkeys(processes, 0)
    for name in processes:  # for the other files of this folder
        federation.kill(name)
        federation.start(name)
    federation.wait_ready(*processes)
    for name in processes:
        text = federation.log(name).read_text()
        assert '"level": "info"' in text
        assert "Traceback" not in text
