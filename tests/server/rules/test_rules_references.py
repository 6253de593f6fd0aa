"""A simulated round equals the rule in plain numpy on the dequantised updates."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from rule_references import ONE, gaussian, krum_scores, multi_krum, norm_clip, on_grid, weighted_mean

from triskele_server.simulate import SimulatedRound
from triskele_server.simulate import simulate as simulate_in_a_ring

simulate = partial(simulate_in_a_ring, ring=64)  # whose places the bounds here are about; the other: test_narrow_ring

CLIP = 2.0  # a power of two: k C / 2^20 is a float64
SIZES = [(3, 1), (3, 2), (4, 7), (5, 100), (10, 1), (13, 500), (21, 64), (40, 1000), (7, 8192), (7, 8193), (6, 20_000)]
TOLERANCE = CLIP * 2.0**-18
WAYS = [("public", False), ("hidden", False), ("public", True), ("hidden", True)]
# Every way of running at one size, and every size in one way or another.
CASES = [(10, 30, *way) for way in WAYS] + [(*size, *WAYS[k % 4]) for k, size in enumerate(SIZES)]
cases = pytest.mark.parametrize(("n", "d", "decisions", "weighted"), CASES)


def _weights(n: int, seed: int) -> np.ndarray:
    """Of like size: the effective cohort of three rows must not fall below two."""
    return np.random.default_rng(seed).integers(20, 40, n)


def _simulate(words: np.ndarray, **options) -> SimulatedRound:
    return simulate(words * (CLIP / ONE), clip_norm=CLIP, **options)


def _decisions(outcome: SimulatedRound, decisions: str, expected: np.ndarray) -> None:
    if decisions == "hidden":
        assert outcome.accepted is None
    else:
        assert outcome.accepted.tolist() == expected.tolist()
    assert outcome.invalid == {}


@cases
def test_mean(n, d, decisions, weighted):
    words = gaussian(n, d, seed=n + d)
    weights = _weights(n, d) if weighted else None
    outcome = _simulate(words, decisions=decisions, weights=weights)
    expected = weighted_mean(words * (CLIP / ONE), weights if weighted else np.ones(n))
    assert np.abs(outcome.aggregate - expected).max() < 1e-14  # integers throughout: only the division rounds
    _decisions(outcome, decisions, np.ones(n, bool))


@pytest.mark.parametrize(("n", "d", "decisions", "weighted"), CASES[:4] + CASES[4::3] + CASES[-1:])
def test_norm_clip(n, d, decisions, weighted):
    words = gaussian(n, d, seed=n * d)
    weights = _weights(n, n) if weighted else None
    outcome = _simulate(words, rule="norm-clip", decisions=decisions, weights=weights)
    expected = norm_clip(words * (CLIP / ONE), weights if weighted else np.ones(n))
    assert np.linalg.norm(outcome.aggregate - expected) < TOLERANCE
    _decisions(outcome, decisions, np.ones(n, bool))


@pytest.mark.parametrize(("n", "d", "decisions", "weighted"), CASES[:4] + CASES[4::4] + CASES[-1:])
def test_norm_clip_to_a_fixed_bound(n, d, decisions, weighted):
    words = gaussian(n, d, seed=n * d + 1)
    weights = _weights(n, n) if weighted else None
    norms = np.linalg.norm(words, axis=1) * (CLIP / ONE)
    for bound in (float(np.median(norms)), 0.3 * CLIP, 1.2 * CLIP):
        outcome = _simulate(
            words, rule="norm-clip", decisions=decisions, weights=weights, rule_options={"bound": bound}
        )
        factors = np.minimum(1, bound / np.maximum(norms, 1e-9))
        expected = weighted_mean(words * (CLIP / ONE) * factors[:, None], weights if weighted else np.ones(n))
        sketched = n * n * d > 1e9 or d > 8192
        assert np.linalg.norm(outcome.aggregate - expected) < (0.03 * CLIP if sketched else TOLERANCE)
        _decisions(outcome, decisions, np.ones(n, bool))


@cases
def test_multi_krum(n, d, decisions, weighted):
    words = gaussian(n, d, seed=n + 7 * d)
    malicious, selected = n // 4, max(3, n // 2)
    weights = _weights(n, n) if weighted else None
    outcome = _simulate(
        words,
        rule="multi-krum",
        rule_options={"num_malicious_nodes": malicious, "num_nodes_to_select": selected},
        decisions=decisions,
        weights=weights,
    )
    accepted = multi_krum(words, malicious, selected)
    effective = accepted * (weights if weighted else 1)
    assert np.abs(outcome.aggregate - weighted_mean(words * (CLIP / ONE), effective)).max() < 1e-14
    _decisions(outcome, decisions, accepted)


def _krum(words: np.ndarray, malicious: int, selected: int, **options) -> list[bool]:
    chosen = {"num_malicious_nodes": malicious, "num_nodes_to_select": selected}
    return _simulate(words, rule="multi-krum", rule_options=chosen, **options).accepted.tolist()


def test_multi_krum_of_a_hundred_participants():
    words = gaussian(100, 300, seed=11)
    words[::5] *= -1
    assert _krum(words, 20, 60) == multi_krum(words, 20, 60).tolist()


@pytest.mark.parametrize("kind", ["all equal", "pairs", "two groups", "one dimension", "mirror", "zeros"])
def test_multi_krum_breaks_ties_by_the_lower_index(kind):
    rng = np.random.default_rng(12)
    half = rng.integers(-1000, 1000, (5, 8))
    words = {
        "all equal": np.tile(half[:1], (10, 1)),
        "pairs": np.concatenate([half, half]),
        "two groups": np.concatenate([np.tile(half[:1], (5, 1)), np.tile(half[1:2], (5, 1))]),
        "one dimension": rng.integers(-2, 3, (10, 1)),
        "mirror": np.concatenate([half, -half]),
        "zeros": np.zeros((10, 8), np.int64),
    }[kind]
    for selected in (2, 7):
        assert _krum(words, 2, selected) == multi_krum(words, 2, selected).tolist()


def test_scores_that_differ_by_one_unit_are_told_apart():
    """Nothing is truncated between the updates and the decision."""
    words = np.array([[0], [ONE // 2], [ONE // 2 + 1], [ONE - 1]], np.int64)
    assert _krum(words, 0, 2) == multi_krum(words, 0, 2).tolist()
    scores = np.sort(krum_scores(np.array([[0], [5], [11], [16]]), 1))
    assert scores[1] == scores[0]  # and with exact ties:
    assert _krum(np.array([[0], [5], [11], [16]]), 1, 2) == multi_krum(np.array([[0], [5], [11], [16]]), 1, 2).tolist()


@pytest.mark.parametrize(("malicious", "selected"), [(0, 1000), (30, 3), (0, 2)])
def test_multi_krum_options_beyond_the_cohort(malicious, selected):
    """At least one neighbour counts, and no more rows are selected than there are."""
    words = gaussian(6, 20, seed=13)
    assert _krum(words, malicious, selected) == multi_krum(words, malicious, selected).tolist()


TINY_AND_TIED = [
    lambda n: [0] * n,
    lambda n: [0] * (n - 3) + [ONE - 1] * 3,
    lambda n: [0] * (n // 2) + [ONE - 1] * (n - n // 2),
    lambda n: [30] * (n - 2) + [ONE // 2, ONE - 1],
    lambda n: [1000] * n,
    lambda n: [1000] * (n - 1) + [1010],
    lambda n: [7, 7] + [100] * (n - 2),
    lambda n: list(range(0, 1000 * n, 1000)),
]


@pytest.mark.parametrize("case", range(len(TINY_AND_TIED)))
def test_norm_clip_with_tiny_median_zero_rows_and_ties(case):
    n = 5 + case % 2
    rng = np.random.default_rng(n)
    direction = rng.normal(size=50)
    direction /= np.linalg.norm(direction)
    words = np.round(np.outer(TINY_AND_TIED[case](n), direction)).astype(np.int64)
    expected = norm_clip(words * (CLIP / ONE), np.ones(n))
    outcome = _simulate(words, rule="norm-clip")
    assert np.linalg.norm(outcome.aggregate - expected) < TOLERANCE


@pytest.mark.parametrize(
    ("rule", "options"), [("mean", {}), ("norm-clip", {}), ("multi-krum", {"num_nodes_to_select": 2})]
)
def test_a_million_entries(rule, options):
    words = gaussian(3, 1_000_000, seed=14)
    outcome = _simulate(words, rule=rule, rule_options=options, gram="exact")
    updates = words * (CLIP / ONE)
    if rule == "multi-krum":
        accepted = multi_krum(words, 0, 2)
        assert outcome.accepted.tolist() == accepted.tolist()
        expected = updates[accepted].mean(0)
    else:
        expected = norm_clip(updates, np.ones(3)) if rule == "norm-clip" else updates.mean(0)
    assert np.linalg.norm(outcome.aggregate - expected) < TOLERANCE


@pytest.mark.parametrize("seed", range(2))
def test_a_sketched_gram_selects_the_same_where_scores_differ_by_five_percent(seed):
    n, d, malicious = 14, 12_000, 3
    rng = np.random.default_rng(seed)
    spread = np.where(np.arange(n) % 2 == 0, 0.2, 0.3)[:, None]
    words = on_grid(rng.normal(size=d) + spread * rng.normal(size=(n, d)))
    selected = n // 2
    scores = np.sort(krum_scores(words, malicious))
    assert scores[selected] > 1.05 * scores[selected - 1]
    chosen = {"num_malicious_nodes": malicious, "num_nodes_to_select": selected}
    outcome = _simulate(words, rule="multi-krum", rule_options=chosen, gram="sketch")
    assert outcome.accepted.tolist() == multi_krum(words, malicious, selected).tolist()


def test_a_sketched_norm_clip_is_near_the_exact_one():
    words = gaussian(9, 12_000, seed=15)
    expected = norm_clip(words * (CLIP / ONE), np.ones(9))
    outcome = _simulate(words, rule="norm-clip", gram="sketch")
    assert np.linalg.norm(outcome.aggregate - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("gram", ["auto", "exact", "sketch"])
def test_short_updates_have_an_exact_gram_whatever_is_asked(gram):
    words = gaussian(8, 50, seed=16)
    assert _krum(words, 1, 4, gram=gram) == multi_krum(words, 1, 4).tolist()


@pytest.mark.parametrize("clip", [1e-3, 1e6])
@pytest.mark.parametrize("rule", ["mean", "norm-clip"])
def test_any_clip_norm_scales_the_aggregate(clip, rule):
    """Off the grid entries are rounded at random: each row errs by less than one unit an entry."""
    updates = gaussian(5, 40, seed=17) * (clip / ONE)
    outcome = simulate(updates, clip_norm=clip, rule=rule)
    expected = norm_clip(updates, np.ones(5)) if rule == "norm-clip" else updates.mean(0)
    assert np.abs(outcome.aggregate - expected).max() < clip * 2.0**-18
