"""The robustness benchmark: its attacks are what their papers say, and the secret rules withstand some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from bench.robustness.__main__ import app
from bench.robustness.attacks import ATTACKS, IPM_SCALE, SCALES, Scene, most_deviant
from bench.robustness.data import DATA_SETS, TARGET, deal_by_label, flipped, poisoned
from bench.robustness.defences import Execution
from bench.robustness.network import from_vector, initial_params, loss
from bench.robustness.report import BEGIN, END, write_between_markers
from bench.robustness.run import CellResult, run_cell
from bench.robustness.training import Cell
from typer.testing import CliRunner

from triskele_server.demo.faces import LabelledImages
from triskele_server.demo.model import to_vector

HONEST, MALICIOUS, D = 8, 2, 30
RNG = np.random.default_rng(0)


def scene(released: Callable | None = None, gain: Callable | None = None) -> Scene:
    """Honest rows around a common direction; by default the rule is the mean, and attackers gain by reversing it."""
    rng = np.random.default_rng(1)
    honest = (rng.normal(size=D) + 0.3 * rng.normal(size=(HONEST, D))).astype(np.float32)
    own = rng.normal(size=(MALICIOUS, D)).astype(np.float32)

    def mean(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([honest, rows]).mean(axis=0, dtype=np.float64)

    return Scene(honest, own, released or mean, gain or (lambda a: -float(a @ honest.mean(axis=0))), 3)


def forged(name: str, of: Scene | None = None) -> np.ndarray:
    return ATTACKS[name].forge(of or scene(), RNG)


def distances(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return ((rows.astype(np.float64) - row) ** 2).sum(axis=1)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_sends_one_finite_row_per_attacker(name: str) -> None:
    rows = forged(name)
    assert rows.shape == (MALICIOUS, D)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def test_ipm_sends_the_honest_mean_backwards() -> None:
    np.testing.assert_allclose(forged("ipm")[0], -IPM_SCALE * scene().honest.mean(axis=0), rtol=1e-5)


def test_optimised_ipm_goes_as_far_as_the_rule_follows() -> None:
    unlimited = forged("optimised-ipm")
    honest = scene().honest
    mean = honest.mean(axis=0)
    assert np.linalg.norm(unlimited[0]) >= SCALES[-1] * np.linalg.norm(mean)
    limit = 3.21 * np.linalg.norm(mean)

    def only_short_rows(rows: np.ndarray) -> np.ndarray:
        kept = rows[np.linalg.norm(rows, axis=1) <= limit]
        return np.concatenate([honest, kept]).mean(axis=0, dtype=np.float64)

    limited = forged("optimised-ipm", scene(released=only_short_rows))
    assert 0.9 * limit < np.linalg.norm(limited[0]) <= limit
    assert limited[0] @ mean < 0


def test_optimised_alie_moves_along_the_deviations() -> None:
    rows, honest = forged("optimised-alie"), scene().honest.astype(np.float64)
    shifts = (rows[0] - honest.mean(axis=0)) / honest.std(axis=0)
    assert np.ptp(shifts) < 1e-3 * abs(shifts.mean())
    assert np.array_equal(rows[0], rows[1])


def test_min_max_is_as_far_from_honest_rows_as_they_are_from_each_other() -> None:
    row, honest = forged("min-max")[0], scene().honest
    limit = max(distances(honest, other).max() for other in honest)
    assert distances(honest, row).max() == pytest.approx(limit, rel=1e-3)


def test_min_sum_is_as_far_from_all_honest_rows_as_one_of_them() -> None:
    row, honest = forged("min-sum")[0], scene().honest
    limit = max(distances(honest, other).sum() for other in honest)
    assert distances(honest, row).sum() == pytest.approx(limit, rel=1e-3)


def test_mimics_copy_the_row_that_deviates_most() -> None:
    honest = scene().honest.copy()
    assert np.array_equal(forged("mimic"), honest[[3, 3]])
    honest[5] += 10
    assert most_deviant(honest) == 5


def test_adaptive_backdoor_gets_past_a_rule_that_stops_the_projected_one() -> None:
    honest = scene().honest
    mean = honest.mean(axis=0, dtype=np.float64)
    wanted = scene().own.mean(axis=0, dtype=np.float64)

    def near_the_mean(rows: np.ndarray) -> np.ndarray:
        cosines = rows @ mean / (np.linalg.norm(rows, axis=1) * np.linalg.norm(mean))
        return np.concatenate([honest, rows[cosines > 0.8]]).mean(axis=0, dtype=np.float64)

    hard = scene(near_the_mean, lambda aggregate: float(aggregate @ wanted))
    assert np.array_equal(near_the_mean(forged("backdoor-projected", hard)), honest.mean(axis=0, dtype=np.float64))
    assert hard.gain(near_the_mean(forged("backdoor-adaptive", hard))) > 1.2 * hard.gain(mean)


def test_flipped_labels_and_triggered_copies() -> None:
    images = DATA_SETS["digits-0.5"].deal(5, np.random.default_rng(0)).participants[0]
    assert np.array_equal(flipped(images, 10).labels, 9 - images.labels)
    bad = poisoned(images, DATA_SETS["digits-0.5"].trigger)
    n = len(images.labels)
    assert np.array_equal(bad.images[:n], images.images)
    assert np.array_equal(bad.labels[:n], images.labels)
    assert (bad.labels[n:] == TARGET).all()
    assert ((bad.images[n:] != images.images).sum(axis=1) <= 1).all()
    assert (bad.images[n:] != images.images).any()


def test_split_is_even_in_size_and_uneven_in_labels() -> None:
    labels = np.repeat(np.arange(10), 60)

    def largest_share(alpha: float) -> float:
        owned = deal_by_label(labels, 20, alpha, np.random.default_rng(0))
        assert {len(own) for own in owned} == {30}
        together = np.concatenate(owned)
        assert len(np.unique(together)) == len(together)
        return fmean(np.bincount(labels[own]).max() / len(own) for own in owned)

    very_uneven, uneven, nearly_even = (largest_share(alpha) for alpha in (0.1, 0.5, 100))
    assert very_uneven > uneven + 0.1
    assert uneven > nearly_even + 0.1


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_have_the_stated_dimensions_and_a_root_of_their_own(name: str) -> None:
    data = DATA_SETS[name]
    assert data.network.dimension == (32_920 if name.startswith("faces") else 2_410)
    federation = data.deal(10, np.random.default_rng(0))
    training = sum(len(own.labels) for own in federation.participants)
    assert len(federation.root.labels) == pytest.approx(0.08 * (training + len(federation.root.labels)), rel=0.02)


def test_each_person_alone_lives_at_one_participant() -> None:
    federation = DATA_SETS["faces-alone"].deal(20, np.random.default_rng(0))
    people = [set(own.labels.tolist()) for own in federation.participants]
    assert [len(known) for known in people] == [2] * 20
    assert len(set.union(*people)) == 40


def test_parameters_survive_the_flat_vector_and_loss_is_cross_entropy() -> None:
    network = DATA_SETS["digits-0.5"].network
    params = initial_params(network, np.random.default_rng(0))
    back = from_vector(to_vector(params).astype(np.float64), network)
    assert all(np.array_equal(back[name], params[name]) for name in params)
    blank = LabelledImages(np.zeros((3, 64), np.float32), np.array([0, 4, 9]))
    assert loss(params, blank) == pytest.approx(np.log(10))


# ---- training, with the rules of three parties ----------------------------------------------------------------------

BY_PARTIES, IN_THE_CLEAR = Execution(), Execution(in_the_clear=True)
ROUNDS = 5


@cache
def trained(defence: str, attack: str, execution: Execution = BY_PARTIES) -> CellResult:
    return run_cell(Cell("digits-0.5", 20, defence, attack, seed=0, rounds=ROUNDS), execution)


def test_the_mean_is_no_defence() -> None:
    assert trained("mean", "sign-flip-10x").rounds[-1].accuracy < 0.3
    assert (trained("mean", "backdoor-projected").rounds[-1].backdoor or 0) > 0.12


@pytest.mark.parametrize("defence", ["flame", "fltrust"])
@pytest.mark.parametrize("attack", ["sign-flip-10x", "alie", "backdoor-projected"])
def test_secret_rules_keep_the_model_good_and_the_backdoor_out(defence: str, attack: str) -> None:
    result = trained(defence, attack)
    assert result.refused is None
    assert result.failed_rounds == 0
    assert result.rounds[-1].accuracy > 0.9
    assert (result.rounds[-1].backdoor or 0) < 0.05


def test_secret_rules_train_the_same_model_as_rules_in_the_clear() -> None:
    for secret, clear in zip(
        trained("flame", "alie").rounds, trained("flame", "alie", IN_THE_CLEAR).rounds, strict=True
    ):
        assert secret.accuracy == pytest.approx(clear.accuracy, abs=0.015)


def test_a_refused_rule_is_reported_with_the_reason() -> None:
    result = run_cell(Cell("faces", 50, "median", "none", seed=0, rounds=1), BY_PARTIES)
    assert result.rounds == ()
    assert "comparisons" in (result.refused or "")


# ---- the command and its report -------------------------------------------------------------------------------------


def test_report_has_table_heat_map_and_every_round(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--plaintext", "--datasets", "digits-0.5", "--participants", "5", "--rounds", "2", "--workers", "1"]
    arguments += ["--rules", "mean,fltrust", "--attacks", "none,sign-flip-10x,backdoor-boosted"]
    arguments += ["--out", str(page), "--json", str(tmp_path / "all.json")]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `mean` |" in text
    assert "sign-flip-10x | " in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads((tmp_path / "all.json").read_text())
    assert len(measured["results"]) == 6
    assert all(len(result["rounds"]) == 2 for result in measured["results"])


@pytest.mark.parametrize("option", ["--rules", "--attacks", "--datasets", "--participants", "--seeds"])
def test_unknown_names_are_refused_before_anything_runs(option: str, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, [option, "unheard-of", "--out", str(tmp_path / "page.md")])
    assert outcome.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_page_without_markers_is_written_whole(tmp_path: Path) -> None:
    write_between_markers(tmp_path / "new" / "page.md", "measured\n")
    assert "measured" in (tmp_path / "new" / "page.md").read_text()
