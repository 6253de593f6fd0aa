"""What a task's noise guarantees and costs: the accountant, the claim, the scale in the ring."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from triskele.encoding import encode
from triskele.errors import ConfigurationError, Forbidden, InvalidTask
from triskele.keystream import KeyStream
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_server.config import PolicyTable, Schedule, load_task
from triskele_server.linear import discrete_gaussian
from triskele_server.party.policy import check_task as check_policy
from triskele_server.privacy import affordable_rounds, epsilon
from triskele_server.provision import write_task_file
from triskele_server.rules import Rule, check_task, registry
from triskele_server.rules.noise import no_claim, party_sigma, sensitivity
from triskele_server.rules.sigma import MAX_SIGMA, STEPS, party_share

PRIVACY = Privacy(noise_multiplier=1.1, delta=1e-5, budget_epsilon=8.0)
MEAN = TaskSpec("faces", 1000, 2.0, rule="mean", privacy=PRIVACY)


def test_epsilon_of_100_composed_rounds_is_dp_accountings_own_figure():
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for _ in range(100):
        accountant.compose(dp_accounting.GaussianDpEvent(1.1))
    assert epsilon(PRIVACY, 100) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-12)
    assert epsilon(PRIVACY, 0) == 0


def test_epsilon_is_above_that_of_the_privacy_loss_distribution_and_near_it():
    """A second accountant of the same library: Renyi-DP is an upper bound, not a loose one."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(5.0), 10)
    tight = accountant.get_epsilon(1e-5)
    assert tight < epsilon(Privacy(5.0, 1e-5, 8.0), 10) < 1.2 * tight


@pytest.mark.parametrize("budget", [0.5, 4.0, 8.0, 60.0])
def test_affordable_rounds_are_the_most_that_stay_within_the_budget(budget):
    privacy = replace(PRIVACY, budget_epsilon=budget)
    rounds = affordable_rounds(privacy)
    assert epsilon(privacy, rounds) <= budget < epsilon(privacy, rounds + 1)


@pytest.mark.parametrize("d", [1, 1000, 50_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("places", [20, 12])
def test_no_honest_clients_words_are_longer_than_the_sensitivity(d, dtype, places):
    """The worst case of rounding is all entries rounded away from zero; a random one is far from it."""
    spec = TaskSpec("faces", d, 3.0, rule="mean", privacy=PRIVACY, ring_bits=32, fraction_bits=places)
    update = np.random.default_rng(d).normal(size=d).astype(dtype) * 100
    for seed in range(5):
        words = encode(update, clip_norm=3.0, rounding=KeyStream(bytes([seed]) * 16), fraction_bits=places)
        assert np.linalg.norm(words.astype(np.float64)) <= sensitivity(spec)
    ceiled = np.ceil(np.abs(update * (2.0**places / np.linalg.norm(update.astype(np.float64)))))
    assert np.linalg.norm(ceiled) <= sensitivity(spec)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [(MEAN, 0), (replace(MEAN, rule="norm-clip", rule_options={"bound": 1.0}), 20)],
    ids=["mean", "norm-clip"],
)
def test_two_parties_noise_has_the_claimed_variance(spec, bits):
    assert no_claim(spec) == ""
    moved = sensitivity(spec) * ((1 << bits) + (2 if bits else 0))
    for total in (2, 100):  # how many take part does not matter to a sum
        sigma = party_sigma(PRIVACY, spec, total, bits)
        assert 2 * sigma**2 >= (1.1 * moved) ** 2 * (1 - 1e-12)
        assert math.sqrt(2) * (sigma - STEPS) < 1.1 * moved


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rule": "flame"}, "others"),
        ({"rule": "multi-krum"}, "others"),
        ({"rule": "norm-clip"}, "others"),
        ({"rule": "median"}, "others"),
        ({"rule": ("nnm", "mean")}, "others"),
        ({"rule": ("bucketing", "mean")}, "others"),
        ({"max_weight": 1}, "weights"),
        ({"rule": "norm-clip", "rule_options": {"bound": 1.0}, "max_participants": 200}, "buckets"),
        ({"privacy": None}, "no noise"),
    ],
)
def test_no_guarantee_is_claimed_where_one_participant_moves_more_than_its_own_term(changes, reason):
    assert reason in no_claim(replace(MEAN, **changes))


def test_a_rule_of_another_package_claims_nothing(monkeypatch):
    """Whatever it declares: its code is the party operators' to trust, its bound nobody's to check."""
    borrowed = Rule("borrowed", len, "rule", needs_gram=False, moves_alone=lambda _: True)
    monkeypatch.setitem(registry._RULES, "borrowed", borrowed)
    assert no_claim(replace(MEAN, rule="borrowed"))


def test_without_a_claim_the_mean_gets_the_noise_of_the_smallest_cohort():
    spec = replace(MEAN, rule="flame", min_accepted=4)
    sigma = party_sigma(PRIVACY, spec, 40, 0) * math.sqrt(2)
    assert sigma / 40 == pytest.approx(1.1 * sensitivity(spec) / 4, rel=1e-5)


def test_noise_that_could_wrap_is_refused_by_name():
    fits = Privacy(1.0, 1e-5, 8.0)
    check_task(replace(MEAN, rule="norm-clip", rule_options={"bound": 1.0}, privacy=fits))
    with pytest.raises(InvalidTask, match="noise_multiplier"):
        check_task(replace(MEAN, max_weight=(1 << 31) - 1, max_participants=256, max_rows=256, privacy=fits))
    check_task(replace(MEAN, rule="fltrust", root="r", privacy=Privacy(1024.0, 1e-5, 8.0)))  # a sum of fractions


def test_a_partys_sigma_is_the_least_that_the_sampler_takes():
    assert (MAX_SIGMA, STEPS) == (discrete_gaussian.MAX_SIGMA, discrete_gaussian.STEPS)
    for variance in (Fraction(1, 7), *map(Fraction, (1, 31, 32, 33, 127, 128, 129)), Fraction(10**30 + 1, 3)):
        sigma = party_share(variance)
        assert sigma % STEPS == 0
        assert 2 * (sigma - STEPS) ** 2 < variance <= 2 * sigma**2


def test_a_task_without_privacy_has_the_digest_it_had_before_there_was_any():
    assert "privacy" not in TaskSpec("faces", 10, 1.0).canonical().decode()


def test_the_table_is_part_of_the_task_and_of_its_file(tmp_path):
    decoded = TaskSpec.from_canonical(MEAN.canonical())
    assert decoded == MEAN
    assert decoded.privacy == PRIVACY
    assert MEAN.digest != replace(MEAN, privacy=replace(PRIVACY, delta=1e-6)).digest
    path = write_task_file(tmp_path, MEAN, Schedule(rounds=3, quorum=2))
    assert load_task(path).spec == MEAN


@pytest.mark.parametrize(
    "table",
    [
        {"noise_multiplier": 1.0, "delta": 1e-5},
        {"noise_multiplier": 1.0, "delta": 1e-5, "budget_epsilon": 8.0, "more": 1},
        {"noise_multiplier": 0.0, "delta": 1e-5, "budget_epsilon": 8.0},
        {"noise_multiplier": float("nan"), "delta": 1e-5, "budget_epsilon": 8.0},
        {"noise_multiplier": "1", "delta": 1e-5, "budget_epsilon": 8.0},
        {"noise_multiplier": True, "delta": 1e-5, "budget_epsilon": 8.0},
        {"noise_multiplier": 1.0, "delta": 0.0, "budget_epsilon": 8.0},
        {"noise_multiplier": 1.0, "delta": 0.5, "budget_epsilon": 8.0},
        {"noise_multiplier": 1.0, "delta": 1e-5, "budget_epsilon": float("inf")},
        [1.0],
    ],
)
def test_a_table_that_is_none_is_refused(table, tmp_path):
    with pytest.raises(InvalidTask, match="privacy"):
        TaskSpec("faces", 10, 1.0, rule="mean", privacy=table)
    if isinstance(table, dict) and "1" not in table.values():
        lines = "\n".join(f"{k} = {str(v).lower()}" for k, v in table.items())
        file = tmp_path / "t.toml"
        file.write_text(
            f'name = "t"\ndimension = 4\nclip_norm = 1.0\n[schedule]\nrounds = 1\nquorum = 2\n[privacy]\n{lines}\n'
        )
        with pytest.raises(ConfigurationError, match="privacy"):
            load_task(file)


@pytest.mark.parametrize(
    ("policy", "spec", "key"),
    [
        ({"min_noise_multiplier": 1.2}, MEAN, "min_noise_multiplier"),
        ({"min_noise_multiplier": 0.1}, replace(MEAN, privacy=None), "min_noise_multiplier"),
        ({"max_epsilon": 7.9}, MEAN, "max_epsilon"),
        ({"max_epsilon": 100.0}, replace(MEAN, privacy=None), "no differential-privacy guarantee"),
        ({"max_epsilon": 100.0}, replace(MEAN, rule="flame"), "no differential-privacy guarantee"),
        ({"max_epsilon": 100.0, "max_delta": 1e-6}, MEAN, "max_delta"),
    ],
)
def test_a_partys_privacy_floor_refuses_a_task_below_it_with_the_reason(policy, spec, key):
    check_policy(spec, PolicyTable())
    with pytest.raises(Forbidden, match=key):
        check_policy(spec, PolicyTable(**policy))


def test_a_partys_privacy_floor_lets_a_task_above_it_pass():
    check_policy(MEAN, PolicyTable(min_noise_multiplier=1.1, max_epsilon=8.0, max_delta=1e-5))
