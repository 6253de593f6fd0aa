"""Truncated products: right on the whole range they claim, cheap, and nothing that travels depends on the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from three_parties import Recording, at_three_parties, on_shares, random_words, reconstruct, transports_of

from triskele_server.mpc import truncation
from triskele_server.mpc.session import Session

HALF_RANGE = [0, 1, -1, (1 << 62) - 1, -(1 << 62), -(1 << 62) + 1, 1 << 61, -(1 << 61), (1 << 31) + 5, -(1 << 31) - 5]


@pytest.mark.parametrize("bits", [1, 2, 7, 20, 33, 52, 61, 62])
def test_a_truncated_product_errs_by_less_than_a_unit_on_the_whole_range(bits):
    entries = torch.cat([torch.tensor(HALF_RANGE), random_words((3000,)) >> 1])
    ones = torch.ones_like(entries)
    result = on_shares(lambda s, x, one: truncation.multiply_truncated(s, x, one, bits), entries, ones)
    for got, word in zip(result.tolist(), entries.tolist(), strict=True):
        # Never below the floor, and one above it at most: the large error of local truncation does not occur.
        assert got - (word >> bits) in (0, 1)


def test_factors_of_both_signs_and_broadcast_shapes():
    rng = np.random.default_rng(5)
    x, y = (torch.from_numpy(rng.integers(-(1 << 30), 1 << 30, shape)) for shape in [(40, 1), (50,)])
    result = on_shares(lambda s, a, b: truncation.multiply_truncated(s, a, b, 31), x, y)
    assert torch.isin(result - (x * y >> 31), torch.tensor([0, 1])).all()


def test_truncation_of_a_product_has_no_bias_beyond_its_last_bit():
    bits, count = 12, 200_000
    entries = torch.from_numpy(np.random.default_rng(6).integers(-(1 << 61), 1 << 61, count))
    ones = torch.ones_like(entries)
    result = on_shares(lambda s, x, one: truncation.multiply_truncated(s, x, one, bits), entries, ones)
    error = (result - (entries >> bits)).double() - (entries & ((1 << bits) - 1)).double() / (1 << bits)
    assert abs(float(error.mean()) - 2.0**-bits) < 5 * 0.41 / count**0.5  # standard deviation of an error: 6^-1/2


def test_a_word_is_added_to_the_quotient():
    x, y = torch.tensor([7 << 20, -(5 << 20), 0]), torch.tensor([3, (1 << 63) - 5, -(1 << 63)])
    result = on_shares(lambda s, a, b: truncation.multiply_truncated(s, a, a, 20, plus=b.first), x, y)
    assert torch.isin(result - y - (x * x >> 20), torch.tensor([0, 1])).all()


@pytest.mark.parametrize("word", [0, (1 << 62) - 1, -(1 << 62)])
def test_what_a_party_receives_is_uniform_whatever_the_value(word):
    """The parts are not masked beforehand here: party 0 has the whole value, the others have zero."""
    count = 20_000
    transports = transports_of(Recording)

    def run(session: Session):
        part = torch.full((count,), word if session.party == 0 else 0, dtype=torch.int64)
        return truncation.reshare_truncated(session, part, 20)

    at_three_parties(run, transports=transports)
    part_of = {}
    for party, transport in enumerate(transports):
        for sender, frame in transport.frames:
            if frame.label.startswith(("part", "shift")):
                received = np.frombuffer(frame.payload, np.int64)
                _assert_uniform(received)
                part_of.setdefault((frame.label.split(":")[0], int(sender), party), []).append(received)
    exchanged = {(label, sender, 3 - sender) for label in ("part", "shift") for sender in (1, 2)}
    assert set(part_of) == exchanged | {("part", 0, 2), ("shift", 0, 2), ("shift-top", 0, 2)}
    # What parties 1 and 2 both know in the end.
    for label in ("part", "shift"):
        _assert_uniform(part_of[label, 1, 2][0] + part_of[label, 2, 1][0])


def _assert_uniform(words: np.ndarray) -> None:
    """Every bit is set half of the time, within six standard deviations."""
    ones = (words[:, None] >> np.arange(64) & 1).mean(0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / len(words) ** 0.5


def test_a_truncated_product_takes_two_exchanges_of_parties_1_and_2():
    def run(session: Session) -> tuple[int, int]:
        traffic = session.transport.traffic
        rounds, sent = traffic.rounds, traffic.bytes_sent
        truncation.reshare_truncated(session, torch.zeros(1000, dtype=torch.int64), 20)
        return traffic.rounds - rounds, traffic.bytes_sent - sent

    assert at_three_parties(run) == [(0, 24_000), (2, 16_000), (2, 16_000)]


def test_shares_of_the_same_quotient_are_new_every_time():
    def run(session: Session):
        part = torch.ones(50, dtype=torch.int64) << 40
        return [truncation.reshare_truncated(session, part, 20) for _ in range(2)]

    results = at_three_parties(run)
    for once, again in results:
        assert not (once.first == again.first).any()
    once, again = (reconstruct([r[k] for r in results]) for k in range(2))
    assert torch.equal(once >> 20, again >> 20)
