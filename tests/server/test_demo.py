"""The demo itself, small: real processes, real faces, the whole table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from triskele.errors import InvalidTask
from triskele_server.demo.attacks import ATTACKS
from triskele_server.demo.experiment import plain_average, train
from triskele_server.demo.faces import FacesError, load_photos, parse_pgm
from triskele_server.demo.run import run_demo


@pytest.mark.timeout(300)
def test_demo_runs_two_attacks_and_reports_what_it_shows(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    report = tmp_path / "demo.json"
    measured = run_demo(
        console,
        rounds=2,
        participants=6,
        malicious=1,
        rule="multi-krum",
        attacks=("none", "sign-flip-10x"),
        report=report,
    )
    assert json.loads(report.read_text()) == json.loads(json.dumps(measured))
    shown = console.export_text()
    for result in measured["results"]:
        assert result["attack"] in shown
        assert f"{result['triskele'][-1]['accuracy']:.1%}" in shown
        assert [o.split("[")[0] for o in result["openings"]] == ["valid", "enough_accepted", "accepted", "aggregate"]
        assert [len(result[run]) for run in ("plain", "triskele")] == [2, 2]
    flipped = measured["results"][1]
    assert [r["malicious_accepted"] for r in flipped["triskele"]] == [0, 0]
    assert flipped["triskele"][-1]["accuracy"] > flipped["plain"][-1]["accuracy"] + 0.2


@pytest.mark.parametrize("options", [{"attacks": ("unheard-of",)}, {"malicious": 3}, {"rule": "unheard-of"}])
def test_demo_refuses_what_it_cannot_run_before_it_starts_anything(options: dict) -> None:
    given = {"rounds": 1, "participants": 6, "malicious": 1, "rule": "mean", "attacks": ("none",)} | options
    with pytest.raises(InvalidTask):
        run_demo(Console(quiet=True), **given)


def test_photographs_are_forty_people_of_ten() -> None:
    photos = load_photos()
    assert photos.shape == (40, 10, 112, 92)
    assert photos.std(axis=(2, 3)).min() > 5


@pytest.mark.parametrize("data", [b"", b"P6\n92 112\n255\n", b"P5\n92 112\n255\nshort", b"P5\n9 9\n255\n" + bytes(81)])
def test_bytes_that_are_no_photograph_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(FacesError):
        parse_pgm(data)


def test_attacks_do_what_their_papers_say() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1, (16, 50)).astype(np.float32)
    own = rng.normal(0, 1, (4, 50)).astype(np.float32)
    forged = {name: attack.forge(honest, own, rng) for name, attack in ATTACKS.items()}
    np.testing.assert_array_equal(forged["none"], own)
    np.testing.assert_array_equal(forged["sign-flip-10x"], -10 * own)
    shift = np.abs(forged["alie"] - honest.mean(0)) / honest.std(0)
    assert 0.05 < shift.min() <= shift.max() < 1.5  # a little is enough
    honest_norms = np.linalg.norm(honest, axis=1)
    assert np.linalg.norm(forged["backdoor-boosted"], axis=1).min() > honest_norms.max()
    assert np.linalg.norm(forged["backdoor-projected"], axis=1).max() <= honest_norms.max() * (1 + 1e-6)


def test_the_same_seed_gives_the_same_training() -> None:
    first, second = (
        [r.accuracy for r in train(plain_average, attack="none", participants=6, malicious=1, rounds=2)]
        for _ in range(2)
    )
    assert first == second
    assert first[1] > first[0]
