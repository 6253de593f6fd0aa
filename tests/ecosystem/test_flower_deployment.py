"""The Flower example as Flower is deployed: a SuperLink, eight SuperNodes, a process per app; two clients malicious.

Everything that crosses the wire between SuperNodes and SuperLink, and the logs of both, is searched for what the
clients learnt. (The SuperLink keeps its state in memory, its default.) Needs Flower's own environment: make flower.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from triskele import Participant
from triskele_server.local_federation import LocalFederation

from .flower_deployment import DeployedRun, Deployment
from .flower_run import APPS, CLIENTS, FLOWER_PYTHON, HONEST, windows
from .test_flower import examples_of, local_federation, secured

pytestmark = [pytest.mark.own_environment, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    with local_federation(tmp_path_factory.mktemp("deployed") / "federation") as running:
        yield running


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What the honest clients learn in the first round, and their updates too: float64 [6, 650]."""
    out = tmp_path_factory.mktemp("learnt") / "learnt.npz"
    script = Path(__file__).with_name("flower_learnt.py")
    subprocess.run([FLOWER_PYTHON, script, APPS / "plain", str(CLIENTS), out], check=True, timeout=120)
    arrays = np.load(out)
    return np.stack([arrays[str(client)] for client in HONEST])


def deployed(out: Path, app: str, config: dict[str, object]) -> DeployedRun:
    with Deployment(FLOWER_PYTHON.parent, out, CLIENTS).running() as deployment:
        log = deployment.run(APPS / app, config)
    return deployment.found(log)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DeployedRun:
    return deployed(tmp_path_factory.mktemp("plain") / "flower", "plain", {"num-server-rounds": 1})


@pytest.fixture(scope="module", params=["direct", "tunnel"])
def run(request, federation, tmp_path_factory) -> DeployedRun:
    config = secured(federation, request.param)
    return deployed(tmp_path_factory.mktemp(request.param) / "flower", "secured", config)


def pieces(vectors: np.ndarray) -> list[bytes]:
    wanted = [piece for vector in vectors for piece in windows(vector)]
    assert len(wanted) > 1000, "there is something to search for"
    return wanted


def test_neither_the_wire_nor_a_log_holds_an_update(run, learnt):
    for place in (run.up, run.down, run.kept):
        assert len(place) > 5_000
        assert not [piece for piece in pieces(learnt) if piece in place]


def test_the_same_search_finds_what_plain_flower_sends(plain, learnt):
    assert sum(piece in plain.up for piece in pieces(learnt)) > 500


def test_every_train_reply_crosses_the_wire_with_one_example(plain, run):
    """The number of examples is a protobuf integer beside its name; in a secured run it is 1, or evaluation's."""
    told = re.compile(rb"num-examples\x12[\x02-\x04][\x08\x10\x18](.{1,2})", re.DOTALL)
    counts = {_varint(found) for found in told.findall(run.up)}
    evaluation = {len(range(client, 1797, CLIENTS)) - examples_of(client) for client in range(CLIENTS)}
    training = {examples_of(client) for client in range(CLIENTS)}
    assert 1 in counts
    assert not counts & training
    assert counts <= evaluation | {1}
    assert {_varint(found) for found in told.findall(plain.up)} & training  # the control


def _varint(found: bytes) -> int:
    """A protobuf sint64 of one or two bytes: zigzag, so twice the number."""
    return (found[0] if found[0] < 128 else (found[0] & 127) | found[1] << 7) >> 1


def accuracies(run: DeployedRun) -> list[float]:
    return [float(number) for number in re.findall(r"'accuracy': '([\d.e+-]+)'", run.log)]


def test_malicious_clients_ruin_plain_averaging_and_do_not_move_the_secured_model(plain, run, federation):
    assert max(accuracies(plain)) < 0.3
    assert min(accuracies(run)[-2:]) > 0.8, run.log[-3000:]
    assert "the model stays as it is" not in run.log
    with Participant.from_config(federation.made.participants["p00"]) as me:
        views = [view for view in me.round_views("digits") if view.state == "RELEASED"]
    assert views
    for view in views:
        accepted = {int(view.participants[slot][1:]) for slot in view.accepted_slots}
        assert len(accepted) > CLIENTS / 2
        assert accepted <= set(HONEST), "a malicious client was accepted"
