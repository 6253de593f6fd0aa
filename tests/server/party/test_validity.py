"""The validity check: honest submissions pass, whatever wraps or is too long does not."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from round_parties import ONE, in_sessions

from triskele_server.linear.shares import WordShare
from triskele_server.linear.sketch import CHECK_BUCKETS, CHECK_WORDS, GRAM_BUCKETS, Sketch
from triskele_server.mpc.session import Session, Shares
from triskele_server.party import validity

SHORT, LONG = 500, 9_000
MIN = -(1 << 63)


def _shares(words: np.ndarray) -> list[np.ndarray]:
    a, b = (np.frombuffer(secrets.token_bytes(words.nbytes), np.int64).reshape(words.shape) for _ in range(2))
    return [a, b, words - a - b]


def _valid(words: np.ndarray, weights=None, max_weight: int = 0, buckets: int = CHECK_BUCKETS) -> list[bool]:
    """The opened bits for rows of ring words (and weight words)."""
    sketch = Sketch(secrets.token_bytes(32), words.shape[1], buckets)
    parts = [sketch.folded(sketch.apply([WordShare(row) for row in part])) for part in _shares(words)]
    columns = None if weights is None else _shares(np.asarray(weights, np.int64))

    def run(session: Session) -> list[bool]:
        def pair(p: list[np.ndarray]) -> Shares:
            return Shares(*(torch.from_numpy(p[(session.party + k) % 3].copy()) for k in (0, 1)))

        mine = None if columns is None else pair(columns)
        return validity.check(session, sketch, pair(parts), mine, max_weight).tolist()

    ran = in_sessions(run, declared=["valid"])
    assert not ran.errors
    assert ran.results[0] == ran.results[1] == ran.results[2]
    return ran.results[0]


def _honest(dimension: int, norm: float, seed: int = 1) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=dimension)
    return np.round(row / np.linalg.norm(row) * norm * ONE).astype(np.int64)


@pytest.mark.parametrize("dimension", [1, 2, SHORT, CHECK_WORDS, CHECK_WORDS + 1, LONG])
def test_honest_rows_up_to_the_clip_norm_are_valid(dimension):
    spike = np.zeros(dimension, np.int64)
    spike[-1] = -ONE
    rows = np.stack([np.zeros(dimension, np.int64), _honest(dimension, 0.5), _honest(dimension, 1.0), spike])
    assert all(_valid(np.repeat(rows, 5, 0)))


@pytest.mark.parametrize("buckets", [CHECK_BUCKETS, GRAM_BUCKETS])
@pytest.mark.parametrize("dimension", [SHORT, LONG])
def test_every_kind_of_wrapping_or_long_row_is_invalid_among_honest_ones(dimension, buckets):
    rng = np.random.default_rng(2)
    zero = np.zeros(dimension, np.int64)

    def entries(value: int, *places: int) -> np.ndarray:
        row = zero.copy()
        row[list(places)] = value
        return row

    everywhere = rng.integers(MIN, -MIN, dimension, dtype=np.int64)
    attacks = [
        entries(1 << 32, 3),
        entries(-(1 << 32), 3),
        entries(MIN, 0),
        entries(-MIN - 1, dimension - 1),
        entries(MIN, 0, 1),
        entries(MIN, 5, dimension // 2),
        entries(MIN, *range(0, dimension, 2)),
        entries(-MIN - 1, 7, 8),
        entries(1 << 62, 0, 1, 2, 3),
        np.full(dimension, MIN),
        np.full(dimension, 1 << 31),
        everywhere,
        everywhere | MIN,
        _honest(dimension, 1.3),
        _honest(dimension, 1.3) + entries(MIN, 1),
        _honest(dimension, 5.0),
        np.full(dimension, 1 << 24),
    ]
    rows = np.stack([row for attack in attacks for row in (attack, _honest(dimension, 1.0))])
    assert _valid(rows, buckets=buckets) == [False, True] * len(attacks)


@pytest.mark.parametrize("dimension", [SHORT, LONG])
def test_many_pairs_of_2_63_at_random_places_are_all_invalid(dimension):
    rng = np.random.default_rng(3)
    rows = np.tile(_honest(dimension, 0.9), (150, 1))
    for row in rows:
        row[rng.choice(dimension, 2, replace=False)] += MIN
    assert not any(_valid(rows))


@pytest.mark.parametrize("max_weight", [1, 100, (1 << 32) - 1])
def test_weights_outside_their_range_are_invalid(max_weight):
    weights = [0, 1, max_weight, max_weight + 1, -1, MIN, MIN + max_weight, -MIN - 1, MIN + 1, -max_weight, 1 << 62]
    rows = np.tile(_honest(SHORT, 1.0), (len(weights), 1))
    assert _valid(rows, weights, max_weight) == [True] * 3 + [False] * (len(weights) - 3)


def test_a_long_row_cannot_hide_behind_a_good_weight_nor_the_other_way():
    rows = np.stack([_honest(SHORT, 1.3), _honest(SHORT, 1.0), _honest(SHORT, 1.0)])
    assert _valid(rows, [1, 2, 1], 1) == [False, False, True]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [1, 1 << 24, 1 << 40, 1 << 62, -MIN - validity.PROJECTION_BOUND])
def test_the_projection_bound_holds_on_both_sides_of_the_ring(sign, offset):
    """One entry at the edge of 2T and beyond: its projection on 64 vectors leaves [-T, T] unless all are zero."""
    value = sign * (2 * validity.PROJECTION_BOUND + offset) if offset != -MIN - validity.PROJECTION_BOUND else MIN
    rows = np.zeros((20, 3), np.int64)
    rows[:, 1] = value
    assert not any(_valid(rows))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_projection_may_be_t_on_either_side_and_no_more(sign, monkeypatch):
    """Each side of the bound by itself: one projection that reads one entry, and a norm bound out of the way."""
    monkeypatch.setattr(Sketch, "projections", lambda self, count: np.eye(1, 3, 1, dtype=np.int8))
    monkeypatch.setattr(validity, "NORM_SLACK_PERCENT", 1 << 20)
    rows = np.zeros((5, 3), np.int64)
    rows[:, 1] = [0, 1, sign * validity.PROJECTION_BOUND, sign * (validity.PROJECTION_BOUND + 1), sign * (1 << 25)]
    assert _valid(rows) == [True, True, True, False, False]


def test_bounded_entries_cannot_wrap_the_sum_of_squares():
    """The bound that the proof needs: K words of 2T each."""
    assert CHECK_WORDS * (2 * validity.PROJECTION_BOUND) ** 2 < 1 << 63


def test_one_word_under_the_norm_bound_is_valid_and_over_it_is_not():
    """d = 1 is its own sketch, so the bound is exact: 1.1 C."""
    largest = int((1.21 * 2**40) ** 0.5)
    assert largest**2 <= 121 * 2**40 // 100 < (largest + 1) ** 2
    assert _valid(np.array([[largest], [-largest], [largest + 1], [-largest - 1]])) == [True, True, False, False]


def test_the_check_opens_its_bits_and_nothing_else():
    words = np.zeros((2, 4), np.int64)
    sketch = Sketch(bytes(32), 4, CHECK_BUCKETS)
    parts = _shares(words)

    def run(session: Session) -> list[str]:
        pair = Shares(*(torch.from_numpy(parts[(session.party + k) % 3].copy()) for k in (0, 1)))
        validity.check(session, sketch, pair, None, 0)
        return [str(o) for o in session.ledger.openings]

    assert in_sessions(run, declared=["valid"]).results[0] == ["valid[2]"]
