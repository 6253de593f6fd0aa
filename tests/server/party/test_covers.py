"""Cover submissions: they change nothing that is opened, nobody tells them from real ones, and they fill no cohort."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from round_parties import ONE, openings, round_inputs, run_rounds, task
from test_round_view import PUBLIC, _outline, _recorded, _suspicious

from triskele.errors import InvalidTask, RoundFailed
from triskele.task import TaskSpec
from triskele_server.linear.shares import read_rows
from triskele_server.rules import check_task

N, D = 6, 3
RULES = {"mean": {"rule": "mean"}, "norm-clip": {"rule": "norm-clip", "rule_options": {"bound": 0.4}}}
UPDATE = np.array([ONE // 2, -ONE // 3, 7, 1])  # its weight last


def _spec(rule: str = "mean", **options) -> TaskSpec:
    spec = task(D, covers=True, max_weight=1, **RULES[rule], **options)
    check_task(spec)
    return spec


def _words(covers: set[int]) -> np.ndarray:
    """Row i is a real update, the same for all, or a cover: what is opened tells the rows apart by nothing."""
    return np.array([np.zeros(D + 1, np.int64) if i in covers else UPDATE for i in range(N)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decisions", ["public", "hidden"])
def test_the_aggregate_is_that_of_the_real_ones_and_a_cover_is_accepted_like_them(rule, decisions):
    covered = run_rounds(round_inputs(_spec(rule, decisions=decisions), _words({1, 4}))).outputs[0]
    real = run_rounds(round_inputs(_spec(rule, decisions=decisions), _words({1, 4})[[0, 2, 3, 5]])).outputs[0]
    assert (covered.weight_total, real.weight_total) == (4, 4)
    rounding = 8 << max(covered.coefficient_bits - 20, 0) << 20 if rule == "norm-clip" else 0
    assert np.abs(covered.words - real.words).max() <= rounding
    assert covered.refused == {}
    assert covered.accepted == (tuple(range(N)) if decisions == "public" else None)
    assert openings(covered) == [("valid", (N,)), ("enough_accepted", ()), ("weight_total", ()), ("aggregate", (D,))]


@pytest.mark.parametrize("rule", RULES)
def test_a_partys_view_of_a_cover_is_that_of_a_real_submission(rule):
    """Who of the six is a cover changes, how many are does not: all that is opened stays the same."""
    spec = _spec(rule, decisions="hidden")
    one, other = _recorded(spec, _words({0, 3}), 7), _recorded(spec, _words({2, 5}), 7)
    assert _suspicious(one, other) == set()
    for party in range(3):
        frames = one[party] + other[party]
        assert all(_outline(f) == _outline(frames[0]) for f in frames)
        public = defaultdict(set)
        for _, label, payload in (f for view in frames for f in view if f[1].startswith(PUBLIC)):
            public[label].add(payload)
        assert all(len(payloads) == 1 for payloads in public.values())


def test_the_shares_that_a_party_holds_of_a_cover_are_as_random_as_any():
    held = []
    for covers in ({0}, {1}):
        spec = replace(_spec(), dimension=6000)
        words = np.zeros((2, 6001), np.int64)
        words[1 - min(covers)] = ONE // 100
        given = round_inputs(spec, words)
        seconds = [s.shares.second for party in given for s in party.submissions]
        held.append(read_rows(seconds, 0, 6000).view(np.uint8))
    for shares in held:
        for share in shares:
            counts = np.bincount(share, minlength=256)
            assert ((counts - len(share) / 256) ** 2 / (len(share) / 256)).sum() < 255 + 7 * np.sqrt(2 * 255)


@pytest.mark.parametrize("rule", RULES)
def test_covers_do_not_fill_the_minimum_cohort(rule):
    spec = _spec(rule, min_accepted=3)
    assert run_rounds(round_inputs(spec, _words({0, 1}))).outputs[0].weight_total == 4
    ran = run_rounds(round_inputs(spec, _words({0, 1, 2, 3})))
    assert {type(error) for error in ran.errors.values()} == {RoundFailed}
    assert {error.reason for error in ran.errors.values()} == {"too_few_accepted"}
    assert "aggregate" not in ran.opened
    assert "weight_total" not in ran.opened


def test_a_cover_must_be_valid():
    words = _words({0, 1})
    words[0, 0] = 1 << 40
    output = run_rounds(round_inputs(_spec(), words)).outputs[0]
    assert output.refused == {0: "failed_validity_check"}
    assert output.weight_total == 4


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "flame"},
        {"rule": "multi-krum", "rule_options": {"num_nodes_to_select": 3}},
        {"rule": "norm-clip"},  # to the median, which a cover would move
        {"rule": "fltrust", "root": "r"},
        {"rule": ("bucketing", "mean")},
        {"rule": "norm-clip", "rule_options": {"bound": 1.0}, "max_participants": 200},
    ],
)
def test_rules_under_which_a_row_of_weight_0_moves_others_refuse_covers_with_the_reason(options):
    with pytest.raises(InvalidTask, match=r"covers = true does not go with rule"):
        check_task(task(D, covers=True, max_weight=1, **options))


def test_covers_need_weights_and_are_part_of_the_task():
    with pytest.raises(InvalidTask, match="max_weight"):
        task(D, covers=True)
    with pytest.raises(InvalidTask, match="true or false"):
        task(D, covers=1, max_weight=1)
    spec = _spec()
    assert TaskSpec.from_canonical(spec.canonical()) == spec
    assert spec.digest != replace(spec, covers=False).digest
    assert b"covers" not in replace(spec, covers=False).canonical()
