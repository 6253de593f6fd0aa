"""Under `release = "participants"` the parties open the aggregate under a mask that no one of them can take off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_parties import ONE, earlier, openings, participant, round_inputs, rows_around, run_rounds, task

from triskele.errors import PartyFault
from triskele.ids import PARTIES, RoundNumber, ShareIndex
from triskele.release_mask import add_mask, remove_masks
from triskele_server.mpc.session import Session
from triskele_server.party import round as round_module
from triskele_server.simulate import unmasked

N, D = 7, 96
RULES = {  # one of each way to the aggregate: shares that two parties compute, additive parts, blocks of coordinates
    "mean": {},
    "multi-krum": {"rule_options": {"num_malicious_nodes": 1, "num_nodes_to_select": 4}},
    "hidden multi-krum": {"decisions": "hidden", "rule_options": {"num_malicious_nodes": 1, "num_nodes_to_select": 4}},
    "fltrust": {"root": participant(N - 1)},
    "centered-clip": {"rule_options": {"tau": 0.25}},
    "median": {},
}


def _ran(name: str, seed: int = 1, **changes):
    spec = task(D, name.rsplit(maxsplit=1)[-1], release="participants", **RULES[name])
    rows = rows_around(N, D, seed)
    return spec, rows, run_rounds([replace(given, **changes) for given in round_inputs(spec, rows)])


def _plain(name: str) -> np.ndarray:
    spec = task(D, name.rsplit(maxsplit=1)[-1], **RULES[name])
    output = run_rounds(round_inputs(spec, rows_around(N, D, 1))).outputs[0]
    return output.words / output.weight_total / 2.0**output.coefficient_bits


@pytest.mark.parametrize("name", RULES)
def test_the_three_keys_together_give_the_aggregate_that_a_public_release_gives(name):
    spec, _, ran = _ran(name)
    words = unmasked(ran.outputs, spec, RoundNumber(1))
    output = ran.outputs[0]
    assert np.abs(words / output.weight_total / 2.0**output.coefficient_bits - _plain(name)).max() < 32  # of 2^20


@pytest.mark.parametrize("name", RULES)
def test_the_ledger_and_the_frames_know_a_masked_aggregate_only(name):
    _, _, ran = _ran(name)
    assert openings(ran.outputs[0])[-1] == ("masked_aggregate", (D,))
    assert "aggregate" not in ran.opened


@pytest.mark.parametrize("name", RULES)
def test_each_key_is_held_by_two_parties_and_no_two_parts_of_the_mask_are_the_same(name):
    _, _, ran = _ran(name)
    held = [output.mask_keys for output in ran.outputs]
    for party in PARTIES:
        assert held[party][1] == held[(party + 1) % 3][0]
    assert len({key for keys in held for key in keys}) == 3
    assert all(key.hex() not in repr(output) for output in ran.outputs for key in held[0])


def _readings(words: np.ndarray) -> list[bytes]:
    """Sixteen entries of an aggregate, as anybody might keep them."""
    as_float = words / ONE
    kinds = [words.astype(t) for t in ("<i8", "<i4", ">i8")] + [as_float.astype(t) for t in ("<f8", "<f4", "<f2")]
    return [kind[8:24].tobytes() for kind in kinds]


@pytest.mark.parametrize("name", ["mean", "hidden multi-krum", "median"])
def test_nothing_that_a_party_receives_or_computes_from_its_own_keys_is_the_aggregate(name):
    spec, _, ran = _ran(name)
    plain = unmasked(ran.outputs, spec, RoundNumber(1))
    patterns = _readings(plain)
    for party in PARTIES:
        received = b"".join(payload for _, _, payload in ran.transports[party].received)
        assert not any(pattern in received for pattern in patterns)
        opened, keys = ran.outputs[party].words, ran.outputs[party].mask_keys
        for removed in ({party: keys[0]}, {(party + 1) % 3: keys[1]}, {party: keys[0], (party + 1) % 3: keys[1]}):
            attempt = opened.copy()
            remove_masks(attempt, {ShareIndex(k): v for k, v in removed.items()}, spec.digest, RoundNumber(1))
            assert np.abs(attempt / ONE).min() > 1000, "what is left of the mask is uniform words, far from any entry"


@pytest.mark.parametrize("name", ["mean", "median"])
def test_two_attempts_open_words_whose_difference_says_nothing(name):
    """The same aggregate under two masks: the difference is that of the masks, of which every party lacks a part."""
    spec = task(D, name, release="participants")
    inputs = round_inputs(spec, rows_around(N, D, 1))
    first, second = (run_rounds([replace(given, attempt=attempt) for given in inputs]).outputs for attempt in (1, 2))
    assert np.array_equal(unmasked(first, spec, RoundNumber(1)), unmasked(second, spec, RoundNumber(1)))
    assert not np.any(first[0].words == second[0].words)
    assert not {k for o in first for k in o.mask_keys} & {k for o in second for k in o.mask_keys}


def test_the_mask_belongs_to_its_task_round_and_index():
    spec, other = task(8), task(9)
    places = [(spec, 1, 0), (other, 1, 0), (spec, 2, 0), (spec, 1, 1)]
    drawn = []
    for where, number, index in places:
        words = np.zeros(8, np.int64)
        add_mask(words, b"\7" * 32, where.digest, RoundNumber(number), ShareIndex(index))
        drawn.append(words.tobytes())
    assert len(set(drawn)) == len(places)


@pytest.mark.parametrize("divisor", [1, 3, 7])
@pytest.mark.parametrize("bits", [0, 20])
@pytest.mark.parametrize("start", ["near", "far"])
def test_centered_clipping_starts_from_an_aggregate_that_no_party_can_read(divisor, bits, start):
    """The previous aggregate is shares: y' less the streams of the mask, divided inside MPC."""
    rows = rows_around(N, D, seed=1, outliers=[2])
    previous = {"near": rows[1] // 2, "far": -rows[1]}[start]
    spec = task(D, "centered-clip", rule_options={"tau": 0.25}, release="participants")
    keys = [bytes([k]) * 32 for k in range(3)]
    masked = previous * divisor << bits
    for index in range(3):
        add_mask(masked, keys[index], spec.digest, RoundNumber(1), ShareIndex(index))
    inputs = [
        replace(
            given,
            round=RoundNumber(2),
            previous=earlier(
                masked, weight_total=divisor, coefficient_bits=bits, keys=(keys[party], keys[(party + 1) % 3])
            ),
        )
        for party, given in enumerate(round_inputs(spec, rows))
    ]
    outputs = run_rounds(inputs).outputs
    words = unmasked(outputs, spec, RoundNumber(2))
    got = words / outputs[0].weight_total / 2.0 ** outputs[0].coefficient_bits
    steps = rows - previous
    lengths = np.sqrt((steps**2).sum(1, keepdims=True))
    expected = previous + (steps * np.minimum(1, 0.25 * ONE / np.maximum(lengths, 1))).mean(0)
    assert np.abs(got - expected).max() < 32  # of 2^20


@pytest.mark.parametrize("party", PARTIES)
def test_a_party_with_another_key_of_the_previous_mask_ends_the_round_before_anything_is_opened(party):
    rows = rows_around(N, D, seed=1)
    spec = task(D, "centered-clip", release="participants")
    keys = [bytes([k]) * 32 for k in range(3)]
    inputs = [
        replace(given, previous=earlier(rows[0], keys=(keys[p], keys[(p + 1) % 3])))
        for p, given in enumerate(round_inputs(spec, rows))
    ]
    wrong = (b"\7" * 32, inputs[party].previous.keys[1])
    inputs[party] = replace(inputs[party], previous=replace(inputs[party].previous, keys=wrong))
    ran = run_rounds(inputs)
    assert not ran.opened - {"valid"}
    assert any(isinstance(e, PartyFault) and "keys of the previous" in str(e) for e in ran.errors.values())


def test_one_party_with_another_mask_stream_is_caught_where_two_compute_a_share(monkeypatch):
    """It would hand out words that nobody can unmask."""
    opened = round_module.open_shares

    def opens(session, *rest):
        if session.party == 1:
            session.mask_keys = (b"\7" * 32, session.mask_keys[1])
        return opened(session, *rest)

    monkeypatch.setattr(round_module, "open_shares", opens)
    _, _, ran = _ran("mean")
    assert any("masked_aggregate" in str(error) for error in ran.errors.values())


@pytest.mark.parametrize("changed", [0, 1])
def test_a_party_with_another_mask_key_is_found_before_anything_is_opened(monkeypatch, changed):
    made = Session._agree_keys

    def agree(session, context):
        randomness, keys = made(session, context)
        other = (b"\7" * 32, keys[1]) if changed == 0 else (keys[0], b"\7" * 32)
        return randomness, other if session.party == 1 else keys

    monkeypatch.setattr(Session, "_agree_keys", agree)
    _, _, ran = _ran("mean")
    assert len(ran.errors) == 3
    holders = "parties 1 and 0" if changed == 0 else "parties 2 and 1"
    assert all(f"{holders} hold different keys of the mask" in str(error) for error in ran.errors.values())
