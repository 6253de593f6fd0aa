"""`bench.plaintext` gives what byzfl and byzpy give, and where definitions differ, the stated difference."""

from __future__ import annotations

import numpy as np
import pytest
from bench.plaintext import aggregate, bucketing, nnm

from . import packages
from .matrices import CLIP, EXTREMES, KINDS, malicious, matrix

SIZES = [(5, 1), (6, 3), (9, 40), (14, 1), (20, 300), (31, 1000), (60, 3000)]
CASES = [(kind, n, d) for k, kind in enumerate(KINDS) for n, d in SIZES[k % 2 :: 2]]
CASES += [(kind, n, 7) for kind in EXTREMES for n in (5, 8)]
cases = pytest.mark.parametrize(("kind", "n", "d"), CASES)
generic = pytest.mark.parametrize(("kind", "n", "d"), [c for c in CASES if c[0] not in EXTREMES])
SMALL = [(kind, n, d) for kind in KINDS + EXTREMES for n, d in ((9, 40), (14, 1))]
small = pytest.mark.parametrize(("kind", "n", "d"), SMALL)
ROUNDING = 1e-13 * CLIP  # float64 sums in another order
ROOTS = 1e-7 * CLIP  # a distance of 0 from a Gram matrix is the root of its rounding error


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = ROUNDING) -> None:
    assert np.linalg.norm(ours - theirs, axis=-1).max() <= tolerance


def plain(rows: np.ndarray, rule: str | list[str], options: dict | None = None, **given) -> np.ndarray:
    return aggregate(rows, rule, options or {}, clip_norm=CLIP, **given).aggregate


# ---- Krum -----------------------------------------------------------------------------------------------------------


@cases
def test_krum_is_that_of_both_packages_told_of_one_malicious_row_more(kind, n, d):
    """The paper sums n - f - 2 distances to others, byzfl and byzpy n - f - 1."""
    rows, f = matrix(kind, n, d), malicious(n)
    ours = plain(rows, "krum", {"num_malicious_nodes": f})
    assert_close(ours, packages.byzfl_krum(rows, f + 1))
    assert_close(ours, packages.byzpy_multi_krum(rows, f + 1, 1))


@cases
def test_multi_krum_is_byzfls_when_it_selects_as_many(kind, n, d):
    """byzfl selects n - f rows, f being one more than ours; ours selects as many as it is told."""
    rows, f = matrix(kind, n, d), malicious(n)
    ours = plain(rows, "multi-krum", {"num_malicious_nodes": f, "num_nodes_to_select": n - f - 1})
    assert_close(ours, packages.byzfl_multi_krum(rows, f + 1))


@cases
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_multi_krum_is_byzpys_for_any_number_of_selected_rows(kind, n, d, share):
    rows, f = matrix(kind, n, d), malicious(n)
    selected = max(1, int(share * n))
    ours = plain(rows, "multi-krum", {"num_malicious_nodes": f, "num_nodes_to_select": selected})
    assert_close(ours, packages.byzpy_multi_krum(rows, f + 1, selected))


def test_with_the_same_f_the_packages_krum_selects_another_row():
    """One more distance counts there, and row 0's next one is long."""
    rows = np.array([[0.0], [0.1], [0.2], [0.9], [1.0], [1.3]])
    ours = plain(rows, "krum", {"num_malicious_nodes": 2})
    assert ours == 0.1
    assert packages.byzfl_krum(rows, 1) == packages.byzpy_multi_krum(rows, 1, 1) == 0.2


# ---- geometric median -----------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(("nu", "steps"), [(0.1, 3), (0.01, 1), (1.5, 8), (0.1, 0)])
def test_geometric_median_is_byzfls(kind, n, d, nu, steps):
    rows = matrix(kind, n, d)
    ours = plain(rows, "geometric-median", {"nu": nu, "iterations": steps})
    assert_close(ours, packages.byzfl_geometric_median(rows, nu, steps), 1e-11 * CLIP)


@generic
@pytest.mark.parametrize(("nu", "steps"), [(0.1, 3), (0.01, 5)])
def test_geometric_median_of_centred_rows_is_byzpys(kind, n, d, nu, steps):
    """byzpy starts from the mean, ours from zero: the same point once the mean is zero."""
    rows = matrix(kind, n, d) / 2  # still within the clip norm when centred
    rows -= rows.mean(0)
    ours = plain(rows, "geometric-median", {"nu": nu, "iterations": steps})
    assert_close(ours, packages.byzpy_geometric_median(rows, nu, steps), 1e-10 * CLIP)


def test_from_zero_and_from_the_mean_three_steps_end_in_different_points():
    rows = matrix("two clusters", 9, 40)
    ours = plain(rows, "geometric-median")
    assert np.linalg.norm(ours - packages.byzpy_geometric_median(rows, 0.1, 3)) > 1e-3


@pytest.mark.parametrize("kind", ["around a direction", "two clusters", "colluders"])
def test_from_zero_and_from_the_mean_many_steps_end_in_the_same_point(kind):
    rows = matrix(kind, 15, 60)
    ours = plain(rows, "geometric-median", {"iterations": 400, "nu": 1e-3})
    assert_close(ours, packages.byzpy_geometric_median(rows, 1e-3, 400), 1e-6)


# ---- centered clipping ----------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(("tau", "steps"), [(0.5, 1), (0.05, 4), (2.0, 2)])
def test_centered_clipping_around_zero_is_that_of_both_packages(kind, n, d, tau, steps):
    rows = matrix(kind, n, d)
    ours = plain(rows, "centered-clip", {"tau": tau, "iterations": steps})
    assert_close(ours, packages.byzfl_centered_clip(rows, tau, steps), ROOTS)
    assert_close(ours, packages.byzpy_centered_clip(rows, tau, steps), ROOTS)


@cases
def test_centered_clipping_around_the_previous_aggregate_is_byzfls(kind, n, d):
    rows = matrix(kind, n, d)
    previous = matrix("independent", 5, d, seed=1)[0]
    ours = plain(rows, "centered-clip", {"tau": 0.3, "iterations": 3}, previous=previous)
    assert_close(ours, packages.byzfl_centered_clip(rows, 0.3, 3, previous), ROOTS)


def test_byzfls_instance_keeps_the_previous_aggregate_that_ours_is_given():
    rounds = [matrix("around a direction", 8, 30, seed) for seed in range(4)]
    previous = np.zeros(30)
    for rows, theirs in zip(rounds, packages.byzfl_centered_clip_over_rounds(rounds, 0.4, 2), strict=True):
        previous = plain(rows, "centered-clip", {"tau": 0.4, "iterations": 2}, previous=previous)
        assert_close(previous, theirs, 1e-12)


def test_no_tau_is_the_clip_norm():
    rows = matrix("independent", 8, 30)
    previous = matrix("independent", 8, 30, seed=1)[0]  # farther away than C, some of them
    assert (np.linalg.norm(rows - previous, axis=1) > CLIP).any()
    ours = plain(rows, "centered-clip", previous=previous)
    assert_close(ours, packages.byzfl_centered_clip(rows, CLIP, 1, previous))


# ---- coordinate by coordinate ---------------------------------------------------------------------------------------


@cases
def test_trimmed_mean_is_that_of_both_packages(kind, n, d):
    rows = matrix(kind, n, d)
    for f in {0, malicious(n), (n - 1) // 2}:
        ours = plain(rows, "trimmed-mean", {"num_malicious_nodes": f})
        assert_close(ours, packages.byzfl_trimmed_mean(rows, f))
        assert_close(ours, packages.byzpy_trimmed_mean(rows, f))


@cases
def test_median_is_byzfls(kind, n, d):
    rows = matrix(kind, n, d)
    assert_close(plain(rows, "median"), packages.byzfl_median(rows))


@cases
def test_median_is_byzpys_for_odd_n_and_above_it_by_half_the_middle_gap_for_even_n(kind, n, d):
    """byzpy takes the lower of the two middle values."""
    rows = matrix(kind, n, d)
    ordered = np.sort(rows, axis=0)
    gap = ordered[n // 2] - ordered[(n - 1) // 2]
    assert_close(plain(rows, "median"), packages.byzpy_median(rows) + gap / 2)


def test_the_median_of_an_even_number_of_rows_lies_between_the_two_that_byzpy_and_its_mirror_image_give():
    rows = np.array([[0.0], [0.5], [0.25], [1.0]])
    assert (packages.byzpy_median(rows), plain(rows, "median"), -packages.byzpy_median(-rows)) == (0.25, 0.375, 0.5)


# ---- stages ---------------------------------------------------------------------------------------------------------


@cases
def test_nearest_neighbour_mixing_is_that_of_both_packages(kind, n, d):
    rows = matrix(kind, n, d)
    for f in {0, malicious(n), n // 2}:
        ours = nnm(rows, num_malicious_nodes=f) @ rows
        assert_close(ours, packages.byzfl_nnm(rows, f))
        assert_close(ours, packages.byzpy_nnm(rows, f))


@small
@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_bucketing_is_that_of_both_packages(kind, n, d, size):
    rows = matrix(kind, n, d)
    theirs, order = packages.byzfl_bucketing(rows, size, seed=n + size)
    ours = bucketing(rows, size=size, order=order) @ rows
    assert_close(ours, theirs)
    assert_close(ours, packages.byzpy_bucketing(rows, size, order))


@generic
def test_stages_compose_as_the_packages_stages_do(kind, n, d):
    rows, f = matrix(kind, n, d), 1
    buckets, order = packages.byzfl_bucketing(rows, 2, seed=n)
    options = {"nnm": {"num_malicious_nodes": f}, "geometric-median": {"nu": 0.05}, "iterations": 4}
    ours = plain(rows, ["bucketing", "nnm", "geometric-median"], options, order=order)
    assert_close(ours, packages.byzfl_geometric_median(packages.byzfl_nnm(buckets, f), 0.05, 4), 1e-11 * CLIP)
    mixed = packages.byzpy_nnm(rows, malicious(n))
    ours = plain(rows, ["nnm", "trimmed-mean"], {"num_malicious_nodes": malicious(n)})
    assert_close(ours, packages.byzpy_trimmed_mean(mixed, malicious(n)))


# ---- clipping -------------------------------------------------------------------------------------------------------


@cases
def test_norm_clip_is_the_mean_of_byzfls_static_clipping_to_the_median_norm(kind, n, d):
    rows = matrix(kind, n, d)
    assert_close(plain(rows, "norm-clip"), packages.byzfl_norm_clip(rows))


@cases
def test_coefficients_and_accepted_say_how_the_aggregate_was_made(kind, n, d):
    rows = matrix(kind, n, d)
    outcome = aggregate(rows, ["nnm", "multi-krum"], {"num_malicious_nodes": malicious(n)}, clip_norm=CLIP)
    assert_close(outcome.coefficients @ rows, outcome.aggregate)
    assert outcome.coefficients.sum() == pytest.approx(1)
    assert outcome.accepted.tolist() == (outcome.coefficients > 0).tolist()
    assert outcome.accepted.sum() == n - malicious(n)  # those of the one selected mix
