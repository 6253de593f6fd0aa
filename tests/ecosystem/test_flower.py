"""A real Flower run of eight clients, two of them malicious, against a real federation; all it sends is searched.

Needs Flower, which has an environment of its own: make flower.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from triskele.framework_server import FrameworkServer
from triskele.ids import RoundNumber
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

from .flower_run import APPS, CLIENTS, HONEST, MALICIOUS, FlowerRun, found, run_flower

pytestmark = pytest.mark.own_environment

DIMENSION, CLIP_NORM = 650, 20.0
TASK = TaskSpec("digits", DIMENSION, CLIP_NORM, rule="flame", max_weight=1000, max_participants=CLIENTS)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    with local_federation(tmp_path_factory.mktemp("flower") / "federation") as running:
        yield running


def local_federation(directory: Path) -> LocalFederation:
    """Eight participants, a reader and a forwarder, and the example's task."""
    schedule = Schedule(rounds=20, quorum=CLIENTS, deadline_seconds=300.0, grace_seconds=0.1)
    tasks = [ScheduledTask(TASK, schedule)]
    return LocalFederation.create(directory, participants=CLIENTS, tasks=tasks, reader=True, forwarder=True)


def secured(federation: LocalFederation, transport: str, **more: object) -> dict[str, object]:
    directory = federation.made.directory
    server = federation.made.reader if transport == "direct" else federation.made.forwarder
    return {
        "triskele-config": f"{directory}/participants/p{{partition-id:02d}}/participant.toml",
        "triskele-server": str(server),
        "triskele-transport": transport,
        "triskele-reader": str(federation.made.reader) if transport == "tunnel" else "",
        "num-server-rounds": 2,
    } | more


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> FlowerRun:
    return run_flower(tmp_path_factory.mktemp("plain") / "out", "plain", {"num-server-rounds": 2})


@pytest.fixture(scope="module", params=["direct", "tunnel"])
def run(request, federation, tmp_path_factory) -> FlowerRun:
    out = tmp_path_factory.mktemp(request.param) / "out"
    return run_flower(out, "secured", secured(federation, request.param))


def test_no_message_to_the_server_holds_a_plaintext_update_or_model(run):
    for number in (1, 2):
        received, new = run.learnt(number)
        for file in ("wire-up.bin", "server.bin"):
            assert found(run, file, new - received) == 0
            assert found(run, file, new) == 0


def test_the_same_search_finds_the_models_that_plain_flower_sends(plain, run):
    """The control of the test above, upwards in plain Flower and downwards, the public model, in a secured run."""
    _, new = plain.learnt(1)
    assert found(plain, "wire-up.bin", new) > 500
    assert found(plain, "server.bin", new) > 500
    received, _ = run.learnt(2)
    assert found(run, "wire-down.bin", received) > 500


def test_server_log_holds_no_number_of_an_update(run):
    received, new = run.learnt(1)
    assert "Starting TriskeleStrategy" in run.log
    numbers = {f"{abs(value):.6f}"[:7] for value in (new - received)[0] if abs(value) > 0.01}
    assert len(numbers) > 100
    assert not [number for number in numbers if number in run.log]


def test_train_replies_carry_no_array_and_one_example(plain, run):
    replies = [reply for reply in run.replies if "arrays" in reply["arrays"]]
    assert len(replies) == 2 * CLIENTS
    assert {reply["arrays"]["arrays"] for reply in replies} == {0}
    assert {reply["metrics"]["num-examples"] for reply in replies} == {1}
    told = {reply["metrics"]["num-examples"] for reply in plain.replies if "arrays" in reply["arrays"]}
    assert told == {examples_of(client) for client in range(CLIENTS)}  # the control: what plain Flower tells


def expected_round(federation: LocalFederation, run: FlowerRun, flower_round: int, received, new) -> np.ndarray:
    """FLAME in plain numpy over the participants that the round says it accepted: the mean update, float64 [650]."""
    number = RoundNumber(int(run.result["train"][str(flower_round)]["triskele-round"]))
    with FrameworkServer.from_config(federation.made.reader) as reader:
        view, _ = reader.aggregate(reader.task("digits"), number, 10)
    accepted = [int(view.participants[slot][1:]) for slot in view.accepted_slots]
    assert len(accepted) > CLIENTS / 2
    assert set(accepted) <= set(HONEST), "a malicious client was accepted"
    updates = (new - received)[sorted(accepted)]
    norms = np.linalg.norm(new - received, axis=1)
    all_norms = np.concatenate(
        [norms, np.full(MALICIOUS, CLIP_NORM)]
    )  # the attackers' are larger than every honest one
    assert norms.max() < CLIP_NORM
    scale = np.minimum(1.0, np.median(all_norms) / norms[sorted(accepted)])
    examples = np.array([examples_of(client) for client in sorted(accepted)], np.float64)
    return (examples * scale) @ updates / examples.sum()


def examples_of(client: int) -> int:
    """Training examples of a client: four fifths of every eighth of 1797 digits."""
    return int(0.8 * len(range(client, 1797, CLIENTS)))


def test_model_is_the_old_one_plus_the_weighted_filtered_mean_of_honest_updates(federation, run):
    first_received, first_new = run.learnt(1)
    received, new = run.learnt(2)
    after_first = first_received[0] + expected_round(federation, run, 1, first_received, first_new)
    np.testing.assert_allclose(received[0], after_first, atol=1e-3)
    after_second = received[0] + expected_round(federation, run, 2, received, new)
    np.testing.assert_allclose(run.model, after_second, atol=1e-3)


def test_malicious_clients_ruin_plain_averaging_and_do_not_move_the_secured_model(plain, run):
    assert plain.result["evaluate"]["2"]["accuracy"] < 0.3
    assert run.result["evaluate"]["2"]["accuracy"] > 0.8
    assert run.result["failures"] == {}


def test_fixed_clipping_inside_the_mod_bounds_what_is_aggregated(federation, tmp_path):
    """Flower clips each update to norm 0.05 before Triskele takes it, so the model moves no further than that."""
    one = secured(federation, "direct", **{"num-server-rounds": 1})
    run = run_flower(tmp_path / "out", "secured", one, "fixedclipping_mod")
    assert run.result["failures"] == {}
    assert run.result["train"]["1"]["triskele-accepted"] > CLIENTS / 2
    assert 0.01 < np.linalg.norm(run.model) < 0.0501


def test_fixed_clipping_outside_the_mod_is_refused_and_sends_no_model(federation, tmp_path):
    """In the wrong order Flower's mod finds no arrays to clip and makes an error, in place of a model."""
    one = secured(federation, "direct", **{"num-server-rounds": 1})
    run = run_flower(tmp_path / "out", "secured", one, "-fixedclipping_mod")
    assert "fixedclipping_mod expects the keys in the ArrayRecord" in run.log
    received, new = run.learnt(1)
    assert found(run, "wire-up.bin", new) == 0
    assert found(run, "wire-up.bin", new - received) == 0


def test_client_without_triskele_terms_sends_an_error_and_no_model(tmp_path):
    """A ServerApp with plain FedAvg cannot get a model out of a ClientApp that has the mod."""
    app = tmp_path / "mixed"
    (app / "digits").mkdir(parents=True)
    for name, of in (("client_app", "secured"), ("server_app", "plain"), ("task", "plain"), ("__init__", "plain")):
        (app / "digits" / f"{name}.py").write_bytes((APPS / of / "digits" / f"{name}.py").read_bytes())
    (app / "pyproject.toml").write_bytes((APPS / "plain" / "pyproject.toml").read_bytes())
    run = run_flower(tmp_path / "out", str(app), {"num-server-rounds": 1})
    assert "names no Triskele round" in run.log
    assert b"num-examples" not in run.bytes_of("wire-up.bin").split(b"accuracy")[0]
    assert np.load(run.out / "model.npz").files == []
