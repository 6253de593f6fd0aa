"""The demo itself, small: real processes, real faces, the whole table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from bench import plaintext
from rich.console import Console

from triskele import RoundView
from triskele.errors import InvalidTask
from triskele.ids import RoundNumber, TaskDigest
from triskele_server.demo.attacks import ATTACKS
from triskele_server.demo.experiment import CLIP_NORM, AggregationOutcome, RoundReport, plain_average, train
from triskele_server.demo.faces import FacesError, federate, hold_back, load_photos, parse_pgm
from triskele_server.demo.model import DIMENSION, initial_params, local_update, to_vector
from triskele_server.demo.run import DEFAULT_ATTACKS, DEFAULT_RULES, run_demo
from triskele_server.demo.screen import PLAIN, Screen, final_tables


@pytest.mark.timeout(300)
def test_demo_runs_two_attacks_with_both_rules_and_reports_what_it_shows(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    report = tmp_path / "demo.json"
    measured = run_demo(
        console, rounds=2, participants=6, malicious=1, attacks=("none", "sign-flip-10x"), report=report
    )
    assert json.loads(report.read_text()) == json.loads(json.dumps(measured))
    assert measured["rules"] == ["flame", "fltrust"]
    shown = console.export_text()
    for result in measured["results"]:
        assert result["attack"] in shown
        assert {name: len(run) for name, run in result["runs"].items()} == {PLAIN: 2, "flame": 2, "fltrust": 2}
        for rule, valid in (("flame", 6), ("fltrust", 7)):
            assert f"{result['runs'][rule][-1]['accuracy']:.1%}" in shown
            opened = [f"valid[{valid}]", "enough_accepted[]", "accepted[6]", f"masked_aggregate[{DIMENSION}]"]
            assert [list(ledger) for ledger in result["openings"][rule]] == [opened, opened]
            assert f"{rule}: {', '.join(opened)}\n" in shown.replace(" \n", "\n")
            assert len(result["secure_round_seconds"][rule]) == 2
    flipped = measured["results"][1]["runs"]
    for rule in ("flame", "fltrust"):
        assert [r["malicious_accepted"] for r in flipped[rule]] == [0, 0]
        assert flipped[rule][-1]["accuracy"] > flipped[PLAIN][-1]["accuracy"] + 0.2
    rebuilt = {one["attacker"]: one["similarities"] for one in measured["inversion"]}
    assert min(rebuilt["the plain update"]) > 0.99
    assert max(rebuilt["all that one party and the coordinator saw"]) < 0.2
    assert max(rebuilt["the mean of 20, noise multiplier 1"]) < 0.2 < min(rebuilt["the mean of 2"])
    for attacker, scores in rebuilt.items():
        assert f"{attacker} {np.mean(scores):.2f} {max(scores):.2f}" in " ".join(shown.split())


@pytest.mark.parametrize(
    "options",
    [
        {"attacks": ("unheard-of",)},
        {"attacks": ()},
        {"malicious": 3},
        {"rules": ("unheard-of",)},
        {"rules": ("mean", "mean")},
        {"rules": ("nnm",)},  # a stage, not a rule
        {"rules": ("krum",)},  # a single update would be released
    ],
)
def test_demo_refuses_what_it_cannot_run_before_it_starts_anything(options: dict) -> None:
    given = {"rounds": 1, "participants": 6, "malicious": 1, "rules": ("mean",), "attacks": ("none",)} | options
    with pytest.raises(InvalidTask):
        run_demo(Console(quiet=True), **given)


def _report(number: int, accepted: list[bool] | None) -> RoundReport:
    known = None if accepted is None else np.array(accepted)
    counts = (None, None) if known is None else (int(known[:3].sum()), int(known[3:].sum()))
    return RoundReport(number, 0.5, 1.0, known, *counts)


def test_live_view_names_the_rule_and_what_became_of_the_updates() -> None:
    written = io.StringIO()
    with Screen(Console(file=written, force_terminal=True, width=100), rounds=2) as screen:
        screen.begin("alie", "flame")
        screen.report(_report(1, [True, True, True, False]))
        screen.show(RoundView(TaskDigest(bytes(32)), RoundNumber(2), "SEALED", uploaded=3, quorum=4))
    shown = written.getvalue()
    assert "alie, Triskele with flame (accepted: in the majority cluster)" in shown
    assert "uploads 3/4" in shown
    assert "accepted 3 (0 malicious), refused 1" in shown


def test_without_a_terminal_every_round_is_a_line_and_hidden_decisions_stay_out_of_it() -> None:
    written = io.StringIO()
    with Screen(Console(file=written, width=100), rounds=2) as screen:
        screen.begin("none", "fltrust")
        screen.report(_report(1, [False, True, True, True]))
        screen.begin("none", "norm-clip")
        screen.report(_report(1, None))
    assert written.getvalue().splitlines() == [
        "none, Triskele with fltrust (accepted: positive trust)",
        "  1/2  accuracy  50.0%  backdoor 100.0%  accepted 3 (1 malicious), refused 1",
        "none, Triskele with norm-clip",
        "  1/2  accuracy  50.0%  backdoor 100.0%",
    ]


@pytest.mark.parametrize("rules", [DEFAULT_RULES, ("multi-krum", "flame", "fltrust", "geometric-median")])
def test_final_tables_show_every_number_in_80_columns(rules: tuple[str, ...]) -> None:
    last = {"accuracy": 1.0, "backdoor_success": 0.5, "malicious_accepted": 4, "honest_accepted": 16}
    runs = {run: [last | {"accuracy": 0.1, "malicious_accepted": 2}, last] for run in (PLAIN, *rules)}
    results = [{"attack": name, "participants": 20, "malicious": 4, "runs": runs} for name in DEFAULT_ATTACKS]
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(*final_tables(results, rules))
    shown = console.export_text()
    assert "…" not in shown
    for number, columns in (
        ("100.0%", 1 + len(rules)),
        ("50.0%", 1 + len(rules)),
        ("3.0", len(rules)),
        ("16.0", len(rules)),
    ):
        assert shown.split().count(number) == columns * len(DEFAULT_ATTACKS)


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


def test_held_back_images_are_the_given_share_and_nobody_elses() -> None:
    dealt = federate(load_photos(), participants=5, rng=np.random.default_rng(1))
    rest, held = hold_back(dealt, 0.1, np.random.default_rng(2))

    def rows(*sets) -> list[bytes]:
        return sorted(
            image.tobytes() + bytes([label]) for s in sets for image, label in zip(s.images, s.labels, strict=True)
        )

    before = rows(*dealt.participants)
    assert len(held.labels) == round(0.1 * len(before))
    assert rows(*rest.participants, held) == before
    assert all(
        len(own.labels) < len(all_.labels) for own, all_ in zip(rest.participants, dealt.participants, strict=True)
    )


def test_a_step_on_all_images_does_not_depend_on_their_order() -> None:
    own = federate(load_photos(), participants=5, rng=np.random.default_rng(1)).participants[0]
    params = initial_params(np.random.default_rng(0))
    full, again, small = (
        to_vector(
            local_update(
                params, own.images, own.labels, epochs=2, lr=0.1, rng=np.random.default_rng(seed), batch_size=size
            )
        )
        for seed, size in ((1, None), (2, None), (2, 8))
    )
    np.testing.assert_allclose(full, again, atol=1e-5)
    assert np.abs(full - small).max() > 1e-3


def test_root_update_goes_beside_the_participants_and_honest_ones_point_its_way() -> None:
    seen = []

    def aggregate(updates: np.ndarray, root: np.ndarray) -> AggregationOutcome:
        seen.append(updates @ root / np.linalg.norm(updates, axis=1) / np.linalg.norm(root))
        return plain_average(updates, root)

    list(train(aggregate, attack="sign-flip", participants=6, malicious=2, rounds=1))
    (cosines,) = seen
    assert cosines.shape == (6,)
    assert cosines[:4].min() > 0.2
    assert cosines[4:].max() < -0.2


@pytest.mark.parametrize("attack", ["backdoor-boosted", "backdoor-projected"])
def test_with_the_demos_training_flame_tells_a_backdoor_from_honest_updates(attack: str) -> None:
    def flame(updates: np.ndarray, _: np.ndarray) -> AggregationOutcome:
        outcome = plaintext.aggregate(updates, "flame", clip_norm=CLIP_NORM)
        return AggregationOutcome(outcome.aggregate, outcome.accepted)

    *_, last = train(flame, attack=attack, seed=1)
    assert last.malicious_accepted == 0
    assert last.backdoor_success < 0.05
    assert last.accuracy > 0.85


def test_the_same_seed_gives_the_same_training() -> None:
    first, second = (
        [r.accuracy for r in train(plain_average, attack="none", participants=6, malicious=1, rounds=2)]
        for _ in range(2)
    )
    assert first == second
    assert first[1] > first[0]
