"""A bound that follows a quantile of the norms: the paper's recursion, the split of the noise, tasks."""

from __future__ import annotations

import decimal
import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from triskele.errors import InvalidTask
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_server.party.filter import declared_openings
from triskele_server.privacy import epsilon
from triskele_server.rules import check_task
from triskele_server.rules.adaptive_bound import BOUND_BITS, COUNT_BITS, AdaptiveBound
from triskele_server.rules.noise import no_claim, party_sigma, sensitivity
from triskele_server.rules.sigma import STEPS
from triskele_server.simulate import simulate

ONE = 1 << BOUND_BITS
OPTIONS = {"bound": 0.5, "quantile": 0.5, "learning_rate": 0.2, "count_noise": 2.0}
PRIVACY = Privacy(noise_multiplier=1.0, delta=1e-5, budget_epsilon=8.0)
SPEC = TaskSpec("faces", 1000, 2.0, rule="norm-clip", rule_options=OPTIONS, max_participants=100)


def adaptive(**options) -> AdaptiveBound:
    found = AdaptiveBound.of(replace(SPEC, rule_options={**OPTIONS, **options}))
    assert found is not None
    return found


def test_the_bound_moves_as_the_paper_has_it():
    rule = adaptive(quantile=0.8, learning_rate=0.3)
    assert rule.initial == ONE // 4
    for below, rows in ((0, 20), (16, 20), (20, 20), (7, 9)):
        expected = rule.initial * math.exp(-0.3 * (below / rows - 0.8))
        assert rule.next(rule.initial, below << COUNT_BITS, rows) == pytest.approx(expected, abs=1)
    assert rule.next(12345678901, 16 << COUNT_BITS, 20) == pytest.approx(12345678901, abs=1)  # at the quantile it stays


def test_every_machine_gets_the_same_bound():
    """Whatever decimal context the caller has; and one figure that is written down here."""
    rule = adaptive()
    expected = rule.next(rule.initial, 98765, 7)
    with decimal.localcontext() as context:
        context.prec, context.rounding = 5, decimal.ROUND_UP
        assert rule.next(rule.initial, 98765, 7) == expected
    assert expected == 290984179998


def test_noise_however_large_leaves_the_bound_between_its_limits():
    rule = adaptive(learning_rate=4.0)
    for count in (-(1 << 60), 1 << 60):
        assert ONE >> 10 <= rule.next(rule.initial, count, 2) <= ONE


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_it_settles_at_the_quantile_of_the_norms(quantile):
    """The recursion alone, with noise in the count, on norms that are drawn anew in every round."""
    rng = np.random.default_rng(5)
    rule = adaptive(quantile=quantile)
    bound, seen = ONE, []
    for round_number in range(400):
        norms = np.exp(rng.normal(-2, 0.5, 50))
        below = (norms <= bound / ONE).sum() + rng.normal(0, 2)
        bound = rule.next(bound, round(below * (1 << COUNT_BITS)), 50)
        if round_number >= 100:
            seen.append(bound / ONE)
    all_norms = np.exp(rng.normal(-2, 0.5, 100_000))
    assert (all_norms <= np.median(seen)).mean() == pytest.approx(quantile, abs=0.04)


@pytest.mark.parametrize("ring", [64, 32])
def test_rounds_in_mpc_follow_the_recursion_exactly(ring):
    rng = np.random.default_rng(1)
    norms = np.exp(rng.normal(0, 0.7, 8))
    options = {"bound": 4.0, "quantile": 0.5, "learning_rate": 2.0}
    spec = TaskSpec("t", 20, 8.0, rule="norm-clip", rule_options=options)
    rule, bound, given = AdaptiveBound.of(spec), None, None
    expected = rule.initial
    for _ in range(6):
        rows = rng.normal(size=(8, 20))
        rows *= (norms / np.linalg.norm(rows, axis=1))[:, None]
        ran = simulate(rows, rule="norm-clip", rule_options=options, clip_norm=8.0, clip_bound=given, ring=ring)
        bound = expected / ONE * 8.0
        factors = np.minimum(1, bound / norms)
        np.testing.assert_allclose(ran.aggregate, (factors[:, None] * rows).mean(0), atol=1e-4)
        expected = rule.next(expected, int((norms <= bound).sum()) << COUNT_BITS, 8)
        given = ran.clip_bound
        assert given == pytest.approx(expected / ONE * 8.0, rel=1e-9)


# The noise


@pytest.mark.parametrize("noise", [0.6, 2.0, 100.0])
def test_sum_and_count_together_cost_what_the_task_says(noise):
    """dp-accounting composes the two parts to the mechanism that the budget counts (theorem 1 of the paper)."""
    z_delta = math.sqrt(adaptive(count_noise=noise).share_of_the_sum(1.0))
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for _ in range(10):
        accountant.compose(dp_accounting.GaussianDpEvent(z_delta))
        accountant.compose(dp_accounting.GaussianDpEvent(2 * noise))  # an update moves the count by a half
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon(PRIVACY, 10), rel=1e-9)


def test_two_parties_noise_has_the_variance_of_each_part():
    spec = replace(SPEC, privacy=PRIVACY)
    rule = AdaptiveBound.of(spec)
    assert 2 * rule.count_sigma() ** 2 >= (2.0 * (1 << COUNT_BITS)) ** 2 * (1 - 1e-12)
    assert math.sqrt(2) * (rule.count_sigma() - STEPS) < 2.0 * (1 << COUNT_BITS)
    z_delta = math.sqrt(1 / (1 - 1 / 16))
    for bound in (ONE, ONE // 4, ONE // 1000):
        longest = (bound >> 20 << 20) + 2 * sensitivity(spec)  # the factor's rounding is 2 units of 2^-20
        sigma = party_sigma(PRIVACY, spec, 50, 20, bound)
        assert math.sqrt(2) * sigma == pytest.approx(z_delta * longest, rel=1e-6)
        assert math.sqrt(2) * sigma >= z_delta * longest * (1 - 1e-12)


def test_the_guarantee_is_claimed_only_where_norms_are_measured_exactly():
    assert no_claim(replace(SPEC, privacy=PRIVACY)) == ""
    large = replace(SPEC, dimension=1_000_000, privacy=PRIVACY)
    assert "sketches" in no_claim(large)
    assert no_claim(replace(large, gram="exact")) == ""
    assert "sketches" in no_claim(replace(SPEC, dimension=10_000, gram="sketch", privacy=PRIVACY))
    assert "weights" in no_claim(replace(SPEC, max_weight=5, privacy=PRIVACY))


# Tasks


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"quantile": 1.0}, {}, "quantile"),
        ({"learning_rate": 0.0}, {}, "learning_rate"),
        ({"learning_rate": 5.0}, {}, "learning_rate"),
        ({"count_noise": 101.0}, {}, "count_noise"),
        ({"bound": 0.0}, {}, "bound"),
        ({"bound": 2.1}, {}, "bound"),
        ({"bound": 0.001}, {}, "bound"),
        ({}, {"rule": ("nnm", "norm-clip"), "rule_options": {"norm-clip": OPTIONS}}, "stages"),
        ({}, {"max_participants": 200}, "buckets"),
        ({}, {"max_weight": 1, "covers": True}, "covers"),
        ({"count_noise": 0.5}, {"privacy": PRIVACY}, "half of noise_multiplier"),
        ({"count_noise": 0.0}, {"privacy": PRIVACY}, "half of noise_multiplier"),
    ],
)
def test_a_task_that_cannot_adapt_is_refused_by_name(options, changes, words):
    with pytest.raises(InvalidTask, match=words):
        check_task(replace(SPEC, **{"rule_options": {**OPTIONS, **options}, **changes}))


def test_other_tasks_do_not_adapt_and_open_no_count():
    for rule, options in (("norm-clip", {"bound": 0.5}), ("norm-clip", {}), ("mean", {}), ("flame", {})):
        spec = replace(SPEC, rule=rule, rule_options=options)
        assert AdaptiveBound.of(spec) is None
        assert "clip_count" not in declared_openings(spec)
    assert declared_openings(SPEC) == ["valid", "enough_accepted", "clip_count", "masked_aggregate"]
    check_task(replace(SPEC, privacy=PRIVACY))
