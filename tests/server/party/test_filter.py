"""What a round opens, exactly; and that a rule which opens, raises or weighs out of line ends the round."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from round_parties import openings, round_inputs, rows_around, run_rounds, task

from triskele.errors import InvalidTask, RoundFailed
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.party.filter import declared_openings
from triskele_server.rules import registry
from triskele_server.rules.registry import SCALE_BITS, Scaled, rule

N, D = 6, 12
KRUM = {"num_malicious_nodes": 1, "num_nodes_to_select": 4}
OPENED = {
    ("mean", "public", False): ["valid", "aggregate"],
    ("mean", "hidden", False): ["valid", "aggregate"],
    ("mean", "public", True): ["valid", "enough_accepted", "weight_total", "aggregate"],
    ("mean", "hidden", True): ["valid", "enough_accepted", "weight_total", "aggregate"],
    ("norm-clip", "public", False): ["valid", "enough_accepted", "aggregate"],
    ("norm-clip", "hidden", False): ["valid", "enough_accepted", "aggregate"],
    ("norm-clip", "public", True): ["valid", "enough_accepted", "weight_total", "aggregate"],
    ("norm-clip", "hidden", True): ["valid", "enough_accepted", "weight_total", "aggregate"],
    ("multi-krum", "public", False): ["valid", "enough_accepted", "accepted", "aggregate"],
    ("multi-krum", "hidden", False): ["valid", "enough_accepted", "aggregate"],
    ("multi-krum", "public", True): ["valid", "enough_accepted", "accepted", "weight_total", "aggregate"],
    ("multi-krum", "hidden", True): ["valid", "enough_accepted", "weight_total", "aggregate"],
}
SHAPES = {"valid": (N,), "enough_accepted": (), "accepted": (N,), "weight_total": (), "aggregate": (D,)}


def _task(name: str, decisions: str = "public", weighted: bool = False, **options):
    options = {"min_accepted": 3, "max_participants": 16, **options}
    return task(D, name, decisions=decisions, max_weight=40 if weighted else 0, **options)


def _inputs(spec, n: int = N, weights=None):
    rows = rows_around(n, D, seed=1, outliers=[2])
    if spec.weighted:
        rows = np.concatenate([rows, np.array(weights if weights is not None else [30] * n)[:, None]], 1)
    return round_inputs(spec, rows)


@pytest.mark.parametrize(("name", "decisions", "weighted"), OPENED)
def test_the_ledger_of_every_rule_exactly(name, decisions, weighted):
    spec = _task(name, decisions, weighted, rule_options=KRUM if name == "multi-krum" else {})
    expected = OPENED[name, decisions, weighted]
    assert declared_openings(spec) == expected
    ran = run_rounds(_inputs(spec))
    for output in ran.outputs:
        assert openings(output) == [(name, SHAPES[name]) for name in expected]
    assert ran.opened == set(expected)


def test_the_ledger_lists_every_rule_there_is():
    assert {name for name, _, _ in OPENED} == set(registry._RULES)


def test_an_invalid_row_leaves_before_the_decisions_are_opened():
    spec = _task("multi-krum", rule_options=KRUM)
    rows = rows_around(N, D, seed=1)
    rows[4, 0] = -(1 << 63)
    ran = run_rounds(round_inputs(spec, rows))
    assert openings(ran.outputs[0])[:3] == [("valid", (N,)), ("enough_accepted", ()), ("accepted", (N - 1,))]


# ---- rules that misbehave -----------------------------------------------------------------------------------------


@contextmanager
def _registered(function, **declared):
    registry_before = dict(registry._RULES)
    rule("rogue", **declared)(function)
    try:
        yield
    finally:
        registry._RULES.clear()
        registry._RULES.update(registry_before)


def _run_rogue(function, *, weights=None, decisions="public", min_accepted=3, **declared):
    with _registered(function, **declared):
        spec = _task("rogue", decisions, weights is not None, min_accepted=min_accepted)
        return run_rounds(_inputs(spec, weights=weights))


def _ended_the_round(ran, reason: str = "rule_failed", opened: frozenset[str] = frozenset({"valid"})) -> None:
    assert set(ran.errors) == {0, 1, 2}
    for error in ran.errors.values():
        assert isinstance(error, RoundFailed), repr(error)
        assert error.reason == reason
    assert ran.opened <= opened


def _constant(gram: ReplicatedTensor, words) -> ReplicatedTensor:
    """Secret weights that are these public words."""
    return gram.diagonal().times_power_of_two(gram.fraction_bits) * 0 + torch.tensor(words)


def _select_all(rows, _options) -> int:
    return rows


def test_the_honest_pattern_of_these_tests_passes():
    """So that the refusals below are due to what each rule does wrong."""
    ran = _run_rogue(lambda gram: _constant(gram, [1] * N), selected=_select_all)
    assert openings(ran.outputs[0])[2] == ("accepted", (N,))


def test_a_rule_that_opens_an_undeclared_name_ends_the_round():
    def peeking(gram):
        gram.open("gram")
        return _constant(gram, [1] * N)

    ran = _run_rogue(peeking, selected=_select_all)
    _ended_the_round(ran)
    assert "refused" in str(ran.errors[0])


def test_a_rule_that_opens_by_cryptens_names_ends_the_round():
    for name in ("get_plain_text", "reveal"):
        ran = _run_rogue(lambda gram, name=name: getattr(gram, name)(), selected=_select_all)
        _ended_the_round(ran)


@pytest.mark.parametrize("name", ["enough_accepted", "accepted", "aggregate"])
def test_a_rule_cannot_open_the_gram_matrix_under_a_declared_name(name):
    def posing(gram):
        gram.open(name)
        return _constant(gram, [1] * N)

    _ended_the_round(_run_rogue(posing, selected=_select_all))


def test_whatever_a_rule_raises_ends_the_round_without_its_text():
    def broken(gram):
        raise ZeroDivisionError("with a secret in its text")

    ran = _run_rogue(broken, selected=_select_all)
    _ended_the_round(ran)
    assert "secret" not in str(ran.errors[0])
    assert "ZeroDivisionError" in str(ran.errors[0])


WRONG_RESULTS = {
    "a list": lambda gram: [1] * N,
    "too few": lambda gram: _constant(gram, [1] * N)[:-1],
    "a matrix": lambda gram: gram,
    "fraction bits": lambda gram: _constant(gram, [1] * N).rescale(20),
    "a public matrix": lambda gram: np.ones((N, N), np.int64),
    "public floats": lambda gram: np.ones(N),
    "a torch tensor": lambda gram: torch.ones(N, dtype=torch.int64),
    "scales of other places": lambda gram: Scaled(np.ones(N, np.int64), _constant(gram, [1] * N)),
    "scales of other shape": lambda gram: Scaled(
        np.ones(N, np.int64), _constant(gram, [1] * N).rescale(SCALE_BITS).unsqueeze(0)
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RESULTS)
def test_a_result_of_the_wrong_kind_ends_the_round(wrong):
    declared = {"coefficient_bits": SCALE_BITS} if wrong.startswith("scales") else {"selected": _select_all}
    _ended_the_round(_run_rogue(WRONG_RESULTS[wrong], **declared))


@pytest.mark.parametrize("result", [None, Scaled(np.ones(N, np.int64), np.full(N, 1 << SCALE_BITS, np.int64))])
def test_no_weights_and_public_scales_end_the_round_as_the_rules_fault(result):
    _ended_the_round(_run_rogue(lambda gram: result, coefficient_bits=SCALE_BITS))


def test_secret_weights_of_a_rule_that_declared_none_end_the_round_as_the_rules_fault():
    _ended_the_round(_run_rogue(lambda gram: _constant(gram, [1] * N)))


BAD_WEIGHTS = {
    "negative": [-1, 1, 1, 1, 1, 1],
    "all negative": [-1] * N,
    "above one": [2, 1, 1, 1, 1, 1],
    "2^63": [-(1 << 63), 1, 1, 1, 1, 1],
    "2^62": [1 << 62, 1, 1, 1, 1, 1],
    "cancelling": [1 << 62, -(1 << 62), 1, 1, 1, 1],
    "one row with all weight": [0, 0, 0, 0, 0, 1],
    "two rows of a minimum of three": [1, 0, 0, 0, 0, 1],
    "nothing": [0] * N,
}
COHORT = frozenset({"valid", "enough_accepted"})


@pytest.mark.parametrize("decisions", ["public", "hidden"])
@pytest.mark.parametrize("bad", BAD_WEIGHTS)
def test_secret_weights_out_of_line_end_the_round(bad, decisions):
    ran = _run_rogue(lambda gram: _constant(gram, BAD_WEIGHTS[bad]), selected=_select_all, decisions=decisions)
    _ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize(
    "scale",
    [
        [1 << SCALE_BITS] + [1 << 3] * (N - 1),  # nearly all the weight
        [1 << SCALE_BITS] * 2 + [1] * (N - 2),
        [2 << SCALE_BITS] + [1 << SCALE_BITS] * (N - 1),
        [-1] + [1 << SCALE_BITS] * (N - 1),
        [1 << 62] + [1 << SCALE_BITS] * (N - 1),
    ],
)
def test_scales_out_of_line_or_on_one_row_end_the_round(scale):
    def scaling(gram):
        return Scaled(np.ones(N, np.int64), _constant(gram, scale).times_power_of_two(-SCALE_BITS))

    _ended_the_round(_run_rogue(scaling, coefficient_bits=SCALE_BITS), "too_few_accepted", COHORT)


def test_a_small_scale_on_enough_rows_passes():
    """Three rows of six at full scale are an effective cohort of three."""
    scale = [1 << SCALE_BITS] * 3 + [0] * 3

    def scaling(gram):
        return Scaled(np.ones(N, np.int64), _constant(gram, scale).times_power_of_two(-SCALE_BITS))

    rows = rows_around(N, D, seed=1, outliers=[2])
    output = _run_rogue(scaling, coefficient_bits=SCALE_BITS).outputs[0]
    assert output.words.tolist() == (rows[:3].sum(0) << SCALE_BITS).tolist()
    assert (output.weight_total, output.coefficient_bits) == (N, SCALE_BITS)


@pytest.mark.parametrize(
    "weights", [[1 << 40, 1, 1, 1, 1, 1], [-1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1], [1 << 20, 1 << 20, 1, 1, 1, 1]]
)
def test_public_weights_out_of_line_end_the_round(weights):
    _ended_the_round(_run_rogue(lambda rows: np.array(weights), needs_gram=False))


def test_public_weights_on_too_few_rows_end_the_round():
    ran = _run_rogue(lambda rows: np.array([1, 1, 0, 0, 0, 0]), needs_gram=False)
    _ended_the_round(ran, "too_few_accepted")


def test_a_selecting_rule_must_give_secret_weights():
    _ended_the_round(_run_rogue(lambda gram: np.ones(N, np.int64), selected=_select_all))


def test_accepted_opens_bits_only():
    """With an example weight of 0 or 1 the product stays in range while the rule's weight is any number."""
    ran = _run_rogue(
        lambda gram: _constant(gram, [29, 1, 1, 1, 1, 1]), selected=_select_all, weights=[1, 30, 30, 30, 30, 30]
    )
    _ended_the_round(ran, "too_few_accepted", COHORT)


# ---- the minimum cohort -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invalid", [4, 5, 6])
def test_too_few_valid_rows_end_the_round_before_the_rule_runs(invalid):
    rows = rows_around(N, D, seed=1)
    rows[:invalid, 0] = -(1 << 63)
    ran = run_rounds(round_inputs(_task("multi-krum", rule_options=KRUM), rows))
    _ended_the_round(ran, "too_few_submissions")


def test_too_few_submissions_end_the_round_before_anything_is_opened():
    spec = _task("mean")
    ran = run_rounds(round_inputs(spec, rows_around(2, D, seed=1)))
    _ended_the_round(ran, "too_few_submissions", frozenset())
    assert not ran.opened


def test_a_selection_below_the_minimum_ends_the_round():
    ran = run_rounds(_inputs(_task("multi-krum", rule_options={"num_nodes_to_select": 2})))
    _ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize("name", ["mean", "norm-clip", "multi-krum"])
def test_example_weights_on_one_row_end_the_round(name):
    spec = _task(name, weighted=True, rule_options=KRUM if name == "multi-krum" else {})
    ran = run_rounds(_inputs(spec, weights=[40, 0, 0, 0, 0, 0]))
    _ended_the_round(ran, "too_few_accepted", COHORT)
    ran = run_rounds(_inputs(spec, weights=[40, 1, 1, 1, 1, 1]))
    _ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize(("max_weight", "heavy"), [(1 << 24, 31), ((1 << 32) - 1, 4095)])
def test_example_weights_on_one_row_end_the_round_however_large_max_weight_is(max_weight, heavy):
    """In those units every weight here is nought, and 0 >= 0 passes."""
    spec = task(D, "mean", max_weight=max_weight, max_participants=16, min_accepted=3)
    ran = run_rounds(_inputs(spec, weights=[heavy] + [1] * (N - 1)))
    _ended_the_round(ran, "too_few_accepted", COHORT)


# ---- what a task may ask of a rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("median", {}, "there is no rule 'median'"),
        ("mean", {"num_malicious_nodes": 1}, "has no option"),
        ("multi-krum", {"num_nodes": 1}, "has no option 'num_nodes'"),
        ("multi-krum", {"num_nodes_to_select": 0}, "not an integer from 1"),
        ("multi-krum", {"num_malicious_nodes": -1}, "not an integer from 0"),
        ("multi-krum", {}, "selects 1 updates"),
        ("multi-krum", {"num_malicious_nodes": 1.0}, "not an integer"),
        ("multi-krum", {"num_malicious_nodes": True}, "not an integer"),
        ("multi-krum", {"num_malicious_nodes": 1 << 31}, "not an integer"),
    ],
)
def test_a_task_with_unknown_rule_or_options_is_refused(name, options, text):
    with pytest.raises(InvalidTask, match=text):
        registry.check_task(_task(name, rule_options=options))


def test_a_task_whose_scaled_aggregate_could_wrap_is_refused():
    fits = task(D, "mean", max_weight=(1 << 32) - 1, max_participants=512)
    registry.check_task(fits)
    with pytest.raises(InvalidTask, match="could wrap"):
        registry.check_task(task(D, "norm-clip", max_weight=(1 << 32) - 1, max_participants=512))


def test_a_rule_is_registered_once_and_declares_its_options():
    with pytest.raises(InvalidTask, match="registered twice"):
        rule("mean")(lambda rows: rows)
    with pytest.raises(InvalidTask, match="must name"):
        rule("rogue")(lambda gram, *, depth=1: gram)
    assert "rogue" not in registry._RULES
