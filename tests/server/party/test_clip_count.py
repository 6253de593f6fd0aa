"""The noised count of an adaptive bound: what is opened, that attempts agree, that the parties start from one bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_parties import (
    ONE,
    ended_the_round,
    openings,
    round_inputs,
    run_rounds,
    task,
    watched_transports,
)
from scipy import stats

from triskele.errors import PartyFault
from triskele.ids import PARTIES
from triskele.privacy import Privacy
from triskele_server.party.checkpoint import MemoryCheckpoints
from triskele_server.party.clip_count import own_count_noise
from triskele_server.rules import registry, rule
from triskele_server.rules.adaptive_bound import BOUND_BITS, COUNT_BITS, AdaptiveBound
from triskele_server.rules.noise import party_sigma
from triskele_server.rules.registry import Scaled

D = 40
NORMS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
OPTIONS = {"bound": 0.6, "quantile": 0.5, "learning_rate": 0.5}


def _rows() -> np.ndarray:
    rows = np.random.default_rng(3).normal(size=(len(NORMS), D))
    return np.round(rows * (NORMS * ONE / np.linalg.norm(rows, axis=1))[:, None]).astype(np.int64)


def _inputs(**options):
    given = {**OPTIONS, **options.pop("rule_options", {})}
    return round_inputs(task(D, "norm-clip", rule_options=given, **options), _rows())


def test_the_count_is_opened_after_the_cohort_and_before_the_aggregate_and_nothing_else_is():
    output = run_rounds(_inputs()).outputs[0]
    assert openings(output) == [("valid", (5,)), ("enough_accepted", ()), ("clip_count", (1,)), ("aggregate", (D,))]


def test_without_noise_it_is_the_number_of_rows_that_are_no_longer_and_the_bound_follows():
    inputs = _inputs()
    ran = run_rounds(inputs)
    rule = AdaptiveBound.of(inputs[0].spec)
    bounds = {output.clip_bound for output in ran.outputs}
    assert bounds == {rule.next(rule.initial, 3 << COUNT_BITS, 5)}
    expected = (_rows() * np.minimum(1, 0.6 / NORMS)[:, None]).sum(0)
    assert np.abs(ran.outputs[0].words / 2.0**20 - expected).max() < 8


def test_a_row_as_long_as_the_bound_counts_as_no_longer():
    rows = np.zeros((3, D), np.int64)
    rows[0, 0], rows[1, 0], rows[2, 0] = ONE // 2, ONE // 2 + 1, ONE // 2 - 1
    spec = task(D, "norm-clip", rule_options={**OPTIONS, "bound": 0.5})
    output = run_rounds(round_inputs(spec, rows)).outputs[0]
    rule = AdaptiveBound.of(spec)
    assert output.clip_bound == rule.next(rule.initial, 2 << COUNT_BITS, 3)


@pytest.mark.parametrize("privacy", [None, Privacy(noise_multiplier=1.0, delta=1e-5, budget_epsilon=50.0)])
def test_every_attempt_opens_the_same_count(privacy):
    """Two noises on one count could be averaged. The decision of the first is lost, so that the second counts anew."""
    inputs = _inputs(rule_options={"count_noise": 3.0}, privacy=privacy)
    first = run_rounds(inputs).outputs[0]
    anew = [replace(given, attempt=1, checkpoints=MemoryCheckpoints()) for given in inputs]
    again = run_rounds(anew).outputs[0]
    assert again.clip_bound == first.clip_bound
    assert first.clip_bound != run_rounds(_inputs(rule_options={"count_noise": 3.0})).outputs[0].clip_bound


def test_an_attempt_that_takes_a_decision_up_opens_no_second_count_and_has_the_same_bound():
    inputs = _inputs(rule_options={"count_noise": 3.0})
    first = run_rounds(inputs).outputs[0]
    ran = run_rounds([replace(given, attempt=1) for given in inputs])
    assert ran.outputs[0].clip_bound == first.clip_bound
    assert openings(ran.outputs[0]) == openings(first)
    assert "clip_count" not in ran.opened


def test_parties_with_different_bounds_end_the_round_before_anything_is_opened():
    inputs = _inputs()
    inputs[1] = replace(inputs[1], clip_bound=1 << BOUND_BITS - 1)
    ran = run_rounds(inputs)
    assert all(isinstance(ran.errors[p], PartyFault) and "adaptive bound" in str(ran.errors[p]) for p in PARTIES)
    assert not ran.opened


def test_a_decision_is_not_combined_with_another_bound():
    """The noise of the sum would not be that of the terms."""
    inputs = _inputs()
    assert not run_rounds(inputs).errors
    ran = run_rounds([replace(given, attempt=1, clip_bound=1 << BOUND_BITS - 1) for given in inputs])
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert not ran.opened


def test_a_party_that_opens_another_count_is_caught():
    transports = watched_transports()

    def lie(_, frame):
        if frame.label.startswith("open/clip_count") and "digest" not in frame.label:
            return replace(frame, payload=bytes(len(frame.payload)))
        return frame

    transports[1].change = lie
    ran = run_rounds(_inputs(rule_options={"count_noise": 3.0}), transports)
    assert any(isinstance(error, PartyFault) for error in ran.errors.values())
    assert "aggregate" not in ran.opened


def test_two_parties_noise_in_the_count_is_the_stated_one():
    rule = AdaptiveBound.of(task(D, "norm-clip", rule_options={**OPTIONS, "count_noise": 3.0}))
    drawn = np.array([[own_count_noise(rule, bytes([p]) * 32, k.to_bytes(4))[0] for p in (1, 2)] for k in range(3000)])
    noise = drawn.sum(1) / (3.0 * (1 << COUNT_BITS))
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert len(noise) * noise.var() > stats.chi2.ppf(1e-6, len(noise) - 1)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1


def test_the_noise_of_the_sum_follows_the_bound(monkeypatch):
    """A small bound needs little noise: measured on the opened words, with the bound of a later round."""
    privacy = Privacy(noise_multiplier=1.0, delta=1e-5, budget_epsilon=50.0)
    rows = np.zeros((4, 3000), np.int64)
    rows[:, 0] = ONE // 100
    opened = {}
    for bound in (1 << BOUND_BITS, 1 << BOUND_BITS - 6):
        spec = task(3000, "norm-clip", rule_options={**OPTIONS, "count_noise": 2.0}, privacy=privacy)
        inputs = [replace(given, clip_bound=bound) for given in round_inputs(spec, rows)]
        noise = run_rounds(inputs).outputs[0].words[1:]
        sigma = party_sigma(privacy, spec, 4, 20, bound) * np.sqrt(3)
        assert noise.std() == pytest.approx(sigma, rel=0.1)
        opened[bound] = noise.std()
    large, small = opened.values()
    assert large / small == pytest.approx(64, rel=0.2)


def test_a_rule_of_another_package_cannot_have_anything_counted(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    def counting(gram):
        return Scaled(np.ones(gram.size(0), np.int64), gram.diagonal() * 0 + 1, counted=gram.diagonal())

    rule("rogue", giving="public", scale_bits=0, counts=lambda _: True)(counting)
    ended_the_round(run_rounds(round_inputs(task(D, "rogue"), _rows())))


def test_a_round_with_too_few_rows_opens_no_count():
    rows = _rows()
    rows[1:] = 0
    spec = task(D, "norm-clip", rule_options=OPTIONS, min_accepted=2, max_weight=5)
    weighted = np.column_stack([rows, [5, 0, 0, 0, 0]])
    ran = run_rounds(round_inputs(spec, weighted))
    assert set(ran.errors) == set(PARTIES)
    assert "clip_count" not in ran.opened
