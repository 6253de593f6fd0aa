"""Lifting from Z_{2^32} to Z_{2^64}: right below 2^30, never into that range beyond it, and it tells nobody a value."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from three_parties import Recording, at_three_parties, reconstruct, transports_of

from triskele.ids import PARTIES
from triskele_server.mpc import lifting
from triskele_server.mpc.session import Session, Shares

LIMIT, HALF = 1 << 30, 1 << 31
EDGES = [0, 1, -1, 2, LIMIT - 1, -LIMIT, LIMIT, -LIMIT - 1, LIMIT + 1, HALF - 1, -HALF, 3 << 29, -(3 << 29)]
CORNERS = [0, 1, -1, LIMIT, -LIMIT, LIMIT - 1, HALF - 1, -HALF, -HALF + 1]  # of shares


def _random(count: int) -> np.ndarray:
    return np.frombuffer(secrets.token_bytes(4 * count), np.int32)


def _lifted(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What int32 `values` become, with shares 0 and 1 given."""
    with np.errstate(over="ignore"):
        parts = [first, second, (values - first - second).astype(np.int32)]
    shares = [Shares(*(torch.from_numpy(parts[(i + k) % 3].copy()) for k in (0, 1))) for i in PARTIES]
    return reconstruct(at_three_parties(lambda s: lifting.lift(s, shares[s.party]))).numpy()


def _check(values: np.ndarray, lifted: np.ndarray) -> None:
    small = (values >= -LIMIT) & (values < LIMIT)
    assert np.array_equal(lifted[small], values[small])
    assert ((lifted[~small] >= LIMIT) | (lifted[~small] < -LIMIT)).all()
    assert np.array_equal(lifted.astype(np.int32), values)  # congruent mod 2^32


def test_small_values_are_lifted_whatever_the_shares_and_others_stay_out_of_their_range():
    values, first, second = (
        grid.reshape(-1).astype(np.int32)
        for grid in np.meshgrid(np.array(EDGES), np.array(CORNERS), np.array(CORNERS), indexing="ij")
    )
    lifted = _lifted(values, first, second)
    _check(values, lifted)
    # Both wrongly guessed and rightly guessed carries occur among the values out of range.
    assert {-1, 0} <= set(((lifted - values) >> 32).tolist())


def test_random_values_with_random_shares(monkeypatch):
    monkeypatch.setattr(lifting, "_PIECE", 700)  # so that there are several, and the last is shorter
    values = _random(5000).copy()
    values[::2] >>= 1
    _check(values, _lifted(values, _random(5000), _random(5000)))


def test_two_dimensions_and_no_values():
    values = np.arange(-6, 6, dtype=np.int32)
    for shape in [(3, 4), (0, 4)]:
        taken = values[: int(np.prod(shape))].reshape(shape)
        zeros = np.zeros(shape, np.int32)
        assert np.array_equal(_lifted(taken, zeros + 7, zeros - 9), taken)


def test_a_lift_takes_one_round_behind_party_0_and_the_bytes_that_are_documented():
    values = torch.zeros(100, dtype=torch.int32)

    def run(session: Session) -> tuple[int, int]:
        traffic = session.transport.traffic
        before = traffic.rounds, traffic.bytes_sent
        lifting.lift(session, Shares(values, values))
        return traffic.rounds - before[0], traffic.bytes_sent - before[1]

    # Party 0 deals two words and waits for nobody.
    assert at_three_parties(run) == [(0, 800), (1, 400), (1, 400)]


def test_no_more_pieces_than_that_are_under_way(monkeypatch):
    """With 1,000 submissions all of them together held 100 MB."""
    monkeypatch.setattr(lifting, "_PIECE", 100)
    monkeypatch.setattr(lifting, "_AHEAD", 3)
    begin, under_way, most = lifting.begin_pool, dict.fromkeys(PARTIES, 0), dict.fromkeys(PARTIES, 0)

    def watched(session, *rest, **how):
        finish = begin(session, *rest, **how)
        under_way[session.party] += 1
        most[session.party] = max(most[session.party], under_way[session.party])

        def finished():
            under_way[session.party] -= 1
            return finish()

        return finished

    monkeypatch.setattr(lifting, "begin_pool", watched)
    values = torch.arange(1050, dtype=torch.int32)

    def run(session: Session) -> tuple[Shares, int]:
        lifted = lifting.lift(session, Shares(values, values))
        return lifted, session.transport.traffic.rounds

    results = at_three_parties(run)
    assert torch.equal(reconstruct([lifted for lifted, _ in results]), 3 * values.long())
    assert (most, under_way) == (dict.fromkeys(PARTIES, 3), dict.fromkeys(PARTIES, 0))
    assert results[1][1] - results[0][1] == 4  # eleven pieces: three, three, three, two


@pytest.mark.parametrize("value", [0, 12345, -(1 << 30), (1 << 31) - 1])
def test_what_a_party_receives_is_uniform_whatever_the_value(value):
    """The mean of every bit that arrives, over 20,000 lifts of one value: a half, within six standard deviations."""
    count = 20_000
    transports = transports_of(Recording)
    values = np.full(count, value, np.int32)
    first, second = _random(count), _random(count)
    with np.errstate(over="ignore"):
        parts = [first, second, values - first - second]
    shares = [Shares(*(torch.from_numpy(parts[(i + k) % 3].copy()) for k in (0, 1))) for i in PARTIES]
    at_three_parties(lambda s: lifting.lift(s, shares[s.party]), transports=transports)
    seen = 0
    for transport in transports:
        for _, frame in transport.frames:
            if "lift" in frame.label:
                words = np.frombuffer(frame.payload, np.uint32)
                bits = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1).mean(0)
                assert np.abs(bits - 0.5).max() < 6 * 0.5 / len(words) ** 0.5
                seen += 1
    assert seen == 3
