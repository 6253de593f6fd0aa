"""The noise of a round: what two parties' is worth, that no attempt adds another one, what the others see of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from round_parties import (
    in_sessions,
    openings,
    round_inputs,
    rows_around,
    run_rounds,
    task,
    watched_transports,
)
from scipy import stats

from triskele.errors import PartyFault
from triskele.ids import PARTIES
from triskele.privacy import Privacy
from triskele.ring import NARROW, WIDE
from triskele_server.mpc.session import Shares
from triskele_server.party import round as round_module
from triskele_server.party.noise import own_noise, with_dealt
from triskele_server.rules.noise import party_sigma, sensitivity

N, D = 4, 3000
PRIVACY = Privacy(noise_multiplier=2.0, delta=1e-5, budget_epsilon=50.0)
EVERY_WAY = {
    "mean": {"rule": "mean"},
    "weighted mean": {"rule": "mean", "max_weight": 10},
    "public selection": {"rule": "multi-krum", "rule_options": {"num_malicious_nodes": 1, "num_nodes_to_select": 3}},
    "hidden selection": {"rule": "flame", "decisions": "hidden"},
    "fixed clip": {"rule": "norm-clip", "rule_options": {"bound": 0.5}},
    "fractions": {"rule": "geometric-median"},
    "32 bits, mean": {"ring_bits": 32},
    "32 bits, hidden selection": {"rule": "dnc", "decisions": "hidden", "ring_bits": 32},
}


def _inputs(d: int = D, seed: int = 1, **options):
    spec = task(d, options.pop("rule", "mean"), **options)
    rows = rows_around(N, d, seed=seed)
    return round_inputs(spec, np.column_stack([rows, np.full(N, 4)]) if spec.weighted else spec.ring.reduced(rows))


def _opened(inputs) -> np.ndarray:
    return run_rounds(inputs).outputs[0].words


def _without(monkeypatch, dropped: int) -> None:
    """One party adds no noise, and nobody can tell."""

    def honest_but_one(given, *rest):
        noise = original(given, *rest)
        return np.zeros_like(noise) if given is dropping[0] else noise

    original, dropping = round_module._noise, [None]
    monkeypatch.setattr(round_module, "_noise", honest_but_one)
    return lambda inputs: dropping.__setitem__(0, inputs[dropped])


@pytest.mark.parametrize(("dropped", "bits"), [*((party, 64) for party in PARTIES), (PARTIES[1], 32)])
def test_two_parties_noise_is_the_guaranteed_one_whoever_drops_its_own(monkeypatch, dropped, bits):
    inputs = _inputs(privacy=PRIVACY, ring_bits=bits)
    expected = sum(rows_around(N, D, seed=1))
    _without(monkeypatch, dropped)(inputs)
    noise = (_opened(inputs) - expected) / (PRIVACY.noise_multiplier * sensitivity(inputs[0].spec))
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert D * noise.var() > stats.chi2.ppf(1e-6, D - 1)


def test_three_honest_parties_noise_has_half_as_much_variance_again():
    noise = _opened(_inputs(privacy=PRIVACY)) - sum(rows_around(N, D, seed=1))
    scaled = noise / (PRIVACY.noise_multiplier * sensitivity(task(D, privacy=PRIVACY)))
    assert scaled.var() == pytest.approx(1.5, rel=0.12)
    assert stats.kstest(scaled / np.sqrt(1.5), "norm").pvalue > 1e-6


@pytest.mark.parametrize("way", EVERY_WAY)
def test_noise_of_the_stated_scale_is_in_every_rules_aggregate_and_nothing_else_is_opened(way):
    options = dict(EVERY_WAY[way])
    inputs = _inputs(privacy=PRIVACY, **options)
    noisy = run_rounds(inputs).outputs[0]
    plain = run_rounds(_inputs(**options)).outputs[0]
    assert openings(noisy) == openings(plain)
    assert (noisy.weight_total, noisy.coefficient_bits) == (plain.weight_total, plain.coefficient_bits)
    sigma = party_sigma(PRIVACY, inputs[0].spec, plain.weight_total, plain.coefficient_bits)
    rounding = 1 << max(plain.coefficient_bits - 20, 0)  # of MPC, far below the noise
    assert sigma > 1000 * rounding
    scaled = (noisy.words - plain.words) / (sigma * np.sqrt(3))
    assert stats.kstest(scaled, "norm").pvalue > 1e-6
    assert scaled.var() == pytest.approx(1, rel=0.1)


def test_a_coordinate_wise_rules_aggregate_has_noise_too():
    noisy = run_rounds(_inputs(d=400, rule="median", privacy=PRIVACY)).outputs[0]
    plain = run_rounds(_inputs(d=400, rule="median")).outputs[0]
    sigma = party_sigma(PRIVACY, task(400, "median", privacy=PRIVACY), plain.weight_total, 0)
    assert openings(noisy) == openings(plain)
    assert (noisy.words - plain.words).std() == pytest.approx(sigma * np.sqrt(3), rel=0.15)


@pytest.mark.parametrize("way", [*EVERY_WAY, "median"])
def test_a_second_attempt_opens_the_same_noisy_words(way):
    """Two noises on one aggregate could be averaged, and their difference is free of the updates."""
    inputs = _inputs(d=60, privacy=PRIVACY, **EVERY_WAY.get(way, {"rule": way}))
    first = _opened(inputs)
    assert np.array_equal(first, _opened([replace(given, attempt=1) for given in inputs]))


def test_another_round_set_decision_or_party_has_independent_noise():
    inputs = _inputs(privacy=PRIVACY)
    given = inputs[0]
    taken = [
        round_module._noise(changed, decided, 4, 0)
        for changed, decided in (
            (given, b"decision"),
            (given, b"another decision"),
            (replace(given, round=2), b"decision"),
            (replace(given, submissions=given.submissions[:-1]), b"decision"),
            (replace(given, spec=replace(given.spec, privacy=replace(PRIVACY, delta=1e-6))), b"decision"),
            (inputs[1], b"decision"),
        )
    ]
    correlations = np.corrcoef(taken)
    assert np.abs(correlations - np.eye(len(taken))).max() < 0.1
    assert np.array_equal(taken[0], round_module._noise(replace(given, attempt=7), b"decision", 4, 0))


@pytest.mark.parametrize("ring", [NARROW, WIDE], ids=["32", "64"])
def test_a_party_sees_only_uniform_words_of_anothers_noise(ring):
    """Tiny noise, so that anything of it would show in the top bits of what travels."""
    seen = []
    noise = ring.reduced(np.arange(D) % 3 - 1)
    zero = Shares(*(torch.from_numpy(np.zeros_like(noise)) for _ in range(2)))
    for _ in range(2):
        transports = watched_transports()
        ran = in_sessions(lambda session: with_dealt(session, zero, noise), (), transports)
        parts = [ran.results[p] for p in PARTIES]
        total = parts[0].first + parts[1].first + parts[2].first
        assert torch.equal(total, torch.from_numpy(3 * noise))
        for party in PARTIES:
            assert torch.equal(parts[party].second, parts[(party + 1) % 3].first)
            received = [p for _, label, p in transports[party].received if label.startswith("noise")]
            assert [len(p) for p in received] == [ring.word_bytes * D]
            seen.append(np.frombuffer(received[0], np.uint8))
    for words in seen:
        assert stats.chisquare(np.bincount(words, minlength=256)).pvalue > 1e-7
    assert len({w.tobytes() for w in seen}) == len(seen)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_party_that_opens_a_wrong_share_of_a_noisy_mean_is_still_caught(bits):
    inputs = _inputs(d=60, privacy=PRIVACY, ring_bits=bits)
    transports = watched_transports()

    def lie(_, frame):
        if frame.label.startswith("open/aggregate") and "digest" not in frame.label:
            return replace(frame, payload=bytes(len(frame.payload)))
        return frame

    transports[1].change = lie
    ran = run_rounds(inputs, transports)
    assert isinstance(ran.errors[2], PartyFault)


def test_no_noise_is_made_for_a_task_without_privacy():
    assert own_noise(task(5), bytes(32), b"", weight_total=2, fraction_bits=0) is None
