"""The 32-bit ring: what a task gets of places, what falls back to 64 bits and why, and how near the aggregate is."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triskele.errors import ConfigurationError, InvalidTask, RoundFailed
from triskele.ids import ParticipantId, TaskName
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_server.config import load_task
from triskele_server.linear.sketch import CHECK_WORDS
from triskele_server.party import filter as party_filter
from triskele_server.rules import check_task, reason_for_wide, with_ring
from triskele_server.rules.noise import party_sigma
from triskele_server.rules.precision import IDENTITY_WORDS, coefficient_places, largest_entry, largest_sum
from triskele_server.simulate import simulate

sys.path.append(str(Path(__file__).parents[2]))  # bench/ is a room of the repository, not of the package

from bench.plaintext import aggregate

RULES = {
    "mean": {},
    "norm-clip": {},
    "flame": {},
    "fltrust": {},
    "multi-krum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    "dnc": {"num_malicious_nodes": 1},
    "foolsgold": {},
    "geometric-median": {"nu": 0.05},
    "nnm norm-clip": {"num_malicious_nodes": 1},
    "nnm multi-krum": {"num_malicious_nodes": 1},
    "bucketing norm-clip": {"size": 1},
}
NOISE = Privacy(1.0, 1e-6, 5.0)
BOUND = 2.0**-9  # of the clip norm: how far the aggregate of a dozen rows may be off in the 32-bit ring


def _task(rule: str = "mean", dimension: int = 1000, **options) -> TaskSpec:
    root = ParticipantId("root") if rule.endswith("fltrust") else None
    return TaskSpec(TaskName("test"), dimension, 1.0, rule=tuple(rule.split()), root=root, **options)


def _rows(n: int, d: int, poisoned: int = 1) -> np.ndarray:
    """Updates of norms up to the clip norm that agree somewhat, some of them turned round."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(n, d)) + 0.7 * rng.normal(size=d)
    rows *= np.linspace(0.5, 0.95, n)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:poisoned] *= -1
    return rows


def _both(rows: np.ndarray, rule: str, **options):
    root = len(rows) - 1 if rule == "fltrust" else None
    given_options = {"rule": rule.split(), "rule_options": RULES[rule], "clip_norm": 1.0, "root": root, **options}
    expected = aggregate(rows, rule.split(), RULES[rule], clip_norm=1.0, root=root, weights=options.get("weights"))
    return simulate(rows, ring=32, **given_options), expected


# ---- the aggregate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decisions", ["public", "hidden"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_its_aggregate_to_half_a_percent_of_the_clip_norm(rule, decisions):
    outcome, expected = _both(_rows(12, 60), rule, decisions=decisions)
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < BOUND
    if decisions == "public":
        assert outcome.accepted.tolist() == expected.accepted.tolist()


@pytest.mark.parametrize("rule", ["mean", "norm-clip", "flame", "fltrust", "multi-krum", "geometric-median"])
def test_example_weights_are_parts_of_their_sum_which_is_not_opened(rule):
    weights = [300, 100, 400, 100, 500, 900, 200, 600, 500, 300, 500, 800]
    outcome, expected = _both(_rows(12, 60), rule, weights=weights)
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < BOUND
    assert "weight_total" not in [name for name, _ in outcome.openings]


def test_a_mean_of_unscaled_rows_keeps_all_twenty_places():
    rows = np.round(_rows(12, 60) * 2**20) / 2**20
    outcome, expected = _both(rows, "mean")
    assert np.abs(outcome.aggregate - expected.aggregate).max() < 1e-14


def test_a_sketched_gram_matrix_leads_to_the_same_scales():
    outcome, expected = _both(_rows(10, 9_000), "norm-clip")
    # Which sketch it is, chance decides: of a dozen the worst was 0.8 BOUND off, one in hundreds more than BOUND.
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 4 * BOUND


@pytest.mark.parametrize("rule", ["mean", "norm-clip", "geometric-median"])
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_that_are_all_as_long_as_can_be_in_one_entry_do_not_wrap(rule, sign):
    rows = np.zeros((64, 40))
    rows[:, 3] = 1.1 * sign
    spec = with_ring(_task(rule, 40, max_participants=64), 32)
    longest = np.zeros(40, np.int64)
    longest[3] = sign * int(1.1 * 2**spec.fraction_bits)
    raw = dict.fromkeys(range(64), longest)
    outcome = simulate(rows, rule=rule, clip_norm=1.0, ring=32, raw_rows=raw)
    assert not outcome.invalid
    assert abs(outcome.aggregate[3] - 1.1 * sign) < 2.0**-7
    assert np.abs(np.delete(outcome.aggregate, 3)).max() == 0


@pytest.mark.parametrize("dimension", [100, 8_500])
def test_malicious_words_are_left_out(dimension):
    rows = _rows(8, dimension, poisoned=0)
    attacks = {1: np.full(dimension, 1 << 31), 4: np.full(dimension, (1 << 32) // dimension)}
    attacks[6] = np.eye(1, dimension, 5, dtype=np.int64)[0] << 30
    outcome = simulate(rows, clip_norm=1.0, ring=32, raw_rows=attacks)
    assert set(outcome.invalid) == set(attacks)
    assert np.abs(outcome.aggregate - np.delete(rows, list(attacks), 0).mean(0)).max() < 2.0**-19


def test_a_row_whose_weight_is_rounded_away_does_not_count_for_the_minimum_cohort():
    """63 rows carry the aggregate; 937 others have just enough weight together that the exact weights count as 64."""
    rows = np.random.default_rng(1).normal(size=(1000, 8192)) / 100
    chosen = {"weights": [15_000] * 63 + [12] * 937, "min_accepted": 64, "clip_norm": 1.0}
    with pytest.raises(RoundFailed, match="min_accepted = 64"):
        simulate(rows, ring=32, **chosen)
    simulate(rows, ring=32, **{**chosen, "min_accepted": 63})


@pytest.mark.parametrize("dimension", [60, 9_000])
def test_a_root_that_is_longer_than_there_is_room_for_ends_the_round(dimension, monkeypatch):
    rows = _rows(6, dimension)
    chosen = {"rule": "fltrust", "root": 5, "clip_norm": 1.0}
    simulate(rows, ring=32, **chosen)
    monkeypatch.setattr(party_filter, "MAX_ROOT_LENGTH", 0.9)
    with pytest.raises(RoundFailed, match="out of range"):
        simulate(rows, ring=32, **chosen)
    simulate(rows, ring=64, **chosen)


@pytest.mark.parametrize("dimension", [60, 9_000])
def test_short_rows_scaled_to_the_longest_root_do_not_wrap(dimension):
    """All in one entry, so that nothing but the room counts; a scale of 2^12 for each."""
    spec = with_ring(_task("fltrust", dimension, max_participants=24), 32)
    rows = np.zeros((24, dimension))
    raw = {i: np.zeros(dimension, np.int64) for i in range(24)}
    for i in range(23):
        raw[i][7] = 1 << spec.fraction_bits - 12
    raw[23][7] = int(1.1 * 2**spec.fraction_bits)
    outcome = simulate(rows, rule="fltrust", root=23, clip_norm=1.0, ring=32, raw_rows=raw)
    assert not outcome.invalid
    assert abs(outcome.aggregate[7] - 1.1) < 2.0**-4
    assert np.abs(np.delete(outcome.aggregate, 7)).max() == 0


# ---- the choice ---------------------------------------------------------------------------------------------------


def test_a_task_file_is_in_the_narrow_ring_where_that_fits(tmp_path):
    path = tmp_path / "task.toml"
    text = 'name = "t"\ndimension = 1000\nclip_norm = 1.0\nrule = "{}"\n{}\n[schedule]\nrounds = 1\nquorum = 2\n'
    for rule, asked, bits in (
        ("mean", "", 32),
        ("flame", 'ring = "auto"', 32),
        ("flame", "ring = 32", 32),
        ("flame", "ring = 64", 64),
        ("median", "", 64),
    ):
        path.write_text(text.format(rule, asked))
        assert load_task(path).spec.ring_bits == bits
    for wrong in ("ring = 16", "ring = true", 'ring = "32"', "ring_bits = 32", "fraction_bits = 20"):
        path.write_text(text.format("mean", wrong))
        with pytest.raises(ConfigurationError, match="ring"):
            load_task(path)


@pytest.mark.parametrize("dimension", [1000, IDENTITY_WORDS + 1, 1_000_000])
@pytest.mark.parametrize("participants", [2, 100, 400])
def test_noise_of_a_mean_fits_beside_the_largest_aggregate_or_is_refused(dimension, participants):
    """At the largest multiplier that is taken 16 standard deviations, 13 of all three parties' noise, cannot wrap."""
    task = _task("mean", dimension, max_participants=participants, privacy=replace(NOISE, noise_multiplier=4.0))
    fitting = with_ring(task, 32)
    while True:
        check_task(fitting)
        sigma = party_sigma(fitting.privacy, fitting, participants, 0)
        assert math.sqrt(2) * sigma >= fitting.privacy.noise_multiplier * (
            2**fitting.fraction_bits + math.sqrt(dimension)
        )
        largest = participants * largest_entry(dimension, fitting.fraction_bits)
        assert largest + 16 * math.sqrt(2) * sigma < 2**31
        louder = replace(fitting.privacy, noise_multiplier=fitting.privacy.noise_multiplier * 1.02)
        try:
            fitting = with_ring(replace(task, privacy=louder), 32)
        except InvalidTask:
            break
    assert largest + 16.5 * math.sqrt(2) * sigma > 2**31 * 0.98  # nothing is given away
    with pytest.raises(InvalidTask, match="32-bit ring"):  # a party says so too, whatever the coordinator chose
        check_task(replace(fitting, privacy=louder))


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (_task("median", 100), "on the updates themselves"),
        (_task("trimmed-mean", 100), "on the updates themselves"),
        (_task("centered-clip", 100), "the previous aggregate"),
        (_task("centered-clip", 100, release="public"), "the previous aggregate"),
        (_task("nnm fltrust", 8193), "chosen by the sketch"),
        (_task("norm-clip", 8193, gram="exact"), "gram = 'exact'"),
        (_task("mean", max_weight=1 << 30), "max_weight"),
        (_task("norm-clip", privacy=NOISE, rule_options={"bound": 1.0}), "`privacy` goes beside whole coefficients"),
        (_task("mean", privacy=NOISE, max_weight=9), "`privacy` goes beside whole coefficients"),
        (
            _task("nnm multi-krum", privacy=NOISE, rule_options={"num_nodes_to_select": 9}),
            "`privacy` goes beside whole",
        ),
        (_task("mean", privacy=replace(NOISE, noise_multiplier=200.0)), "noise of noise_multiplier 200 would not fit"),
        (_task("norm-clip", 1 << 27, max_participants=1000), "fraction bits"),
        (_task("nnm multi-krum", 1 << 26, rule_options={"num_nodes_to_select": 9}), "coefficients of up to"),
    ],
)
def test_what_does_not_fit_falls_back_to_64_bits_with_the_reason(task, reason):
    assert with_ring(task, "auto") == task
    assert reason in reason_for_wide(task)
    with pytest.raises(InvalidTask, match="32-bit ring"):
        with_ring(task, 32)


def test_a_task_that_asks_for_64_bits_says_so():
    assert reason_for_wide(_task("mean")) == "the task asks for the 64-bit ring"
    assert reason_for_wide(with_ring(_task("mean"), "auto")) is None


@pytest.mark.parametrize("rule", RULES)
def test_common_tasks_fit_the_narrow_ring(rule):
    options = {"rule_options": {"num_nodes_to_select": 50}} if rule.endswith("multi-krum") else {}
    for dimension in (1, 1_000, 1_000_000):
        for participants in (2, 10, 100):
            enough = {"num_nodes_to_select": 2} if options else {}
            task = with_ring(_task(rule, dimension, max_participants=participants, rule_options=enough), "auto")
            assert task.narrow, reason_for_wide(task)


@given(
    st.sampled_from([*RULES, "krum"]),
    st.integers(1, 1 << 27),
    st.integers(2, 1000),
    st.sampled_from([0, 1, 1000, (1 << 30) - 1]),
    st.sampled_from(["public", "hidden"]),
)
@settings(max_examples=150, deadline=None)
def test_a_narrow_task_cannot_wrap_whatever_its_numbers(rule, dimension, participants, max_weight, decisions):
    task = _task(rule, dimension, max_participants=participants, max_weight=max_weight, decisions=decisions)
    task = with_ring(task, "auto")
    if not task.narrow:
        return
    # What the check proves of an entry: that its row's norm is 1.1, or of a sketched row twice what a bucket may hold.
    entry = int((1.1 if dimension <= CHECK_WORDS else 2 * math.sqrt(4.84)) * 2**task.fraction_bits) + 1
    assert largest_entry(dimension, task.fraction_bits) >= entry
    assert largest_sum(dimension, task.fraction_bits) * entry < 1 << 31
    assert dimension * 4**task.fraction_bits <= 1 << 64
    assert dimension <= 4 ** (task.fraction_bits - 4)
    # The coefficients of all rows, rounded up each, of the integers that this rule gives at least.
    scaled = rule not in {"mean", "krum", "multi-krum", "nnm multi-krum", "dnc"} or max_weight > 0
    units = 1 if max_weight or rule in {"fltrust", "geometric-median", "foolsgold"} else participants
    units *= 2 if rule == "fltrust" else 1  # rows as long as the root's, at most twice the clip norm
    places = coefficient_places(task, units, participants) if scaled else 0
    assert places >= 0
    assert ((units << places) + (participants if scaled else 0)) * entry < 1 << 31


def test_norms_are_measured_up_to_the_words_that_the_choice_counts_on():
    assert IDENTITY_WORDS == CHECK_WORDS


def test_a_party_refuses_places_that_could_wrap():
    task = with_ring(_task("norm-clip", max_participants=128), 32)
    check_task(task)
    with pytest.raises(InvalidTask, match="the 32-bit ring is too narrow"):
        check_task(replace(_task("nnm multi-krum", rule_options={"num_nodes_to_select": 9}), ring_bits=32))
    with pytest.raises(InvalidTask, match="1000 words need 9 fraction bits, not 8"):
        check_task(replace(task, fraction_bits=8))
    with pytest.raises(InvalidTask, match="fraction_bits"):
        replace(task, fraction_bits=21)
    with pytest.raises(InvalidTask, match="fraction_bits"):
        replace(task, ring_bits=64)


def test_the_ring_is_part_of_the_digest():
    wide, narrow = _task("mean"), with_ring(_task("mean"), 32)
    assert wide.digest != narrow.digest
    assert TaskSpec.from_canonical(narrow.canonical()) == narrow
