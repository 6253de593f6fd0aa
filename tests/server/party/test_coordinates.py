"""Coordinate-wise rules: exact on ring words, block by block, behind stages; one that misbehaves ends the round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from round_parties import (
    at_three_parties,
    ended_the_round,
    fix_coin,
    openings,
    own_rules,
    round_inputs,
    rows_around,
    run_rounds,
    secret_words,
    task,
)

from triskele.ids import PARTIES
from triskele_server.linear.shares import chunks
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.party import coordinates
from triskele_server.party.round import run_round
from triskele_server.rules import bucketing
from triskele_server.rules.registry import CoordinateSum, Scaled, coordinate_wise

COIN = b"c" * 32
FAR = -(1 << 63)


def _task(names: str, dimension: int = 9, **options):
    return task(dimension, tuple(names.split()), **{"max_participants": 16, **options})


def _rows(n: int, d: int, seed: int = 1) -> np.ndarray:
    """Rows on the grid with ties, zeros and values of either sign in every coordinate."""
    rows = rows_around(n, d, seed=seed, outliers=[1])
    rows[:, 0] = 0
    rows[:, 1] = np.arange(n) // 2 - 1
    return rows


def _trimmed(rows: np.ndarray, trimmed: int) -> tuple[list[int], int]:
    kept = np.sort(rows, axis=0)[trimmed : len(rows) - trimmed]
    return kept.sum(0).tolist(), len(kept)


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_the_median_is_the_middle_word_or_the_two_middle_ones(n):
    rows = _rows(n, 9)
    for output in run_rounds(round_inputs(_task("median"), rows)).outputs:
        assert (output.words.tolist(), output.weight_total) == _trimmed(rows, (n - 1) // 2)
        assert (output.coefficient_bits, output.accepted, output.refused) == (0, tuple(range(n)), {})


@pytest.mark.parametrize(("trimmed", "most"), [(0, 0), (1, 1), (2, 2), (3, 2), (100, 2)])
def test_the_trimmed_mean_is_exact_and_keeps_the_middle_at_least(trimmed, most):
    rows = _rows(6, 9)
    spec = _task("trimmed-mean", rule_options={"num_malicious_nodes": trimmed}, decisions="hidden")
    output = run_rounds(round_inputs(spec, rows)).outputs[0]
    assert (output.words.tolist(), output.weight_total) == _trimmed(rows, most)
    assert output.accepted is None


@pytest.mark.parametrize("d", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("names", ["median", "bucketing trimmed-mean"])
def test_blocks_of_four_coordinates_give_what_one_block_gives(names, d, monkeypatch):
    """A block starts where a key stream is at the start of an AES block: four words of 32 bits, two of 64."""
    fix_coin(monkeypatch, COIN)
    spec = _task(names, d, rule_options={} if names == "median" else {"num_malicious_nodes": 1})
    inputs = round_inputs(spec, rows_around(6, d, seed=3))
    whole = run_rounds(inputs).outputs[0]
    sizes = []
    monkeypatch.setattr(coordinates, "_COMPARISONS", 1)
    monkeypatch.setattr(coordinates, "chunks", lambda total, size: sizes.append(size) or chunks(total, size))
    parts = run_rounds(inputs).outputs[0]
    assert set(sizes) == {4}
    assert (parts.words.tolist(), parts.weight_total) == (whole.words.tolist(), whole.weight_total)


def test_an_invalid_row_leaves_before_the_median():
    rows = _rows(6, 9)
    bad = rows.copy()
    bad[4, 3] = FAR
    output = run_rounds(round_inputs(_task("median"), bad)).outputs[0]
    assert (output.words.tolist(), output.weight_total) == _trimmed(np.delete(rows, 4, 0), 2)
    assert output.accepted == (0, 1, 2, 3, 5)


def test_too_few_valid_rows_end_the_round():
    rows = _rows(4, 9)
    rows[:2, 3] = FAR
    ended_the_round(run_rounds(round_inputs(_task("median", min_accepted=3), rows)), "too_few_submissions")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_buckets_are_averaged_before(size, monkeypatch):
    """Seven rows: the last bucket is smaller than the others, and the words have the buckets' common divisor."""
    fix_coin(monkeypatch, COIN)
    rows = _rows(7, 9)
    mixing = bucketing.bucketing(7, coin=COIN, size=size)
    spec = _task("bucketing median", rule_options={"size": size})
    output = run_rounds(round_inputs(spec, rows)).outputs[0]
    middle = (len(mixing.matrix) - 1) // 2
    words, kept = _trimmed(mixing.matrix @ rows, middle)
    assert (output.words.tolist(), output.weight_total) == (words, kept * mixing.divisor)


def test_nearest_neighbours_are_averaged_before():
    rows = np.concatenate([rows_around(4, 9, seed=1), -rows_around(3, 9, seed=1)])
    spec = _task("nnm trimmed-mean", rule_options={"nnm": {"num_malicious_nodes": 4}, "num_malicious_nodes": 1})
    output = run_rounds(round_inputs(spec, rows)).outputs[0]
    distances = ((rows[:, None] - rows) ** 2).sum(-1)
    near = np.argsort(distances, axis=1, kind="stable")[:, :3]
    words, kept = _trimmed(rows[near].sum(1), 1)
    assert (output.words.tolist(), output.weight_total) == (words, kept * 3)
    assert openings(output) == [("valid", (7,)), ("aggregate", (9,))]


def test_the_steps_are_those_of_any_other_round():
    inputs, steps = round_inputs(_task("nnm median"), _rows(5, 9)), {p: [] for p in PARTIES}
    at_three_parties(lambda party, transport: run_round(inputs[party], transport, steps[party].append))
    assert steps[0] == steps[1] == steps[2] == ["seal", "coin", "sketch", "check", "gram", "filter", "combine"]


def test_parties_with_other_shares_of_one_word_are_caught_before_the_median():
    inputs = round_inputs(_task("median"), _rows(5, 9))
    submissions = inputs[1].submissions
    other = replace(submissions[0], shares=submissions[1].shares)
    inputs[1] = replace(inputs[1], submissions=[other, *submissions[1:]])
    ran = run_rounds(inputs)
    assert set(ran.errors) == {0, 1, 2}
    assert ran.opened == set()


# ---- rules that misbehave -----------------------------------------------------------------------------------------


def _sum(columns: ReplicatedTensor) -> ReplicatedTensor:
    return columns.sum(-1)


def _run_rogue(function, **options):
    with own_rules():
        coordinate_wise("rogue", comparisons=lambda rows, options: 0)(function)
        return run_rounds(round_inputs(_task("rogue", **options), _rows(5, 9)))


def test_the_honest_pattern_of_these_tests_passes():
    output = _run_rogue(lambda columns: CoordinateSum(_sum(columns), 5)).outputs[0]
    assert (output.words.tolist(), output.weight_total) == _trimmed(_rows(5, 9), 0)
    assert openings(output) == [("valid", (5,)), ("aggregate", (9,))]


WRONG_RESULTS = {
    "nothing": lambda columns: None,
    "weights": lambda columns: np.ones(5, np.int64),
    "a bare sum": _sum,
    "scaled": lambda columns: Scaled(_sum(columns), None),
    "too few": lambda columns: CoordinateSum(_sum(columns)[1:], 5),
    "a matrix": lambda columns: CoordinateSum(columns, 5),
    "a number": lambda columns: CoordinateSum(_sum(columns).sum(), 5),
    "a public sum": lambda columns: CoordinateSum(torch.ones(columns.size(0), dtype=torch.int64), 5),
    "a public array": lambda columns: CoordinateSum(np.ones(columns.size(0), np.int64), 5),
    "shares alone": lambda columns: CoordinateSum(_sum(columns).shares, 5),
    "divisor nought": lambda columns: CoordinateSum(_sum(columns), 0),
    "a negative divisor": lambda columns: CoordinateSum(_sum(columns), -5),
    "a fractional divisor": lambda columns: CoordinateSum(_sum(columns), 2.5),
    "a divisor that is a text": lambda columns: CoordinateSum(_sum(columns), "5"),
    "a secret divisor": lambda columns: CoordinateSum(_sum(columns), secret_words(columns, 5)),
}


@pytest.mark.parametrize("wrong", WRONG_RESULTS)
def test_a_result_of_another_kind_ends_the_round(wrong):
    ended_the_round(_run_rogue(WRONG_RESULTS[wrong]))


def test_divisors_that_differ_between_blocks_end_the_round(monkeypatch):
    """The whole aggregate is divided by one number."""
    monkeypatch.setattr(coordinates, "_COMPARISONS", 1)
    ended_the_round(_run_rogue(lambda columns: CoordinateSum(_sum(columns), columns.size(0))))


@pytest.mark.parametrize("name", ["aggregate", "columns", None])
def test_a_rule_that_opens_ends_the_round(name):
    ended_the_round(_run_rogue(lambda columns: columns.get_plain_text(name)))


def test_whatever_a_rule_raises_ends_the_round_without_its_text():
    def broken(columns):
        raise IndexError("with a secret in its text")

    ran = _run_rogue(broken)
    ended_the_round(ran)
    assert "secret" not in str(ran.errors[0])
    assert "IndexError" in str(ran.errors[0])
