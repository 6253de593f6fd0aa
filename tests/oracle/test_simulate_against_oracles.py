"""Rules on secret rows give what plaintext, byzfl, byzpy and the papers give on the same dequantised rows."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import numpy as np
import pytest
from bench.plaintext import COORDINATE_RULES, GRAM_RULES, STAGES, aggregate

from triskele.errors import RoundFailed
from triskele_server.rules.registry import find, known
from triskele_server.simulate import simulate as simulate_in_a_ring

from . import packages, papers
from .matrices import CLIP, KINDS, malicious, matrix, on_grid
from .tasks import CLIPPED, EXACT, NEAR, TASKS, TRUSTED, WEIGHTED, Task

simulate = partial(simulate_in_a_ring, ring=64)  # whose places the bounds here are about; the other: test_narrow_ring

SIZES = [(9, 40), (20, 300), (10, 1), (6, 7)]
# Four kinds for every task, two or three tasks for every kind and size; `python -m tests.oracle.sweep` runs more.
CASES = [(name, KINDS[(t + 2 * k) % len(KINDS)], *size) for t, name in enumerate(TASKS) for k, size in enumerate(SIZES)]
CASES += [("fltrust", "around a direction", 60, 3000), ("flame", "two clusters", 60, 3000)]
CASES += [("multi-krum", "little is enough", 60, 3000), ("foolsgold", "colluders", 31, 500)]
CASES += [("flame", kind, 8, 30) for kind in ("zero rows", "one dominates")]
CASES += [("fltrust", kind, 8, 30) for kind in ("zero rows", "one dominates")]


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs)) / CLIP


@pytest.mark.parametrize(("name", "kind", "n", "d"), CASES)
def test_a_rule_on_secret_rows_agrees_with_every_oracle(name, kind, n, d):
    task, rows, f = TASKS[name], matrix(kind, n, d), malicious(n)
    assert task.margin(rows, f) > NEAR
    expected = task.in_plaintext(rows)
    if not expected.accepted.any():
        with pytest.raises(RoundFailed) as caught:
            task.in_secret(rows)
        assert caught.value.reason == "too_few_accepted"
        return
    outcome = task.in_secret(rows)
    assert outcome.invalid == {}
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert error(outcome.aggregate, expected.aggregate) <= task.tolerance
    for oracle in task.oracles:
        assert error(outcome.aggregate, oracle(rows, f)) <= task.tolerance + 1e-7  # theirs errs too, by roots near 0


def test_every_rule_there_is_has_an_oracle():
    compared = {"bucketing"}.union(*((t.rule,) if isinstance(t.rule, str) else t.rule for t in TASKS.values()))
    assert {name for name in known() if find(name).built_in} == compared
    assert set(STAGES | GRAM_RULES | COORDINATE_RULES) == compared


# ---- rows that are all alike ----------------------------------------------------------------------------------------

NOBODY = {("fltrust", "all zero"), ("foolsgold", "identical")}
ALIKE = sorted(NOBODY | {("fltrust", "identical"), ("foolsgold", "all zero"), ("flame", "all zero")})
ALIKE += [(name, "identical") for name in TASKS if name not in ("fltrust", "foolsgold", "mean", "nnm, trimmed-mean")]


@pytest.mark.parametrize(("name", "kind"), ALIKE)
def test_rows_that_are_all_alike(name, kind):
    """Selections take the lower indices; foolsgold trusts nobody with a double, fltrust nobody beside a zero root."""
    task, rows = TASKS[name], matrix(kind, 7, 12)
    if (name, kind) in NOBODY:
        with pytest.raises(RoundFailed) as caught:
            task.in_secret(rows)
        assert caught.value.reason == "too_few_accepted"
        return
    outcome, expected = task.in_secret(rows), task.in_plaintext(rows)
    assert error(outcome.aggregate, expected.aggregate) <= task.tolerance
    # A rule that rejects nobody does not either where ties leave a row without weight, as nobody's neighbour.
    if name not in ("nnm, mean", "nnm, geometric-median"):
        assert outcome.accepted.tolist() == expected.accepted.tolist()


def test_foolsgold_trusts_nobody_where_everybody_has_a_double():
    """Doubles differ by rounding noise, which must not be taken for honesty: some of these pairs would get in."""
    for seed in range(6):
        with pytest.raises(RoundFailed) as caught:
            TASKS["foolsgold"].in_secret(matrix("twins", 8, 3, seed))
        assert caught.value.reason == "too_few_accepted"


# ---- weights, buckets, clipping -------------------------------------------------------------------------------------

WEIGHTABLE = [
    "norm-clip", "multi-krum", "fltrust", "flame", "geometric-median", "dnc", "foolsgold", "nnm, mean",
    "nnm, geometric-median",
]  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTABLE)
def test_example_weights_multiply_the_rules_weights(name):
    task, rows = TASKS[name], matrix("around a direction", 10, 30)
    assert task.margin(rows, 2) > NEAR
    examples = np.array([30, 20, 25, 40, 33, 27, 21, 38, 24, 29])
    outcome, expected = task.in_secret(rows, weights=examples), task.in_plaintext(rows, weights=examples)
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert error(outcome.aggregate, expected.aggregate) <= max(task.tolerance, WEIGHTED)
    assert error(expected.aggregate, task.in_plaintext(rows).aggregate) > 2.0**-9  # they matter


def _some_order(rows: np.ndarray, size: int, aggregate_of, ours: np.ndarray, tolerance: float) -> list[tuple]:
    """The orders in which bucket means give the round's aggregate."""
    orders = permutations(range(len(rows)))
    return [o for o in orders if error(ours, aggregate_of(packages.byzpy_bucketing(rows, size, o))) <= tolerance]


@pytest.mark.parametrize(
    ("last", "size", "tolerance", "aggregate_of"),
    [
        ("median", 2, EXACT, packages.byzfl_median),
        ("norm-clip", 2, TRUSTED, packages.byzfl_norm_clip),
        ("geometric-median", 4, WEIGHTED, lambda rows: packages.byzfl_geometric_median(rows, 0.1, 3)),
    ],
)
def test_bucketing_averages_the_rows_in_some_order(last, size, tolerance, aggregate_of):
    rows = matrix("independent", 6, 8)
    outcome = simulate(rows, rule=["bucketing", last], rule_options={"size": size}, clip_norm=CLIP)
    found = _some_order(rows, size, aggregate_of, outcome.aggregate, tolerance)
    # One set of buckets explains it, in any order of buckets and of rows within one.
    assert len({frozenset(frozenset(o[i : i + size]) for i in range(0, 6, size)) for o in found}) == 1


def test_more_rows_than_the_rule_may_see_are_bucketed_first():
    rows = matrix("independent", 6, 8)
    outcome = simulate(rows, rule="median", clip_norm=CLIP, max_rows=3)
    assert _some_order(rows, 2, packages.byzfl_median, outcome.aggregate, EXACT)


def test_buckets_mixed_with_their_neighbours():
    rows = matrix("independent", 6, 8)
    outcome = simulate(
        rows, rule=["bucketing", "nnm", "geometric-median"], rule_options={"nnm": {"num_malicious_nodes": 1}},
        clip_norm=CLIP,
    )  # fmt: skip
    assert _some_order(
        rows, 2, lambda buckets: packages.byzfl_geometric_median(packages.byzfl_nnm(buckets, 1), 0.1, 3),
        outcome.aggregate, WEIGHTED,
    )  # fmt: skip


def test_no_tau_is_the_clip_norm_in_secret_too():
    rows, far = matrix("independent", 7, 12), on_grid(-matrix("independent", 7, 12)[:1])[0]
    outcome = simulate(rows, rule="centered-clip", previous=far, clip_norm=CLIP)
    assert (np.linalg.norm(rows - far, axis=1) > CLIP).any()
    assert error(outcome.aggregate, packages.byzfl_centered_clip(rows, CLIP, 1, far)) <= CLIPPED


def test_without_a_clip_norm_the_largest_norm_is_the_unit():
    """Norms are multiples of the largest, a power of two: still on the grid."""
    rows = np.eye(5) * np.array([1.0, 2.0, 4.0, 0.5, 3.0])[:, None]
    for name in ("geometric-median", "norm-clip"):
        task = TASKS[name]
        outcome = simulate(rows, rule=task.rule)
        expected = aggregate(rows, task.rule, clip_norm=None).aggregate
        assert np.linalg.norm(outcome.aggregate - expected) <= 4 * task.tolerance


# ---- FLTrust's whole range ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, 7, 15, 18])
def test_fltrust_rescales_rows_of_any_length_to_the_root(exponent):
    """Rows along the axes, shorter than the root by powers of two: lengths are exact, also of the shortest."""
    rows = np.zeros((6, 6))
    rows[:5, :5] = np.eye(5) * 2.0**-exponent
    rows[:5, 5] = 2.0**-exponent
    rows[5, 5] = 1
    expected = aggregate(rows, "fltrust", clip_norm=CLIP, root=5).aggregate
    outcome = simulate(rows, rule="fltrust", root=5, clip_norm=CLIP)
    assert error(outcome.aggregate, expected) <= TRUSTED
    if exponent <= 15:  # beyond, rows are not made as long as the root
        assert error(outcome.aggregate, papers.fltrust(rows, 5)) <= TRUSTED
    else:
        assert np.linalg.norm(outcome.aggregate) < 0.5 * np.linalg.norm(papers.fltrust(rows, 5))


def test_the_root_may_be_any_row_and_has_no_part_in_the_aggregate():
    rows = matrix("around a direction", 7, 12)
    task = Task("fltrust", lambda n: {}, TRUSTED)
    outcome = task.in_secret(rows, root=2)
    assert not outcome.accepted[2]
    assert error(outcome.aggregate, papers.fltrust(rows, 2)) <= TRUSTED
