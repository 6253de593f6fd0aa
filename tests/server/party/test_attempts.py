"""A party that dies in the middle of a round: the next attempt opens the same aggregate, or nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_parties import (
    Ran,
    WatchedTransport,
    earlier,
    round_inputs,
    rows_around,
    run_rounds,
    task,
    watched_transports,
)

from triskele.errors import PartyFault, PeerLost
from triskele.ids import PARTIES
from triskele_server.party.checkpoint import Decision, FileCheckpoints, MemoryCheckpoints
from triskele_server.party.coin_key import coin_key

N, D = 6, 12


def _inputs(rule: str = "flame", decisions: str = "hidden", **options):
    spec = task(D, rule, decisions=decisions, min_accepted=3, max_participants=16, **options)
    return round_inputs(spec, rows_around(N, D, seed=1, outliers=[2]))


def _again(inputs, attempt: int):
    return [replace(given, attempt=attempt) for given in inputs]


class _Dying(WatchedTransport):
    """A party that dies when it is about to send its frame number `last`."""

    last = 1 << 30

    def _put(self, peer, frame):
        self.last -= 1
        if self.last < 0:
            raise ConnectionAbortedError("killed")
        super()._put(peer, frame)


def _run_until_death(inputs, party: int, frames: int) -> Ran:
    transports = watched_transports()
    dying = _Dying(party, transports[0]._queues, 20.0)
    dying.last = frames
    transports[party] = dying
    return run_rounds(inputs, transports)


def _frames_sent(inputs) -> list[int]:
    ran = run_rounds(inputs)
    assert not ran.errors
    return [sum(t._sent.values()) for t in ran.transports]


def _opened_aggregate(ran: Ran) -> bool:
    return "aggregate" in ran.opened


@pytest.mark.parametrize("rule", ["flame", "norm-clip"])
def test_without_checkpoints_two_attempts_would_open_different_aggregates(rule):
    """The reason for all of this: rounding inside MPC differs from run to run."""
    first = run_rounds(_inputs(rule)).outputs[0].words.tolist()
    # As often as it takes: a half of the runs differ, so that twenty equal ones are no accident.
    assert any(run_rounds(_inputs(rule)).outputs[0].words.tolist() != first for _ in range(20))


def test_a_second_attempt_opens_the_same_words_bit_for_bit():
    inputs = _inputs()
    first = run_rounds(inputs).outputs[0]
    for attempt in (1, 2):
        again = run_rounds(_again(inputs, attempt)).outputs[0]
        assert again.words.tolist() == first.words.tolist()
        assert again.ledger.openings == first.ledger.openings
        assert (again.weight_total, again.coefficient_bits) == (first.weight_total, first.coefficient_bits)


@pytest.mark.parametrize("party", PARTIES)
def test_wherever_a_party_dies_the_next_attempt_ends_with_the_one_aggregate(party):
    last = _frames_sent(_inputs())[party]
    early = range(0, last, last // 5)
    died_after_opening = 0
    for frames in (*early, *range(last - 8, last + 1)):
        inputs = _inputs()
        first = _run_until_death(inputs, party, frames)
        assert frames >= last or party in first.errors
        second = run_rounds(_again(inputs, 1))
        words = second.outputs[0].words.tolist()
        for finished in first.results.values():
            assert finished.words.tolist() == words
        if _opened_aggregate(first):
            died_after_opening += 1
            assert second.opened == {"aggregate"}, "what was decided is not opened again"
    assert died_after_opening, "no case died between the decision and the end"


def test_the_survivors_hear_that_a_peer_is_lost_and_not_that_it_cheated():
    ran = _run_until_death(_inputs(), 1, 40)
    assert isinstance(ran.errors[0], PeerLost)
    assert isinstance(ran.errors[2], PeerLost)


@pytest.mark.parametrize("party", PARTIES)
def test_a_party_that_has_lost_a_final_decision_cannot_get_another_one(party):
    """It could otherwise have a second aggregate opened, and the difference is one participant's update."""
    inputs = _inputs()
    assert not run_rounds(inputs).errors
    inputs = _again(inputs, 1)
    inputs[party] = replace(inputs[party], checkpoints=MemoryCheckpoints())
    ran = run_rounds(inputs)
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert ran.errors[(party + 1) % 3].party == party
    assert not ran.opened


def test_a_decision_that_is_not_final_anywhere_is_dropped():
    inputs = _inputs()
    stale = MemoryCheckpoints()
    stale.keep_decision(Decision(0, (0,), (0,), True, ((1, 0),), None, 1, 0, None, ()))
    inputs[2] = replace(inputs[2], checkpoints=stale)
    ran = run_rounds(inputs)
    assert not ran.errors
    assert len(ran.outputs[0].ledger.openings) == 3


def test_the_coin_is_the_same_in_every_attempt_and_a_changed_part_of_it_ends_the_round():
    inputs = _inputs()
    coins = []
    for attempt in range(2):
        assert not run_rounds(_again(inputs, attempt)).errors
        coins.append(inputs[0].checkpoints.coin())
    assert coins[0] == coins[1]
    changed = _again(inputs, 2)
    changed[1] = replace(changed[1], coin_key=bytes(32))
    ran = run_rounds(changed)
    assert all(isinstance(error, PartyFault) for error in ran.errors.values())
    assert "coin" in str(ran.errors[0])
    assert not ran.opened


def test_another_input_set_has_another_coin():
    one, other = _inputs(), _inputs()
    fewer = [replace(g, submissions=g.submissions[:-1], coin_key=o.coin_key) for g, o in zip(one, other, strict=True)]
    run_rounds(other)
    run_rounds(fewer)
    assert other[0].checkpoints.coin() != fewer[0].checkpoints.coin()


class _Withholding(WatchedTransport):
    """A party that sends nothing under a label: it hears what the others say and keeps its own part to itself."""

    label = ""

    def _put(self, peer, frame):
        if not frame.label.startswith(self.label):
            super()._put(peer, frame)


def _withholding(inputs, party: int, label: str) -> Ran:
    transports = watched_transports()
    queues = transports[0]._queues
    transports = [WatchedTransport(p, queues, 2.0) for p in PARTIES]
    transports[party] = _Withholding(party, queues, 2.0)
    transports[party].label = label
    return run_rounds(inputs, transports)


def test_a_decision_that_was_taken_up_is_final_even_if_its_attempt_ends_without_an_answer():
    """A party could otherwise take the aggregate, say that it never had the decision, and get a second aggregate."""
    inputs = _inputs("norm-clip")
    assert _withholding(inputs, 2, "checkpoint/saved").errors  # all have written the decision down, it is final nowhere
    assert not any(given.checkpoints.decision()[1] for given in inputs[:2])
    taken = _withholding(_again(inputs, 1), 2, "open/aggregate")
    assert set(taken.errors) == {0, 1}
    assert 2 in taken.results, "party 2 has seen the aggregate"
    lying = _again(inputs, 2)
    lying[2] = replace(lying[2], checkpoints=MemoryCheckpoints())
    ran = run_rounds(lying)
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert not ran.opened


def test_a_decision_is_not_combined_with_another_previous_aggregate():
    """The difference of the two aggregates would be the reference's secret coefficient."""
    inputs = _inputs("centered-clip")
    before = np.arange(D, dtype=np.int64)
    assert not run_rounds([replace(given, previous=earlier(before)) for given in inputs]).errors
    ran = run_rounds([replace(given, previous=earlier(before + 1)) for given in _again(inputs, 1)])
    assert all(isinstance(ran.errors[p], PartyFault) for p in PARTIES)
    assert not ran.opened


def test_a_party_that_has_seen_the_others_parts_of_the_coin_cannot_choose_its_own_anew():
    inputs = _inputs()
    seen = _withholding(inputs, 2, "coin/reveal")
    assert set(seen.errors) == set(PARTIES)
    assert all(given.checkpoints.coin() is None for given in inputs[:2]), "nobody knows the coin yet"
    ground = _again(inputs, 1)
    ground[2] = replace(ground[2], coin_key=bytes(32), checkpoints=MemoryCheckpoints())
    ran = run_rounds(ground)
    assert isinstance(ran.errors[0], PartyFault)
    assert ran.errors[0].party == ran.errors[1].party == 2
    assert "coin/reveal" not in {label for t in ran.transports for peer, label, _ in t.received if peer != 2}
    assert not run_rounds(_again(inputs, 2)).errors, "with the part that it had committed to the round goes on"


@pytest.mark.parametrize("rule", ["mean", "centered-clip", "fltrust"])
def test_decisions_survive_on_disk(tmp_path, rule):
    inputs = _inputs(rule, "public", **({"root": "p00"} if rule == "fltrust" else {}))
    folders = [tmp_path / str(p) for p in PARTIES]
    for folder in folders:
        folder.mkdir()
    inputs = [replace(g, checkpoints=FileCheckpoints(f)) for g, f in zip(inputs, folders, strict=True)]
    first = run_rounds(inputs).outputs[0]
    fresh = [replace(g, attempt=1, checkpoints=FileCheckpoints(f)) for g, f in zip(inputs, folders, strict=True)]
    again = run_rounds(fresh).outputs[0]
    assert np.array_equal(again.words, first.words)
    assert again.accepted == first.accepted
    assert {path.name for path in folders[0].iterdir()} == {"commitments", "coin", "decision.final"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folders[0].iterdir())


def test_the_coin_key_is_made_once_and_private(tmp_path):
    key = coin_key(tmp_path)
    assert len(key) == 32
    assert coin_key(tmp_path) == key
    assert (tmp_path / "coin.key").stat().st_mode & 0o777 == 0o600


def test_nothing_secret_shows_when_inputs_and_decisions_are_printed():
    given = _inputs()[0]
    assert given.coin_key.hex() not in repr(given)
    assert str(list(given.coin_key)) not in repr(given)
    secret = Decision(1, (0,), (0,), False, ((123456789, 2),), (987654321, 4), 1, 26, None, ())
    assert "123456789" not in repr(secret)
    assert "987654321" not in repr(secret)
    assert Decision.from_json(secret.to_json()) == secret
