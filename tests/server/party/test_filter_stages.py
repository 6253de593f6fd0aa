"""Stages in front of a rule: one that misbehaves ends the round, and the cohort is counted in participants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from round_parties import (
    COHORT,
    ended_the_round,
    openings,
    own_rules,
    round_inputs,
    rows_around,
    run_rounds,
    secret_words,
    task,
)

from triskele.errors import InvalidTask
from triskele_server.rules import check_task
from triskele_server.rules.registry import WEIGHT_BITS, Mixing, pre_aggregation, rule

N, D = 6, 12
E, A = "enough_accepted", "accepted"


def _task(names: str, **options):
    return task(D, tuple(names.split()), **{"min_accepted": 3, "max_participants": 16, **options})


def _run(spec, n: int = N):
    return run_rounds(round_inputs(spec, rows_around(n, D, seed=1, outliers=[2])))


def _run_rogue_stage(function, names: str = "rogue mean", **declared):
    with own_rules():
        pre_aggregation("rogue", **declared)(function)
        krum = {"num_nodes_to_select": 4} if "krum" in names else {}
        spec = _task(names, rule_options=krum)
        check_task(spec)
        return _run(spec)


def _mixing(matrix, divisor=1, places=0):
    return lambda gram: Mixing(secret_words(gram, matrix, places), divisor)


EYE = np.eye(N, dtype=np.int64)
ONES = np.ones(N, np.int64)


@pytest.mark.parametrize(
    ("names", "between"), [("rogue mean", [E]), ("nnm rogue multi-krum", [E, A]), ("rogue median", [])]
)
def test_the_honest_stage_of_these_tests_passes(names, between):
    ran = _run_rogue_stage(_mixing(EYE * 3, 3), names)
    assert [name for name, _ in openings(ran.outputs[0])] == ["valid", *between, "aggregate"]


WRONG_MIXINGS = {
    "nothing": lambda gram: None,
    "a matrix": lambda gram: gram,
    "public": lambda gram: Mixing(EYE, 1),
    "another shape": _mixing(EYE[:, 1:]),
    "a row": _mixing(EYE[0]),
    "too many dimensions": _mixing(EYE[None]),
    "fraction bits": _mixing(EYE, 1, 20),
    "divisor nought": _mixing(EYE, 0),
    "a negative divisor": _mixing(EYE, -1),
    "a fractional divisor": _mixing(EYE, 1.5),
    "a divisor that is a text": _mixing(EYE, "2"),
    "a divisor beyond what the task has room for": _mixing(EYE * 256, 256),
}


def _broken_stage(gram):
    raise KeyError("with a secret in its text")


def _peeking_stage(gram):
    gram.open("aggregate")
    return Mixing(secret_words(gram, EYE), 1)


@pytest.mark.parametrize("names", ["rogue mean", "rogue median"])
@pytest.mark.parametrize("wrong", WRONG_MIXINGS)
def test_a_stage_that_gives_something_else_ends_the_round(wrong, names):
    ended_the_round(_run_rogue_stage(WRONG_MIXINGS[wrong], names))


@pytest.mark.parametrize("names", ["rogue mean", "rogue median", "nnm rogue norm-clip"])
@pytest.mark.parametrize("function", [_broken_stage, _peeking_stage])
def test_a_stage_that_raises_or_opens_ends_the_round_without_its_text(function, names):
    ran = _run_rogue_stage(function, names)
    ended_the_round(ran)
    assert "secret" not in str(ran.errors[0])


WRONG_PUBLIC_MIXINGS = {
    "nothing": lambda rows: None,
    "secret": lambda rows: Mixing(torch.eye(rows, dtype=torch.int64), 1),
    "floats": lambda rows: Mixing(np.eye(rows), 1),
    "another shape": lambda rows: Mixing(np.eye(rows - 1, dtype=np.int64), 1),
    "negative": lambda rows: Mixing(2 * np.eye(rows, dtype=np.int64) - np.eye(rows, k=1, dtype=np.int64), 1),
    "another sum than the divisor": lambda rows: Mixing(np.eye(rows, dtype=np.int64), 2),
    "a divisor without room": lambda rows: Mixing(np.eye(rows, dtype=np.int64) << 20, 1 << 20),
    "an exception": lambda rows: rows // 0,
}


@pytest.mark.parametrize("names", ["rogue mean", "rogue multi-krum", "rogue median"])
@pytest.mark.parametrize("wrong", WRONG_PUBLIC_MIXINGS)
def test_a_public_stage_that_gives_something_else_ends_the_round(wrong, names):
    ended_the_round(_run_rogue_stage(WRONG_PUBLIC_MIXINGS[wrong], names, giving="public", needs_gram=False))


def test_an_honest_public_stage_passes():
    ran = _run_rogue_stage(lambda rows: Mixing(np.eye(rows, dtype=np.int64), 1), giving="public", needs_gram=False)
    assert openings(ran.outputs[0]) == [("valid", (N,)), ("aggregate", (D,))]


# Rows and their divisor. Each puts nearly all of the aggregate on row 0, or on the difference of rows 0 and 1, or more
# on the rows than the divisor says.
BAD_MIXINGS = {
    "all from one row": (np.outer(ONES, EYE[0]), 1),
    "large": (np.outer(ONES, EYE[0] * ((1 << 33) - 1)) + 1, 1),
    "negative": (np.outer(ONES, EYE[0] * 8) - 1, 2),
    "one negative": (np.tile([2, 2, 2, 1, 2, -1], (N, 1)), 8),
    "another sum than the divisor": (EYE * 2, 1),
    "a sum beyond 2^64": (
        np.array([[1 << 33, (1 << 63) - (1 << 33), (1 << 63) - 1, 7, 0, 0]] + [[1] * N] * (N - 1)),
        6,
    ),
}


@pytest.mark.parametrize("last", ["mean", "multi-krum"])
@pytest.mark.parametrize("bad", BAD_MIXINGS)
def test_a_mixing_out_of_line_ends_the_round(bad, last):
    ended_the_round(_run_rogue_stage(_mixing(*BAD_MIXINGS[bad]), f"rogue {last}"), "too_few_accepted", COHORT)


def test_what_a_stage_declares_must_fit_together():
    """A public mixing is drawn before there is a Gram matrix; a secret one is made of it."""
    for declared in ({"giving": "public"}, {"needs_gram": False}, {"giving": "fractions"}):
        with own_rules(), pytest.raises(InvalidTask, match="rogue"):
            pre_aggregation("rogue", **declared)(lambda gram: None)


# ---- the minimum cohort, behind a stage ---------------------------------------------------------------------------


@pytest.mark.parametrize(("neighbours", "passes"), [(1, False), (2, False), (3, True)])
def test_one_mixed_row_counts_as_many_participants_as_it_is_mixed_of(neighbours, passes):
    ran = _run(_task("nnm krum", rule_options={"nnm": {"num_malicious_nodes": N - neighbours}}))
    if passes:
        assert len(ran.outputs[0].accepted) == neighbours
    else:
        ended_the_round(ran, "too_few_accepted", COHORT)


UNIT = 1 << WEIGHT_BITS  # a fraction of 1


@pytest.mark.parametrize(("words", "passes"), [([UNIT, 0, 0], True), ([0, 0, UNIT], False), ([9, UNIT, 9], True)])
def test_a_bucket_counts_as_many_participants_as_it_holds(words, passes):
    """Seven participants in buckets of three: the last one is a bucket of its own."""
    with own_rules():
        rule("rogue", giving="fractions", rejects=True)(lambda gram: secret_words(gram, words, WEIGHT_BITS))
        ran = _run(_task("bucketing rogue", rule_options={"size": 3}), 7)
    if passes:
        assert len(ran.outputs[0].accepted) == (3 if 0 in words else 7)
    else:
        ended_the_round(ran, "too_few_accepted", COHORT)
