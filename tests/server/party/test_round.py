"""A round whose parties disagree, or one of which sends something wrong, ends before or instead of releasing."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from round_parties import (
    at_three_parties,
    openings,
    round_inputs,
    rows_around,
    run_rounds,
    task,
    watched_transports,
    with_changed_heavy_word,
)

from triskele.errors import PartyFault
from triskele.ids import PARTIES
from triskele.manifest import ManifestDigest
from triskele_server.linear.sketch import Sketch
from triskele_server.mpc.transport import Frame
from triskele_server.party.round import run_round

N = 6
KRUM = {"num_malicious_nodes": 1, "num_nodes_to_select": 4}


def _spec(dimension: int = 10, rule: str = "multi-krum", **options):
    return task(dimension, rule, rule_options=KRUM if rule == "multi-krum" else {}, **options)


def _inputs(spec, seed: int = 1):
    rows = rows_around(N, spec.dimension, seed=seed, outliers=[3])
    if spec.weighted:
        rows = np.concatenate([rows, np.full((N, 1), 5)], 1)
    return round_inputs(spec, rows)


def test_all_parties_end_with_the_same_output():
    rows = rows_around(N, 10, seed=1, outliers=[3])
    ran = run_rounds(round_inputs(_spec(), rows))
    for output in ran.outputs:
        assert len(output.accepted) == 4
        assert output.words.tolist() == rows[list(output.accepted)].sum(0).tolist()
        assert 3 not in output.accepted
        assert (output.weight_total, output.refused) == (4, {})
    assert len({tuple(openings(o)) for o in ran.outputs}) == 1


@pytest.mark.parametrize("rule", ["multi-krum", "mean", "median"])
def test_the_sketches_are_gone_before_anything_of_the_models_length_is_added_up(rule, monkeypatch):
    apply, sketches, left = Sketch.apply, [], {}

    def watched(sketch, shares):
        words = apply(sketch, shares)
        sketches.append(weakref.ref(words))
        return words

    monkeypatch.setattr(Sketch, "apply", watched)
    inputs = _inputs(_spec(rule=rule))

    def run(party, transport):
        def on_step(step):
            left[party, step] = sum(words() is not None for words in sketches)

        run_round(inputs[party], transport, on_step)

    assert not at_three_parties(run).errors
    assert len(sketches) == 3
    assert max(left[party, "check"] for party in PARTIES) > 0
    assert min(left[party, "filter"] for party in PARTIES) == 0


# ---- different inputs ---------------------------------------------------------------------------------------------


def _other_participant(given):
    first = replace(given.submissions[0], participant=given.submissions[1].participant)
    return replace(given, submissions=[first, *given.submissions[1:]])


DIFFERENCES = {
    "one submission fewer": lambda g: replace(g, submissions=g.submissions[:-1]),
    "another order": lambda g: replace(g, submissions=[*g.submissions[1:], g.submissions[0]]),
    "another manifest": lambda g: replace(
        g, submissions=[replace(g.submissions[0], manifest=ManifestDigest(b"\xff" * 32)), *g.submissions[1:]]
    ),
    "another participant": _other_participant,
    "another round": lambda g: replace(g, round=g.round + 1),
    "another attempt": lambda g: replace(g, attempt=g.attempt + 1),
    "another task": lambda g: replace(g, spec=replace(g.spec, min_accepted=3)),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_party_with_other_input_set_stops_before_opening(difference):
    inputs = _inputs(_spec())
    inputs[1] = DIFFERENCES[difference](inputs[1])
    ran = run_rounds(inputs)
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert ran.errors[0].party == ran.errors[2].party == 1
    assert "input set" in str(ran.errors[0])
    assert ran.opened == set()
    labels = {label.split(":")[0] for t in ran.transports for _, label, _ in t.received}
    assert labels == {"key", "agree/previous aggregate", "agree/input set"}


@pytest.mark.parametrize("dimension", [10, 9_000])
@pytest.mark.parametrize("slot", [0, 1, 2, 5])
def test_inconsistent_heavy_shares_are_named_before_anything_is_opened(dimension, slot):
    spec = _spec(dimension)
    inputs = _inputs(spec)
    holder = slot % 3  # the heavy share of slot s is share s mod 3, held by parties s mod 3 and the one before
    ran = run_rounds(with_changed_heavy_word(inputs, holder, slot, word=dimension - 1))
    pair = sorted((holder, (holder + 2) % 3))
    for party in pair:
        assert isinstance(ran.errors[party], PartyFault)
        assert f"slots [{slot}]" in str(ran.errors[party])
    assert ran.opened == set()


def test_inconsistent_weight_words_are_named_before_anything_is_opened():
    spec = _spec(10, max_weight=10)
    ran = run_rounds(with_changed_heavy_word(_inputs(spec), 1, 4, word=10))
    assert any("slots [4]" in str(error) for error in ran.errors.values())
    assert ran.opened == set()


# ---- wrong frames -------------------------------------------------------------------------------------------------


def _flipped(frame: Frame) -> Frame:
    return replace(frame, payload=bytes([frame.payload[0] ^ 1]) + frame.payload[1:])


@pytest.mark.parametrize("liar", PARTIES)
@pytest.mark.parametrize("name", ["valid", "enough_accepted", "accepted", "aggregate"])
def test_a_wrong_share_in_any_replicated_opening_is_caught(name, liar):
    """With public decisions the aggregate too is opened by shares that two parties computed."""
    transports = watched_transports()
    victim = (liar + 1) % 3
    transports[liar].change = lambda peer, f: (
        _flipped(f) if f.label.startswith(f"open/{name}:") and peer == victim else f
    )
    ran = run_rounds(_inputs(_spec()), transports)
    assert isinstance(ran.errors[victim], PartyFault)
    assert f"opening '{name}'" in str(ran.errors[victim])
    assert "nothing is released" in str(ran.errors[victim])


def test_a_party_whose_combination_is_wrong_is_caught_before_release():
    """It lies consistently, to both others, about its share of the aggregate."""
    transports = watched_transports()
    transports[0].change = lambda _, f: _flipped(f) if f.label.startswith("open/aggregate:") else f
    ran = run_rounds(_inputs(_spec()), transports)
    assert {p for p, e in ran.errors.items() if "same share but sent different" in str(e)} == {1, 2}


@pytest.mark.parametrize("label", ["coin/reveal", "coin/commit"])
def test_a_wrong_coin_names_the_party_and_opens_nothing(label):
    transports = watched_transports()
    transports[2].change = lambda _, f: _flipped(f) if f.label == label else f
    ran = run_rounds(_inputs(_spec()), transports)
    assert ran.errors[0].party == ran.errors[1].party == 2
    assert "another coin" in str(ran.errors[0])
    assert ran.opened == set()


@pytest.mark.parametrize("attack", ["replay", "reorder", "foreign", "truncated", "oversized"])
def test_a_wrong_frame_in_the_middle_ends_the_round_naming_the_party(attack):
    transports = watched_transports()
    kept: list[Frame] = []

    def change(peer: int, frame: Frame) -> Frame:
        if peer != 2:
            return frame
        kept.append(frame)
        if len(kept) != 30:
            return frame
        return {
            "replay": kept[-2],
            "reorder": replace(frame, sequence=frame.sequence + 1),
            "foreign": replace(frame, label="foreign"),
            "truncated": replace(frame, payload=frame.payload[:-1]),
            "oversized": replace(frame, payload=frame.payload + b"\0"),
        }[attack]

    transports[0].change = change
    ran = run_rounds(_inputs(_spec()), transports)
    assert isinstance(ran.errors[2], PartyFault)
    assert ran.errors[2].party == 0
    assert "aggregate" not in ran.opened


def test_a_silent_party_is_named_and_the_others_end(monkeypatch):
    transports = watched_transports()
    for transport in transports:
        transport._seconds = 0.5
    put = transports[1]._put
    sent: list[Frame] = []

    def silent_after_ten(peer, frame):
        sent.append(frame)
        if len(sent) <= 10:
            put(peer, frame)

    monkeypatch.setattr(transports[1], "_put", silent_after_ten)
    ran = run_rounds(_inputs(_spec()), transports)
    assert set(ran.errors) == {0, 1, 2}
    assert 1 in {getattr(ran.errors[p], "party", None) for p in (0, 2)}


# ---- nothing secret in what a failed round says -------------------------------------------------------------------


def test_errors_and_outputs_print_no_words():
    inputs = _inputs(_spec())
    shown = repr(inputs) + repr(inputs[0].submissions[0].shares)
    for submission in inputs[0].submissions:
        for held in submission.shares.word(0):
            assert str(held) not in shown


def test_the_input_set_digest_depends_on_everything_it_names():
    given = _inputs(_spec())[0]
    changes = [change for name, change in DIFFERENCES.items() if name != "another attempt"]  # the same set again
    digests = {change(given).set_digest() for change in changes} | {given.set_digest()}
    assert len(digests) == len(changes) + 1


def test_steps_are_told_in_the_words_and_order_of_the_protocol():
    inputs, steps = _inputs(_spec()), {p: [] for p in PARTIES}
    at_three_parties(lambda party, transport: run_round(inputs[party], transport, steps[party].append))
    assert steps[0] == steps[1] == steps[2] == ["seal", "coin", "sketch", "check", "gram", "filter", "combine"]


# ---- traffic ------------------------------------------------------------------------------------------------------


def _bytes_sent(n: int, d: int, rule: str) -> int:
    options = {"num_nodes_to_select": n - 1} if rule == "multi-krum" else {}
    spec = task(d, rule, decisions="hidden", max_participants=64, rule_options=options)
    ran = run_rounds(round_inputs(spec, rows_around(n, d, seed=n)))
    assert not ran.errors
    return sum(t.traffic.bytes_sent for t in ran.transports)


def test_traffic_grows_with_the_dimension_once_not_once_per_participant():
    """Public weights: a word an entry and party. Secret ones: a word to each of both others. Whatever n is."""
    for n in (4, 16):
        slopes = [(_bytes_sent(n, d, "mean") - _bytes_sent(n, 10_000, "mean")) / (d - 10_000) for d in (20_000, 40_000)]
        assert slopes == pytest.approx([3 * 8] * 2, abs=1)
    for n in (4, 16):
        slope = (_bytes_sent(n, 40_000, "norm-clip") - _bytes_sent(n, 10_000, "norm-clip")) / 30_000
        assert slope == pytest.approx(6 * 8, abs=1)


@pytest.mark.parametrize(("rule", "power"), [("mean", 1), ("norm-clip", 2), ("multi-krum", 3)])
def test_traffic_of_the_filter_is_a_polynomial_in_the_participants_without_the_dimension(rule, power):
    """mean: n; norm-clip ranks one row of n; multi-krum ranks n rows of n, n^2 (n - 1) / 2 comparisons of 25 bytes."""
    d = 100
    measured = {n: _bytes_sent(n, d, rule) for n in (6, 12, 18, 30)}
    fitted = np.polyfit(list(measured), list(measured.values()), power)
    assert np.abs(np.polyval(fitted, 24) / _bytes_sent(24, d, rule) - 1) < 0.02
    assert [_bytes_sent(6, e, rule) - measured[6] for e in (200, 1100)] == [
        per_entry * 8 * (e - d) for per_entry, e in zip([3 if rule == "mean" else 6] * 2, (200, 1100), strict=True)
    ]
