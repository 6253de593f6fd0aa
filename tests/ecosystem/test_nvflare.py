"""NVFLARE's own FedAvg recipe in its simulator and its POC mode, against a real federation.

Needs a Python with `triskele[nvflare]`: `make nvflare` makes one and runs this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from triskele import Participant

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "examples" / "nvflare"))

import run_nvflare as example  # noqa: E402  the example's own files
import softmax_sites  # noqa: E402

PYTHON = ROOT / ".venv-nvflare" / "bin" / "python"
ROUNDS = 2

pytestmark = [pytest.mark.own_environment, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The example: eight sites, two of them malicious, two rounds."""
    folder = tmp_path_factory.mktemp("nvflare")
    with example.federation(folder, ROUNDS) as running:
        participants = running.made.directory / "participants"
        model = example.run_job(
            PYTHON, folder / "job", ROUNDS, "--task", example.TASK, "--participants", str(participants)
        )
        with Participant.from_config(running.made.participants[example.SERVER]) as me:
            views = me.round_views(example.TASK)
        yield SimpleNamespace(folder=folder, model=model, views=views, logs=running.made.directory / "logs")


def flame(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule in the clear: the aggregate, and which rows are in it (Nguyen et al. 2022, without noise)."""
    norms = np.linalg.norm(rows, axis=1)
    distances = 1 - (rows @ rows.T) / np.outer(norms, norms)
    for threshold in np.unique(distances):
        reach = np.linalg.matrix_power((distances <= threshold).astype(int), len(rows)) > 0
        largest = reach[reach.sum(1).argmax()]
        if 2 * largest.sum() > len(rows):
            scales = weights * largest * np.minimum(1, np.median(norms) / norms)
            return scales @ rows / (weights * largest).sum(), largest
    raise AssertionError("no majority")


def expected_model() -> tuple[np.ndarray, list[np.ndarray]]:
    """The global model after the rounds, and every round's members."""
    model, members = np.zeros(softmax_sites.SHAPE, np.float32), []
    for _ in range(ROUNDS):
        results = [softmax_sites.trained(site, model, malicious=site in example.MALICIOUS) for site in example.SITES]
        rows = np.array([(local - model).ravel() for local, _ in results], np.float64)
        rows *= np.minimum(1, 16.0 / np.linalg.norm(rows, axis=1, keepdims=True))  # the client clips
        aggregate, chosen = flame(rows, np.array([count for _, count in results]))
        model = model + aggregate.reshape(softmax_sites.SHAPE).astype(np.float32)
        members.append(chosen)
    return model, members


def test_the_global_model_is_the_rules_aggregate_of_secret_weighted_updates(attacked: SimpleNamespace) -> None:
    expected, _ = expected_model()
    assert np.linalg.norm(attacked.model - expected) < 1e-3 * np.linalg.norm(expected)
    assert softmax_sites.accuracy(attacked.model) > 0.8


def test_malicious_sites_are_in_no_aggregate(attacked: SimpleNamespace) -> None:
    _, members = expected_model()
    assert [view.state for view in attacked.views] == ["RELEASED"] * ROUNDS
    for view, chosen in zip(attacked.views, members, strict=True):
        accepted = {view.participants[slot] for slot in view.accepted_slots}
        assert accepted == {site for site, inside in zip(example.SITES, chosen, strict=True) if inside}
        assert not accepted & set(example.MALICIOUS)


def test_nothing_of_an_update_reaches_the_server_or_a_log(attacked: SimpleNamespace) -> None:
    job = attacked.folder / "job"
    places = [job / "record", job / "workspace", attacked.logs]
    assert example.sightings(example.first_updates(), places) == 0
    results = [path.read_bytes() for path in (job / "record").iterdir()]
    assert len(results) == ROUNDS * len(example.SITES)
    assert max(map(len, results)) < 2000
    assert all(b"NUM_STEPS_CURRENT_ROUND\x01" in content for content in results)  # MessagePack: the name, then 1


def test_the_same_search_finds_the_updates_of_a_plain_job(tmp_path: Path) -> None:
    sites = example.SITES[:2]
    example.run_job(PYTHON, tmp_path, 1, sites=len(sites))
    assert example.sightings(example.first_updates(sites), [tmp_path / "record"]) == len(sites)
    contents = [path.read_bytes() for path in (tmp_path / "record").iterdir()]
    assert not any(b"NUM_STEPS_CURRENT_ROUND\x01" in content for content in contents)


def test_in_poc_mode_the_same_job_runs_as_nvflares_own_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server and four sites, provisioned and started as NVFLARE does it, with mutual TLS between them.

    Of three sites flame would keep two, which unequal numbers of examples make fewer than two in effect.
    """
    monkeypatch.setenv("HOME", str(tmp_path))  # where NVFLARE keeps its own settings
    sites = example.SITES[:4]
    with example.federation(tmp_path, 1, sites) as running:
        options = ("--poc", "--task", example.TASK, "--participants", str(running.made.directory / "participants"))
        model = example.run_job(PYTHON, tmp_path / "job", 1, *options, sites=len(sites))
        with Participant.from_config(running.made.participants[example.SERVER]) as me:
            aggregate = me.round(example.TASK, 1).aggregate(model)
        logs = running.made.directory / "logs"
    np.testing.assert_allclose(model, aggregate, atol=1e-6)  # it starts at zero
    assert np.linalg.norm(model) > 0.1
    places = [tmp_path / "job" / "record", tmp_path / "job" / "workspace", logs]
    assert len(list(places[0].iterdir())) == len(sites)
    assert example.sightings(example.first_updates(sites, ()), places) == 0
