"""What a round opens, exactly; and that a rule which opens, raises or weighs out of line ends the round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from round_parties import (
    COHORT,
    earlier,
    ended_the_round,
    openings,
    own_rules,
    participant,
    round_inputs,
    rows_around,
    run_rounds,
    secret_words,
    task,
)

from triskele.errors import InvalidTask
from triskele_server.party.filter import declared_openings
from triskele_server.party.round import INVALID
from triskele_server.rules import check_task, registry
from triskele_server.rules.registry import SCALE_BITS, WEIGHT_BITS, Mixing, Scaled, rule

N, D = 6, 12
ONE_MALICIOUS = {"num_malicious_nodes": 1}
KRUM = {"num_malicious_nodes": 1, "num_nodes_to_select": 4}
E, A, W = "enough_accepted", "accepted", "weight_total"
SHAPES = {"enough_accepted": (), "weight_total": (), "aggregate": (D,)}

# Between the validity bits and the aggregate: with public and with hidden decisions, then the same with example weights
# (None: refused).
BETWEEN = {
    "mean": ([], [], [E, W], [E, W]),
    "norm-clip": ([E], [E], [E, W], [E, W]),
    "multi-krum": ([E, A], [E], [E, A, W], [E, W]),
    "krum": ([E, A], [E], [E, A, W], [E, W]),
    "dnc": ([E, A], [E], [E, A, W], [E, W]),
    "flame": ([E, A], [E], [E, A, W], [E, W]),
    "fltrust": ([E, A], [E], [E, A], [E]),
    "foolsgold": ([E, A], [E], [E, A], [E]),
    "geometric-median": ([E], [E], [E], [E]),
    "centered-clip": ([E], [E], None, None),
    "median": ([], [], None, None),
    "trimmed-mean": ([], [], None, None),
    "nnm mean": ([E], [E], [E, W], [E, W]),
    "nnm norm-clip": ([E], [E], None, None),
    "nnm multi-krum": ([E, A], [E], [E, A, W], [E, W]),
    "nnm krum": ([E, A], [E], [E, A, W], [E, W]),
    "nnm flame": ([E, A], [E], None, None),
    "nnm fltrust": ([E, A], [E], None, None),
    "nnm geometric-median": ([E], [E], [E], [E]),
    "nnm centered-clip": ([E], [E], None, None),
    "nnm trimmed-mean": ([], [], None, None),
    "bucketing mean": ([], [], [E, W], [E, W]),
    "bucketing multi-krum": ([E, A], [E], [E, A, W], [E, W]),
    "bucketing flame": ([E, A], [E], [E, A, W], [E, W]),
    "bucketing fltrust": ([E, A], [E], [E, A], [E]),
    "bucketing median": ([], [], None, None),
    "bucketing nnm geometric-median": ([E], [E], [E], [E]),
    "bucketing nnm multi-krum": ([E, A], [E], [E, A, W], [E, W]),
}
CASES = [(names, decisions, weighted) for names in BETWEEN for decisions in (0, 1) for weighted in (0, 1)]
# The accepted buckets are opened, not their members, where buckets are all that a selection sees.
BUCKETS_ACCEPTED = {"bucketing multi-krum", "bucketing flame"}


def _task(names: str, *, hidden: bool = False, weighted: bool = False, **options):
    given = {"min_accepted": 1 if names == "krum" else 3, "max_participants": 16, **options}
    if "fltrust" in names:
        given["root"] = participant(N)
    return task(
        D, tuple(names.split()), decisions="hidden" if hidden else "public", max_weight=40 if weighted else 0, **given
    )


def _options(names: str):
    if names.endswith("multi-krum"):
        return KRUM
    return ONE_MALICIOUS if {"nnm", "krum", "dnc", "trimmed-mean"} & set(names.split()) else {}


def _rows(spec, n: int = N) -> np.ndarray:
    """Rows around a common direction, one the other way; the root's, if there is one, is the last."""
    rows = rows_around(n, D, seed=1, outliers=[2])
    if spec.stages[-1] == "foolsgold":
        rows = np.eye(n, D, dtype=np.int64) << 19  # nobody looks like anybody's Sybil
    return rows if spec.root is None else np.concatenate([rows, rows_around(1, D, seed=1)])


def _inputs(spec, n: int = N, weights=None):
    rows = _rows(spec, n)
    if spec.weighted:
        column = np.array(weights if weights is not None else [30] * len(rows))
        rows = np.concatenate([rows, column[:, None]], 1)
    return round_inputs(spec, rows)


@pytest.mark.parametrize(("names", "hidden", "weighted"), CASES)
def test_the_ledger_of_every_rule_exactly(names, hidden, weighted):
    spec = _task(names, hidden=hidden, weighted=weighted, rule_options=_options(names))
    between = BETWEEN[names][hidden + 2 * weighted]
    if between is None:
        with pytest.raises(InvalidTask, match=r"takes no example weights: set max_weight = 0"):
            check_task(spec)
        return
    check_task(spec)
    expected = ["valid", *between, "aggregate"]
    assert declared_openings(spec) == expected
    if " " in names and hidden != weighted:
        return  # a combination of stages is run in two of its four ways
    ran = run_rounds(_inputs(spec))
    submitted = N + (spec.root is not None)
    shapes = {**SHAPES, "valid": (submitted,), "accepted": (N // 2,) if names in BUCKETS_ACCEPTED else (N,)}
    for output in ran.outputs:
        assert openings(output) == [(name, shapes[name]) for name in expected]
        assert (output.accepted is None) == bool(hidden)
        assert output.accepted is None or set(output.accepted) <= set(range(N))  # never the root
    assert ran.opened == set(expected)


def test_the_ledger_lists_every_rule_there_is():
    stages = {name for name, found in registry._RULES.items() if found.kind == "pre_aggregation"}
    assert {names for names in BETWEEN if " " not in names} == registry._RULES.keys() - stages
    assert {name for names in BETWEEN for name in names.split()[:-1]} == stages


def test_an_invalid_row_leaves_before_the_decisions_are_opened():
    spec = _task("multi-krum", rule_options=KRUM)
    rows = rows_around(N, D, seed=1)
    rows[4, 0] = -(1 << 63)
    ran = run_rounds(round_inputs(spec, rows))
    assert openings(ran.outputs[0])[:3] == [("valid", (N,)), ("enough_accepted", ()), ("accepted", (N - 1,))]
    assert ran.outputs[0].refused == {4: INVALID}


# ---- rules that misbehave -----------------------------------------------------------------------------------------


def _run_rogue(function, *, weights=None, hidden=False, min_accepted=3, **declared):
    with own_rules():
        rule("rogue", **declared)(function)
        spec = _task("rogue", hidden=hidden, weighted=weights is not None, min_accepted=min_accepted)
        if declared.get("reference") == "root":
            spec = _task("rogue", hidden=hidden, min_accepted=min_accepted, root=participant(N))
        check_task(spec)
        return run_rounds(_inputs(spec, weights=weights))


ONES = np.ones(N, np.int64)
FULL = [1 << SCALE_BITS] * N
EQUAL = [1 << WEIGHT_BITS - 3] * N


def _select_all(rows, _options) -> int:
    return rows


def _selection(words=ONES):
    return lambda gram: secret_words(gram, words)


def _fractions(words=EQUAL):
    return lambda gram: secret_words(gram, words, WEIGHT_BITS)


def _scaled(scale, reference=None):
    """Every row with weight 1 and these scales."""

    def scaling(gram):
        own = None if reference is None else secret_words(gram, reference, SCALE_BITS)
        return Scaled(ONES, secret_words(gram, scale, SCALE_BITS), own)

    return scaling


SELECTION = {"selected": _select_all}
FRACTIONS = {"giving": "fractions", "rejects": False}
SCALED = {"giving": "public", "scale_bits": 0}
REFERRING = {**SCALED, "reference": "previous"}


def test_the_honest_patterns_of_these_tests_pass():
    """So that the refusals below are due to what each rule does wrong."""
    patterns = [
        (_selection(), SELECTION, [E, A]),
        (_fractions(), FRACTIONS, [E]),
        (_scaled(FULL), SCALED, [E]),
        (_scaled([1 << SCALE_BITS - 1] * N, 1 << SCALE_BITS), REFERRING, [E]),
        (lambda rows: ONES, {"giving": "public", "needs_gram": False}, []),
    ]
    for function, declared, between in patterns:
        ran = _run_rogue(function, **declared)
        assert [name for name, _ in openings(ran.outputs[0])] == ["valid", *between, "aggregate"]


def test_a_rule_that_opens_an_undeclared_name_ends_the_round():
    def peeking(gram):
        gram.open("gram")
        return secret_words(gram, ONES)

    ran = _run_rogue(peeking, **SELECTION)
    ended_the_round(ran)
    assert "refused" in str(ran.errors[0])


def test_a_rule_that_opens_by_cryptens_names_ends_the_round():
    for name in ("get_plain_text", "reveal"):
        ended_the_round(_run_rogue(lambda gram, name=name: getattr(gram, name)(), **SELECTION))


@pytest.mark.parametrize("name", ["enough_accepted", "accepted", "aggregate"])
def test_a_rule_cannot_open_the_gram_matrix_under_a_declared_name(name):
    def posing(gram):
        gram.open(name)
        return secret_words(gram, ONES)

    ended_the_round(_run_rogue(posing, **SELECTION))


def test_whatever_a_rule_raises_ends_the_round_without_its_text():
    def broken(gram):
        raise ZeroDivisionError("with a secret in its text")

    ran = _run_rogue(broken, **SELECTION)
    ended_the_round(ran)
    assert "secret" not in str(ran.errors[0])
    assert "ZeroDivisionError" in str(ran.errors[0])


def _secret_scale(gram, words=FULL, places=SCALE_BITS):
    return secret_words(gram, words, places)


WRONG_RESULTS = {  # what is declared -> what is given instead
    "selection": {
        "a list": lambda gram: [1] * N,
        "nothing": lambda gram: None,
        "too few": lambda gram: secret_words(gram, ONES[1:]),
        "a matrix": lambda gram: gram,
        "a column": lambda gram: secret_words(gram, ONES[:, None]),
        "fractions": lambda gram: secret_words(gram, ONES, WEIGHT_BITS),
        "public": lambda gram: ONES,
        "scaled": lambda gram: Scaled(secret_words(gram, ONES), _secret_scale(gram)),
        "a stage's mixing": lambda gram: Mixing(secret_words(gram, np.eye(N)), 1),
    },
    "fractions": {
        "public": lambda gram: np.full(N, 1 << WEIGHT_BITS - 3),
        "integers": lambda gram: secret_words(gram, ONES),
        "other places": lambda gram: secret_words(gram, EQUAL, 20),
        "too many": lambda gram: secret_words(gram, EQUAL * 2, WEIGHT_BITS),
        "scaled": lambda gram: Scaled(secret_words(gram, EQUAL, WEIGHT_BITS), _secret_scale(gram)),
        "with a reference": lambda gram: Scaled(
            secret_words(gram, EQUAL, WEIGHT_BITS), None, secret_words(gram, 1, SCALE_BITS)
        ),
    },
    "public": {
        "secret": lambda gram: secret_words(gram, ONES),
        "a matrix": lambda gram: np.ones((N, N), np.int64),
        "floats": lambda gram: np.ones(N),
        "truths": lambda gram: np.ones(N, np.bool_),
        "a torch tensor": lambda gram: torch.ones(N, dtype=torch.int64),
        "too few": lambda gram: ONES[1:],
    },
    "scaled": {
        "no scales": lambda gram: ONES,
        "nothing": lambda gram: None,
        "public scales": lambda gram: Scaled(ONES, np.full(N, 1 << SCALE_BITS)),
        "other places": lambda gram: Scaled(ONES, _secret_scale(gram, places=SCALE_BITS + 1)),
        "other shape": lambda gram: Scaled(ONES, _secret_scale(gram, [FULL])),
        "too few": lambda gram: Scaled(ONES, _secret_scale(gram, FULL[1:])),
        "an undeclared reference": lambda gram: Scaled(ONES, _secret_scale(gram), secret_words(gram, 1, SCALE_BITS)),
    },
    "referring": {
        "a public coefficient": lambda gram: Scaled(ONES, _secret_scale(gram), 1),
        "a list of coefficients": lambda gram: Scaled(ONES, _secret_scale(gram), secret_words(gram, [1], SCALE_BITS)),
        "other places": lambda gram: Scaled(ONES, _secret_scale(gram), secret_words(gram, 1)),
    },
}
DECLARED = {
    "selection": SELECTION,
    "fractions": FRACTIONS,
    "public": {"giving": "public"},
    "scaled": SCALED,
    "referring": REFERRING,
}


@pytest.mark.parametrize(
    ("declared", "wrong"), [(d, wrong) for d, results in WRONG_RESULTS.items() for wrong in results]
)
def test_a_result_of_another_kind_than_declared_ends_the_round(declared, wrong):
    ended_the_round(_run_rogue(WRONG_RESULTS[declared][wrong], **DECLARED[declared]))


BAD_SELECTIONS = {
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


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("bad", BAD_SELECTIONS)
def test_selections_out_of_line_end_the_round(bad, hidden):
    ran = _run_rogue(_selection(BAD_SELECTIONS[bad]), hidden=hidden, **SELECTION)
    ended_the_round(ran, "too_few_accepted", COHORT)


def test_a_selection_of_another_size_than_declared_ends_the_round():
    """The aggregate would be divided by the declared size."""
    ended_the_round(_run_rogue(_selection([1, 1, 1, 1, 0, 0]), hidden=True, **SELECTION), "too_few_accepted", COHORT)


UNIT = 1 << WEIGHT_BITS  # a fraction of 1
BAD_FRACTIONS = {
    "a hair below nought": [-1, *EQUAL[1:]],
    "all negative": [-(1 << 20)] * N,
    "above one": [UNIT + UNIT // 8, *EQUAL[1:]],
    "2^63": [-(1 << 63), *EQUAL[1:]],
    "2^62": [1 << 62, *EQUAL[1:]],
    "cancelling": [1 << 62, -(1 << 62), *EQUAL[2:]],
    "sum to 2^64": [1 << 62] * 4 + EQUAL[4:],
    "nothing": [0] * N,
    "two rows of a minimum of three": [UNIT, 0, 0, 0, 0, UNIT],
    "one row with nearly all": [UNIT, *[UNIT >> 10] * 5],
    "two rows with nearly all": [UNIT, UNIT, *[UNIT >> 10] * 4],
    "two small rows with nearly all": [1 << 10, 1 << 10, 0, 0, 1, 1],
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("bad", BAD_FRACTIONS)
def test_fractions_out_of_line_or_on_few_rows_end_the_round(bad, hidden):
    ran = _run_rogue(_fractions(BAD_FRACTIONS[bad]), hidden=hidden, **FRACTIONS)
    ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize("words", [[UNIT] * N, [1] * N, [UNIT] * 3 + [0] * 3, [4, 4, 4, 1, 0, 0]])
def test_fractions_of_any_size_on_enough_rows_pass(words):
    output = _run_rogue(_fractions(words), **FRACTIONS).outputs[0]
    rows = _rows(_task("mean"))
    mean = output.words / output.weight_total / 2.0**output.coefficient_bits
    assert np.abs(mean - np.average(rows, axis=0, weights=words)).max() < 1


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "scale",
    [
        [1 << SCALE_BITS] + [1 << 3] * (N - 1),  # nearly all the weight
        [1 << SCALE_BITS] * 2 + [1] * (N - 2),
        [2 << SCALE_BITS] + [1 << SCALE_BITS] * (N - 1),
        [9 << SCALE_BITS - 3] + [1 << SCALE_BITS] * (N - 1),
        [-1] + [1 << SCALE_BITS] * (N - 1),
        [1 << 62] + [1 << SCALE_BITS] * (N - 1),
        [-(1 << 63)] + [1 << SCALE_BITS] * (N - 1),
    ],
)
def test_scales_out_of_line_or_on_one_row_end_the_round(scale, hidden):
    ended_the_round(_run_rogue(_scaled(scale), hidden=hidden, **SCALED), "too_few_accepted", COHORT)


@pytest.mark.parametrize(
    "scale",
    [[5, 1, 1, 1, 1, 1], [1.5] * N, [0.5, 0.5, 1.5, 1.5, 1.5, 1.5]],
    ids=["one above 2^2", "the mean above 1", "the mean at 7/6"],
)
def test_larger_scales_are_bounded_one_by_one_and_in_their_mean(scale):
    words = [int(s * (1 << SCALE_BITS)) for s in scale]
    ran = _run_rogue(_scaled(words), giving="public", scale_bits=2)
    ended_the_round(ran, "too_few_accepted", COHORT)


def test_larger_scales_within_their_bounds_pass():
    words = [int(s * (1 << SCALE_BITS)) for s in (2, 2, 0.5, 0.5, 0.5, 0.5)]
    output = _run_rogue(_scaled(words), giving="public", scale_bits=2).outputs[0]
    assert output.words.tolist() == (_rows(_task("mean")) * np.array(words)[:, None]).sum(0).tolist()


def test_scaled_fractions_whose_sum_could_wrap_end_the_round():
    def scaling(gram):
        return Scaled(secret_words(gram, EQUAL, WEIGHT_BITS), secret_words(gram, [17 << 31] * N, SCALE_BITS))

    ran = _run_rogue(scaling, giving="fractions", scale_bits=15)
    ended_the_round(ran, "too_few_accepted", COHORT)


def test_a_small_scale_on_enough_rows_passes():
    """Three rows of six at full scale are an effective cohort of three."""
    output = _run_rogue(_scaled([1 << SCALE_BITS] * 3 + [0] * 3), **SCALED).outputs[0]
    assert output.words.tolist() == (_rows(_task("mean"))[:3].sum(0) << SCALE_BITS).tolist()
    assert (output.weight_total, output.coefficient_bits) == (N, SCALE_BITS)


@pytest.mark.parametrize("coefficient", [-1, 9 << SCALE_BITS - 3, 1 << 62, -(1 << 63)])
def test_a_references_coefficient_out_of_range_ends_the_round(coefficient):
    ran = _run_rogue(_scaled([1 << SCALE_BITS - 2] * N, coefficient), **REFERRING)
    ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize("stage", ["", "bucketing ", "nnm "])
def test_a_reference_beside_fractions_has_the_part_that_its_coefficient_says(stage):
    """A half of the mean of the rows, and a half of the previous aggregate."""
    half = 1 << SCALE_BITS - 1

    def halving(gram):
        rows = gram.size(0) - 1
        trust = secret_words(gram, [1 << 20] * rows, WEIGHT_BITS)
        return Scaled(trust, secret_words(gram, [half] * rows, SCALE_BITS), secret_words(gram, half, SCALE_BITS))

    previous = np.full(D, 1 << 17)
    with own_rules():
        rule("rogue", giving="fractions", rejects=False, scale_bits=0, reference="previous")(halving)
        spec = _task(stage + "rogue")
        inputs = [replace(given, previous=earlier(previous)) for given in _inputs(spec)]
        output = run_rounds(inputs).outputs[0]
    mean = output.words / output.weight_total / 2.0**output.coefficient_bits
    assert np.abs(mean - (_rows(spec).mean(0) + previous) / 2).max() < 64  # of 2^20


def test_rows_and_reference_together_are_at_most_a_mean():
    ran = _run_rogue(_scaled(FULL, 1 << SCALE_BITS), **REFERRING)
    ended_the_round(ran, "too_few_accepted", COHORT)


def test_the_root_participant_alone_is_never_the_aggregate():
    """Its row is a participant's update like any other: it must not carry what is opened by itself."""
    ran = _run_rogue(_scaled([1] * N, 1 << SCALE_BITS), giving="public", scale_bits=0, reference="root")
    assert "aggregate" not in ran.opened
    assert set(ran.errors) == {0, 1, 2}


@pytest.mark.parametrize(
    "weights", [[1 << 40, 1, 1, 1, 1, 1], [-1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1], [1 << 20, 1 << 20, 1, 1, 1, 1]]
)
def test_public_weights_out_of_line_end_the_round(weights):
    ended_the_round(_run_rogue(lambda rows: np.array(weights), giving="public", needs_gram=False))


def test_a_public_selection_of_the_declared_size_passes_and_of_another_ends_the_round():
    declared = {"giving": "public", "needs_gram": False, "selected": lambda rows, options: 5}
    five, all_six = np.array([1, 1, 1, 1, 1, 0]), ONES
    assert _run_rogue(lambda rows: five, **declared).outputs[0].accepted == (0, 1, 2, 3, 4)
    ended_the_round(_run_rogue(lambda rows: all_six, **declared))


def test_public_weights_on_too_few_rows_end_the_round():
    ran = _run_rogue(lambda rows: np.array([1, 1, 0, 0, 0, 0]), giving="public", needs_gram=False)
    ended_the_round(ran, "too_few_accepted")


def test_accepted_opens_bits_only():
    """With an example weight of 0 or 1 the product stays in range while the rule's weight is any number."""
    ran = _run_rogue(_selection([29, 1, 1, 1, 1, 1]), weights=[1, 30, 30, 30, 30, 30], **SELECTION)
    ended_the_round(ran, "too_few_accepted", COHORT)


# ---- the minimum cohort -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invalid", [4, 5, 6])
def test_too_few_valid_rows_end_the_round_before_the_rule_runs(invalid):
    rows = rows_around(N, D, seed=1)
    rows[:invalid, 0] = -(1 << 63)
    ran = run_rounds(round_inputs(_task("multi-krum", rule_options=KRUM), rows))
    ended_the_round(ran, "too_few_submissions")


def test_too_few_submissions_end_the_round_before_anything_is_opened():
    spec = _task("mean")
    ran = run_rounds(round_inputs(spec, rows_around(2, D, seed=1)))
    ended_the_round(ran, "too_few_submissions", frozenset())
    assert not ran.opened


@pytest.mark.parametrize("names", ["multi-krum", "dnc"])
def test_a_selection_below_the_minimum_ends_the_round(names):
    options = {"num_nodes_to_select": 2} if names == "multi-krum" else {"num_malicious_nodes": N - 2}
    ended_the_round(run_rounds(_inputs(_task(names, rule_options=options))), "too_few_accepted", COHORT)


@pytest.mark.parametrize(
    "names", ["mean", "norm-clip", "multi-krum", "dnc", "foolsgold", "geometric-median", "fltrust"]
)
def test_example_weights_on_one_row_end_the_round(names):
    spec = _task(names, weighted=True, rule_options=_options(names))
    for others in (0, 1):
        ran = run_rounds(_inputs(spec, weights=[40] + [others] * (N - 1 + (spec.root is not None))))
        ended_the_round(ran, "too_few_accepted", COHORT)


@pytest.mark.parametrize(("max_weight", "heavy"), [(1 << 24, 31), ((1 << 32) - 1, 4095)])
def test_example_weights_on_one_row_end_the_round_however_large_max_weight_is(max_weight, heavy):
    """In those units every weight here is nought, and 0 >= 0 passes."""
    spec = task(D, "mean", max_weight=max_weight, max_participants=16, min_accepted=3)
    ran = run_rounds(_inputs(spec, weights=[heavy] + [1] * (N - 1)))
    ended_the_round(ran, "too_few_accepted", COHORT)


def test_trust_in_one_row_alone_ends_the_round():
    """The others are nearly at right angles to the root's update: their trust is positive, but small."""
    root = np.zeros(D, np.int64)
    root[0] = 1 << 19
    rows = np.stack([root, *(np.roll(root, k) + root // 64 for k in range(1, N)), root])
    ran = run_rounds(round_inputs(_task("fltrust"), rows))
    ended_the_round(ran, "too_few_accepted", COHORT)
    rows[1] = rows[2] = root // 3
    assert run_rounds(round_inputs(_task("fltrust"), rows)).outputs[0].accepted == (0, 1, 2, 3, 4, 5)


# ---- what a task may ask of a rule ----------------------------------------------------------------------------------


def test_a_rule_is_registered_once_and_declares_its_options():
    with pytest.raises(InvalidTask, match="registered twice"):
        rule("mean")(lambda rows: rows)
    with pytest.raises(InvalidTask, match="must name"):
        rule("rogue")(lambda gram, *, depth=1: gram)
    assert "rogue" not in registry._RULES


@pytest.mark.parametrize("rows", [3, 6])
def test_equal_weights_are_a_cohort_of_as_many_rows(rows):
    """To the last unit: a minimum cohort that all rows make up is no smaller than they are."""
    scale = (1 << SCALE_BITS) - 12345
    output = _run_rogue(_scaled([scale] * rows + [0] * (N - rows)), **SCALED, min_accepted=rows).outputs[0]
    assert output.words.tolist() == (_rows(_task("mean"))[:rows].sum(0) * scale).tolist()
    ran = _run_rogue(_scaled([scale] * (rows - 1) + [scale - 1] + [0] * (N - rows)), **SCALED, min_accepted=rows)
    ended_the_round(ran, "too_few_accepted", COHORT)
