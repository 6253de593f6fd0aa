"""What a round needs beside updates: the same rules everywhere, the same previous aggregate, the root's update."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from round_parties import (
    ONE,
    at_three_parties,
    earlier,
    ended_the_round,
    openings,
    participant,
    round_inputs,
    rows_around,
    run_rounds,
    task,
)

from triskele.errors import PartyFault, RoundFailed
from triskele.ids import PARTIES
from triskele_server.party.round import run_round
from triskele_server.rules import Pipeline, registry

N, D = 6, 12
FAR = -(1 << 63)


def _stopped_before_opening(ran, what: str, party: int) -> None:
    """Every party names the difference, and the two that agree name the third."""
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert {ran.errors[p].party for p in PARTIES if p != party} == {party}
    assert all(what in str(error) for error in ran.errors.values())
    assert ran.opened == set()
    labels = {label.split(":")[0] for t in ran.transports for _, label, _ in t.received}
    assert not any(label.startswith(("coin", "compare", "gram")) for label in labels)


# ---- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("multi-krum",), ("nnm", "krum")])
def test_parties_with_other_sources_of_a_rule_stop_before_anything_is_computed(names, monkeypatch):
    """One of them has another version of the package that the rule comes with."""
    spec = task(D, names, rule_options={"num_nodes_to_select": 4} if names == ("multi-krum",) else {})
    inputs = round_inputs(spec, rows_around(N, D, seed=1))
    here = threading.local()
    digest = registry.Rule.source_digest.func

    def source_digest(rule) -> str:
        return digest(rule) + (" changed" if here.party == 1 and rule.name == names[0] else "")

    monkeypatch.setattr(registry.Rule, "source_digest", property(source_digest))

    def program(party, transport):
        here.party = party
        return run_round(inputs[party], transport)

    _stopped_before_opening(at_three_parties(program), "rules", 1)


def test_the_digest_of_a_pipeline_depends_on_every_stage_and_its_place():
    pipelines = [("mean",), ("nnm", "mean"), ("bucketing", "nnm", "mean"), ("bucketing", "mean"), ("median",)]
    digests = {Pipeline.of(task(D, names)).source_digest() for names in pipelines}
    assert len(digests) == len(pipelines)


# ---- the previous aggregate -----------------------------------------------------------------------------------------


def _clipping(rows: np.ndarray, previous: np.ndarray | None, tau: float = 0.25):
    spec = task(D, "centered-clip", rule_options={"tau": tau})
    return [replace(given, previous=earlier(previous)) for given in round_inputs(spec, rows)]


def _centered(rows: np.ndarray, previous: np.ndarray, tau: float) -> np.ndarray:
    steps = rows - previous
    lengths = np.sqrt((steps**2).sum(1, keepdims=True))
    return previous + (steps * np.minimum(1, tau * ONE / np.maximum(lengths, 1))).mean(0)


def _mean(output) -> np.ndarray:
    return output.words / output.weight_total / 2.0**output.coefficient_bits


@pytest.mark.parametrize("start", ["none", "zero", "near", "far"])
def test_centered_clipping_starts_from_the_previous_aggregate(start):
    rows = rows_around(N, D, seed=1, outliers=[2])
    previous = {"none": None, "zero": rows[0] * 0, "near": rows[1] // 2, "far": -rows[1]}[start]
    output = run_rounds(_clipping(rows, previous)).outputs[0]
    expected = _centered(rows, rows[0] * 0 if previous is None else previous, 0.25)
    assert np.abs(_mean(output) - expected).max() < 32  # of 2^20
    assert openings(output) == [("valid", (N,)), ("enough_accepted", ()), ("aggregate", (D,))]


DIFFERENT = {
    "one word": lambda words: words + np.eye(1, D, 3, dtype=np.int64)[0],
    "a longer one": lambda words: np.append(words, 0),
    "a shorter one": lambda words: words[:-1],
    "none": lambda words: None,
    "zeros": lambda words: words * 0,
}


@pytest.mark.parametrize("difference", DIFFERENT)
@pytest.mark.parametrize("party", PARTIES)
def test_a_party_with_another_previous_aggregate_is_named_before_anything_is_opened(party, difference):
    rows = rows_around(N, D, seed=1)
    inputs = _clipping(rows, rows[1] // 2)
    inputs[party] = replace(inputs[party], previous=earlier(DIFFERENT[difference](rows[1] // 2)))
    _stopped_before_opening(run_rounds(inputs), "previous aggregate", party)


def test_a_party_that_lost_a_previous_aggregate_of_zeros_is_named_too():
    """None and zeros are the same start, and yet not the same history."""
    inputs = _clipping(rows_around(N, D, seed=1), np.zeros(D, np.int64))
    inputs[2] = replace(inputs[2], previous=None)
    _stopped_before_opening(run_rounds(inputs), "previous aggregate", 2)


# ---- the root participant -------------------------------------------------------------------------------------------


def _trusting(names: tuple[str, ...] = ("fltrust",), root: int = N, **options):
    return task(D, names, root=participant(root), min_accepted=3, **options)


def _rows_and_root() -> np.ndarray:
    rows = rows_around(N + 1, D, seed=1, outliers=[2])
    rows[0] //= 3
    return rows


def _fltrust(rows: np.ndarray, root: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((rows**2).sum(1))
    trust = np.maximum(0, rows @ root / lengths)
    return trust / lengths @ rows / trust.sum() * np.sqrt((root**2).sum())


@pytest.mark.parametrize("root", [0, 3, N])
def test_the_root_weighs_the_others_and_is_not_averaged(root):
    rows = _rows_and_root()
    rows[[root, N]] = rows[[N, root]]
    spec = _trusting(root=root)
    others = [i for i in range(N + 1) if i != root]
    for output in run_rounds(round_inputs(spec, rows)).outputs:
        assert np.abs(_mean(output) - _fltrust(rows[others].astype(float), rows[root].astype(float))).max() < 32
        aside = {i for i in others if rows[i] @ rows[root] <= 0}
        assert output.accepted == tuple(i for i in others if i not in aside)
        assert len(aside) == 1


@pytest.mark.parametrize("names", [("fltrust",), ("nnm", "fltrust"), ("bucketing", "fltrust")])
def test_without_the_root_the_round_ends_before_the_filter(names):
    ran = run_rounds(round_inputs(_trusting(names, root=40), _rows_and_root()))
    _root_is_missing(ran, 40)


@pytest.mark.parametrize("names", [("fltrust",), ("nnm", "fltrust"), ("bucketing", "fltrust")])
def test_an_invalid_update_of_the_root_ends_the_round_before_the_filter(names):
    rows = _rows_and_root()
    rows[N, 3] = FAR
    _root_is_missing(run_rounds(round_inputs(_trusting(names), rows)), N)


def _root_is_missing(ran, root: int) -> None:
    assert set(ran.errors) == set(PARTIES)
    for error in ran.errors.values():
        assert isinstance(error, RoundFailed)
        assert (error.reason, error.who) == ("root_missing", f"participant:{participant(root)}")
    assert ran.opened == {"valid"}
    assert not any(label.startswith("gram") for t in ran.transports for _, label, _ in t.received)


def test_an_invalid_update_of_another_leaves_the_root_where_it_was():
    rows = _rows_and_root()
    bad = rows.copy()
    bad[1, 0] = FAR
    output = run_rounds(round_inputs(_trusting(), bad)).outputs[0]
    others = [0, 2, 3, 4, 5]
    assert output.accepted == (0, 3, 4, 5)
    assert np.abs(_mean(output) - _fltrust(rows[others].astype(float), rows[N].astype(float))).max() < 32


@pytest.mark.parametrize("invalid", [4, 6])
def test_the_root_is_not_counted_in_the_cohort(invalid):
    """Of the others two or none are left; with the root they would be three, or one."""
    rows = _rows_and_root()
    rows[:invalid, 0] = FAR
    ran = run_rounds(round_inputs(replace(_trusting(), min_accepted=N + 1 - invalid), rows))
    allowed = frozenset({"valid", "enough_accepted"})
    ended_the_round(ran, ran.errors[0].reason, allowed)
    assert ran.errors[0].reason in ("too_few_submissions", "too_few_accepted")
