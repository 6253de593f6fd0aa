"""`bench.plaintext` does what the papers say where neither package has the rule, and what a task's options promise."""

from __future__ import annotations

import numpy as np
import pytest
from bench.plaintext import LARGEST_SCALE, SMALLEST_SIMILARITY, Outcome, aggregate, smallest

from . import packages, papers
from .matrices import CLIP, EXTREMES, KINDS, malicious, matrix

SIZES = [(5, 1), (8, 3), (9, 40), (20, 300), (31, 1), (60, 3000)]
CASES = [(kind, n, d) for k, kind in enumerate(KINDS) for n, d in SIZES[k % 2 :: 2]]
cases = pytest.mark.parametrize(("kind", "n", "d"), CASES)
with_extremes = pytest.mark.parametrize(("kind", "n", "d"), CASES + [(kind, n, 7) for kind in EXTREMES for n in (5, 8)])
CLOSE = 1e-12 * CLIP


def plain(rows: np.ndarray, rule: str | list[str], options: dict | None = None, **given) -> Outcome:
    return aggregate(rows, rule, options or {}, clip_norm=CLIP, **given)


# ---- FLTrust --------------------------------------------------------------------------------------------------------


@cases
def test_fltrust_is_the_papers(kind, n, d):
    rows = matrix(kind, n, d)
    outcome = plain(rows, "fltrust", root=n - 1)
    assert np.linalg.norm(outcome.aggregate - papers.fltrust(rows, n - 1)) < CLOSE
    trusted = [papers.cosine(row, rows[-1]) > 0 for row in rows[:-1]]
    assert outcome.accepted.tolist() == [*trusted, False]


@pytest.mark.parametrize("root", [0, 3])
def test_fltrust_takes_any_row_as_root_and_gives_it_no_weight(root):
    rows = matrix("around a direction", 7, 30)
    outcome = plain(rows, "fltrust", root=root)
    assert np.linalg.norm(outcome.aggregate - papers.fltrust(rows, root)) < CLOSE
    assert outcome.coefficients[root] == 0


def test_fltrust_lengthens_no_row_by_more_than_2_to_the_15():
    """The paper knows no such bound."""
    rows = np.array([[1.0, 0.0], [2.0**-18, 0.0], [0.5, 0.0]])
    assert papers.fltrust(rows, 0)[0] == 1
    assert plain(rows, "fltrust", root=0).aggregate[0] == (2.0**-18 * LARGEST_SCALE + 1) / 2


@pytest.mark.parametrize("rows", [np.zeros((4, 3)), -np.eye(3) + np.outer([2, 0, 0], [1, 0, 0])])
def test_fltrust_with_nobody_to_trust_has_no_coefficients(rows):
    outcome = plain(rows, "fltrust", root=0)
    assert not outcome.accepted.any()
    assert not outcome.aggregate.any()


# ---- FLAME ----------------------------------------------------------------------------------------------------------


@with_extremes
def test_flame_keeps_hdbscans_cluster_and_clips_it_to_the_median_norm_of_all(kind, n, d):
    rows = matrix(kind, n, d)
    cluster = papers.flame_cluster_by_hdbscan(rows)
    outcome = plain(rows, "flame")
    assert outcome.accepted.tolist() == cluster.tolist()
    assert np.linalg.norm(outcome.aggregate - packages.byzfl_clipping(rows)[cluster].mean(0)) < CLOSE


@with_extremes
def test_flames_cluster_is_the_majority_component_at_the_smallest_threshold(kind, n, d):
    rows = matrix(kind, n, d)
    assert plain(rows, "flame").accepted.tolist() == papers.flame_cluster_by_threshold(rows).tolist()


@pytest.mark.parametrize("n", [5, 6, 7, 8, 30])
@pytest.mark.parametrize("seed", range(4))
def test_flames_cluster_of_rows_in_the_plane(n, seed):
    """Chains of near neighbours: a cluster is as long as its smallest gaps let it be."""
    angles = np.random.default_rng([seed, n]).uniform(0, 2 * np.pi, n)
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    cluster = plain(rows, "flame").accepted
    assert 2 * cluster.sum() > n
    assert cluster.tolist() == papers.flame_cluster_by_hdbscan(rows).tolist()


def test_half_the_rows_are_no_majority():
    rows = np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.3]])
    assert plain(rows, "flame").accepted.all()
    assert plain(np.vstack([rows, [[1.0, 0.2]]]), "flame").accepted.tolist() == [True, True, False, False, True]


# ---- DnC ------------------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_dnc_drops_the_rows_farthest_along_the_first_singular_direction(kind, n, d, fraction):
    rows, f = matrix(kind, n, d), malicious(n)
    drop = int(fraction * f)
    order = np.argsort(papers.dnc_scores(rows))
    last, first = order[n - drop - 1], order[min(n - drop, n - 1)]
    gap = papers.dnc_scores(rows)[first] - papers.dnc_scores(rows)[last]
    assert drop == 0 or gap > 1e-6 * CLIP**2 or np.array_equal(rows[first], rows[last])  # else it hangs on rounding
    outcome = plain(rows, "dnc", {"num_malicious_nodes": f, "filter_fraction": fraction})
    assert outcome.accepted.sum() == n - drop
    assert np.linalg.norm(outcome.aggregate - papers.dnc(rows, drop)) < CLOSE


@pytest.mark.parametrize("kind", EXTREMES)
def test_dnc_of_rows_that_are_all_alike_drops_the_last(kind):
    rows = matrix(kind, 6, 9)
    outcome = plain(rows, "dnc", {"num_malicious_nodes": 2})
    assert outcome.accepted.tolist() == [True] * 4 + [False] * 2
    assert np.linalg.norm(outcome.aggregate - rows[0]) < CLOSE


# ---- FoolsGold ------------------------------------------------------------------------------------------------------


@cases
def test_foolsgold_weighs_as_the_paper_does(kind, n, d):
    """And divides by the sum of weights; the paper adds up (and its authors' code divides by n)."""
    rows = matrix(kind, n, d)
    outcome = plain(rows, "foolsgold")
    weights = np.array(papers.foolsgold_weights(rows))
    assert outcome.accepted.tolist() == (weights > 0).tolist()
    # Similarities below 2^-10 are not divided by: they weigh at most that much in 1 - similarity.
    most = (1 - papers.cosine_distances(rows) - np.eye(n)).max(1)
    tolerance = 1e-9 if most.min() > SMALLEST_SIMILARITY else SMALLEST_SIMILARITY
    assert np.abs(outcome.coefficients * max(weights.sum(), 1) - weights).max() < tolerance


def test_foolsgold_gives_colluders_no_weight_and_pardons_those_they_imitate():
    rows = matrix("colluders", 15, 200)
    weights = plain(rows, "foolsgold").coefficients
    assert not weights[:3].any()
    assert (weights[3:] > 0).all()


def test_foolsgold_counts_what_points_away_as_unlike():
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.1, 0.0], [-1.0, 0.0, 0.1]])
    assert plain(rows, "foolsgold").coefficients[0] > 0.9


@pytest.mark.parametrize("kind", EXTREMES)
def test_foolsgold_of_rows_that_are_all_alike(kind):
    """Identical rows all lose their weight; zero rows are like nobody."""
    outcome = plain(matrix(kind, 6, 9), "foolsgold")
    assert outcome.accepted.tolist() == [kind == "all zero"] * 6
    assert not outcome.aggregate.any()


# ---- a task's options -----------------------------------------------------------------------------------------------


def test_longer_rows_are_clipped_before_anything_else():
    rows = matrix("one dominates", 8, 20)
    longer = rows * np.linspace(1, 9, 8)[:, None]
    limit = np.linalg.norm(rows, axis=1).max()
    clipped = longer * np.minimum(1, limit / np.linalg.norm(longer, axis=1))[:, None]
    for rule in ("mean", "median", "flame"):
        ours = aggregate(longer, rule, clip_norm=limit)
        assert np.linalg.norm(ours.aggregate - aggregate(clipped, rule, clip_norm=None).aggregate) < CLOSE


@pytest.mark.parametrize("rule", ["mean", "norm-clip", "flame", "geometric-median", "foolsgold", "dnc"])
def test_example_weights_multiply_the_rules_weights_and_do_not_change_them(rule):
    rows, examples = matrix("around a direction", 9, 30), np.arange(9)
    alone = plain(rows, rule)
    weighted = plain(rows, rule, weights=examples)
    shares = alone.coefficients * examples
    if rule in ("norm-clip", "flame"):  # the scales are not part of the weights
        norms = np.linalg.norm(rows, axis=1)
        scales = np.minimum(1, np.median(norms) / norms)
        shares = shares / (shares / scales).sum()
    else:
        shares = shares / shares.sum()
    assert np.abs(weighted.coefficients - shares).max() < 1e-12
    assert weighted.accepted.tolist() == alone.accepted.tolist()


def test_example_weights_of_centered_clip_leave_the_rest_to_the_centre():
    rows, previous = matrix("independent", 9, 30), matrix("independent", 9, 30, seed=1)[4]
    examples = np.arange(1, 10)
    ours = plain(rows, "centered-clip", {"tau": 0.5}, weights=examples, previous=previous).aggregate
    steps = [(row - previous) * min(1, 0.5 / np.linalg.norm(row - previous)) for row in rows]
    assert np.linalg.norm(ours - previous - np.average(steps, axis=0, weights=examples)) < CLOSE


def test_example_weights_follow_rows_through_the_stages():
    rows, examples = matrix("two clusters", 9, 30), np.arange(1, 10)
    outcome = plain(rows, ["bucketing", "krum"], {"size": 3}, weights=examples, order=[8, 0, 4, 1, 2, 3, 5, 6, 7])
    bucket = np.flatnonzero(outcome.accepted)
    assert bucket.tolist() in ([0, 4, 8], [1, 2, 3], [5, 6, 7])
    assert np.linalg.norm(outcome.aggregate - np.average(rows[bucket], axis=0, weights=examples[bucket])) < CLOSE


def test_stages_leave_the_root_alone():
    rows = matrix("two clusters", 9, 30)
    mixed = packages.byzfl_nnm(rows[:-1], 3)
    expected = papers.fltrust(np.concatenate([mixed, rows[-1:]]), 8)
    ours = plain(rows, ["nnm", "fltrust"], {"num_malicious_nodes": 3}, root=8)
    assert np.linalg.norm(ours.aggregate - expected) < CLOSE


def test_options_are_flat_or_by_stage_and_those_of_a_stage_prevail():
    rows = matrix("two clusters", 9, 30)
    flat = plain(rows, ["nnm", "trimmed-mean"], {"num_malicious_nodes": 3}).aggregate
    nested = {"nnm": {"num_malicious_nodes": 3}, "trimmed-mean": {"num_malicious_nodes": 3}}
    assert np.array_equal(flat, plain(rows, ["nnm", "trimmed-mean"], nested).aggregate)
    mixed = {"trimmed-mean": {"num_malicious_nodes": 3}, "num_malicious_nodes": 1}
    nested["nnm"]["num_malicious_nodes"] = 1
    expected = plain(rows, ["nnm", "trimmed-mean"], nested).aggregate
    assert np.array_equal(plain(rows, ["nnm", "trimmed-mean"], mixed).aggregate, expected)
    assert not np.array_equal(flat, expected)


@pytest.mark.parametrize(
    ("rule", "options", "given"),
    [
        ("no-such", {}, {}),
        (["mean", "nnm"], {}, {}),
        ("nnm", {}, {}),
        ("mean", {"num_malicious_nodes": 1}, {}),
        (["nnm", "mean"], {"krum": {}}, {}),
        (["nnm", "mean"], {"mean": {"num_malicious_nodes": 1}}, {}),
        ("median", {}, {"weights": [1] * 6}),
        ("fltrust", {}, {}),
        ("flame", {}, {"root": 1}),
        (["bucketing", "mean"], {}, {"order": [0, 1, 2, 3, 4, 4]}),
        (["bucketing", "mean"], {"order": [5, 4, 3, 2, 1, 0]}, {}),
    ],
)
def test_what_no_round_could_run_is_refused(rule, options, given):
    with pytest.raises(ValueError):  # noqa: PT011 - any wording
        plain(matrix("independent", 6, 4), rule, options, **given)


def test_more_malicious_nodes_than_rows_leave_the_middle_or_one_row():
    rows = matrix("independent", 6, 4)
    many = {"num_malicious_nodes": 6}
    assert np.array_equal(plain(rows, "trimmed-mean", many).aggregate, plain(rows, "median").aggregate)
    for rule in ("krum", "multi-krum", "dnc"):
        assert plain(rows, rule, many).accepted.sum() == 1
    assert np.linalg.norm(plain(rows, ["nnm", "mean"], many).aggregate - rows.mean(0)) < CLOSE


def test_ties_go_to_the_lower_index_also_where_rounding_has_touched_them():
    scores = np.array([3.0, 1.0 + 1e-15, 2.0, 1.0, 1.0])
    assert np.flatnonzero(smallest(scores, 2, 1e-12)).tolist() == [1, 3]
    assert np.flatnonzero(smallest(scores, 1, 0.0)).tolist() == [3]
    assert smallest(scores, 9, 0.0).all()
