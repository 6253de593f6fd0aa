"""The validity check in the 32-bit ring: what wraps mod 2^32, in an entry, a bucket or a lifted word, is refused."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
import torch
from round_parties import in_sessions

from triskele.task import FRACTION_BITS, SKETCHED_BITS
from triskele_server.linear.shares import WordShare
from triskele_server.linear.sketch import CHECK_BUCKETS, CHECK_WORDS, GRAM_BUCKETS, Sketch
from triskele_server.mpc.lifting import lift
from triskele_server.mpc.session import Session, Shares
from triskele_server.party import validity

SHORT, LONG = 500, 9_000
MIN = -(1 << 31)


def _narrow(words: np.ndarray) -> np.ndarray:
    return np.asarray(words, np.int64).astype(np.int32)


def _shares(words: np.ndarray) -> list[np.ndarray]:
    a, b = (np.frombuffer(secrets.token_bytes(words.nbytes), np.int32).reshape(words.shape) for _ in range(2))
    return [a, b, words - a - b]


def _valid(words: np.ndarray, fraction_bits: int = 20, buckets: int = CHECK_BUCKETS, weights=None, max_weight=0):
    """The opened bits for rows of int32 words, as a round finds them: sketched, lifted, folded, checked."""
    sketch = Sketch(secrets.token_bytes(32), words.shape[1], buckets)
    parts = [sketch.apply([WordShare(row) for row in part]) for part in _shares(words)]
    columns = None if weights is None else _shares(_narrow(weights))

    def run(session: Session) -> list[bool]:
        def lifted(p: list[np.ndarray]) -> Shares:
            return lift(session, Shares(*(torch.from_numpy(p[(session.party + k) % 3].copy()) for k in (0, 1))))

        wide = lifted(parts)
        folded = Shares(*(torch.from_numpy(sketch.folded(z.numpy())) for z in (wide.first, wide.second)))
        mine = None if columns is None else lifted(columns)
        return validity.check(session, sketch, folded, mine, max_weight, fraction_bits=fraction_bits).tolist()

    ran = in_sessions(run, declared=["valid"])
    assert not ran.errors
    assert ran.results[0] == ran.results[1] == ran.results[2]
    return ran.results[0]


def _honest(dimension: int, norm: float, fraction_bits: int = 20, seed: int = 1) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=dimension)
    return _narrow(np.round(row / np.linalg.norm(row) * norm * 2**fraction_bits))


@pytest.mark.parametrize("fraction_bits", [12, 20])
@pytest.mark.parametrize("dimension", [1, SHORT, CHECK_WORDS, LONG])
def test_honest_rows_up_to_the_clip_norm_are_valid(dimension, fraction_bits):
    spike = np.zeros(dimension, np.int32)
    spike[-1] = -(1 << fraction_bits)
    norms = (_honest(dimension, norm, fraction_bits) for norm in (0, 0.5, 1.0))
    assert all(_valid(np.repeat(np.stack([*norms, spike]), 4, 0), fraction_bits))


@pytest.mark.parametrize(("buckets", "fraction_bits"), [(CHECK_BUCKETS, 20), (GRAM_BUCKETS, 20), (GRAM_BUCKETS, 14)])
@pytest.mark.parametrize("dimension", [SHORT, LONG])
def test_every_kind_of_row_made_to_wrap_is_invalid_among_honest_ones(dimension, buckets, fraction_bits):
    rng = np.random.default_rng(2)

    def entries(value: int, *places: int) -> np.ndarray:
        row = np.zeros(dimension, np.int64)
        row[list(places)] = value
        return row

    everywhere = rng.integers(MIN, -MIN, dimension)
    signs = rng.integers(0, 2, dimension) * 2 - 1
    honest = _honest(dimension, 1.0, fraction_bits)
    attacks = [
        entries(MIN, 0),  # 2^31, whose sign does not matter
        entries(-MIN - 1, dimension - 1),
        entries(MIN, 0, 1),  # pairs of it
        entries(MIN, 5, dimension // 2),
        entries(MIN, *range(0, dimension, 2)),
        entries(MIN, *range(dimension)),
        entries(1 << 30, 0, 1, 2, 3),  # four to a multiple of 2^32
        entries(1 << 30, *range(dimension)),
        entries(-(1 << 30), 3),
        entries(3 << 30, 3, 4),
        rng.integers(0, 4, dimension) << 30,  # multiples of 2^30
        rng.integers(0, 2, dimension) << 31,
        np.full(dimension, (1 << 32) // dimension),  # dense, and 2^32 in all
        np.full(dimension, (1 << 32) // dimension) * signs,
        np.full(dimension, (1 << 32) * 2048 // dimension),  # 2^32 in a bucket
        np.full(dimension, 1 << 29),
        np.full(dimension, (1 << 31) - 1),
        everywhere,
        everywhere | 1 << 31,
        np.full(dimension, 1 << fraction_bits + 4),
        np.full(dimension, (22 << fraction_bits) // 5) * signs,  # dense, of the largest entries that claim 2 allows
        entries((21 << fraction_bits) // 5, *range(60)),
        _honest(dimension, 1.3, fraction_bits).astype(np.int64) + entries(MIN, 1),
        honest.astype(np.int64) + entries(MIN, 1, 2),
        _honest(dimension, 1.3, fraction_bits),
        _honest(dimension, 5.0, fraction_bits),
    ]
    rows = np.stack([row for attack in attacks for row in (_narrow(attack), honest)])
    assert _valid(rows, fraction_bits, buckets) == [False, True] * len(attacks)


@pytest.mark.parametrize("value", [MIN, 1 << 30])
def test_many_pairs_that_cancel_where_they_meet_are_all_invalid(value):
    rng = np.random.default_rng(3)
    rows = np.tile(_honest(LONG, 0.9).astype(np.int64), (100, 1))
    for row in rows:
        row[rng.choice(LONG, 2 if value == MIN else 4, replace=False)] += value
    assert not any(_valid(_narrow(rows)))


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30) - 1, (1 << 31) - 1, MIN, 3 << 29, -(3 << 29)])
def test_words_that_lift_wrongly_are_out_of_range_for_any_shares(value):
    """Forty sharings of each, so that party 0 guesses the carry rightly and wrongly."""
    rows = np.zeros((40, 3), np.int32)
    rows[:, 1] = value
    for fraction_bits in (12, 20):
        assert not any(_valid(rows, fraction_bits))


def test_weights_outside_their_range_are_invalid():
    limit = (1 << 30) - 1
    for largest in (1, 999, limit):
        weights = [0, 1, largest, largest + 1, -1, MIN, 1 << 30, -(1 << 30), (1 << 31) - 1, MIN + largest]
        rows = np.tile(_honest(SHORT, 1.0), (len(weights), 1))
        expected = [True] * 3 + [False] * (len(weights) - 3)
        assert _valid(rows, weights=weights, max_weight=largest) == expected


def test_dense_sketches_that_wrap_in_every_bucket_are_as_rare_as_the_proof_says():
    """The bound of claim 3 in numbers, for the largest d 2^(2f) that a task may have."""
    beta = math.sqrt(4.84)  # of a bucket, in 2^f
    buckets = 4 * CHECK_BUCKETS
    for fraction_bits in range(1, FRACTION_BITS + 1):
        dimension = 1 << min(SKETCHED_BITS - 2 * fraction_bits, 27)
        entry = 2 * beta * 2.0**fraction_bits
        mean = dimension / CHECK_BUCKETS  # entries of a bucket
        most = max(10_000.0, 1.2 * mean)  # fewer but for a probability below e^-100 a bucket (Chernoff)
        excess = most / mean - 1
        assert mean * ((1 + excess) * math.log1p(excess) - excess) > 100
        reach = (2.0**32 - beta * 2.0**fraction_bits) ** 2 / (2 * most * entry**2)
        assert math.log2(2 * buckets) - reach * math.log2(math.e) < -44


def test_long_rows_of_allowed_entries_are_refused_and_unfolded_words_of_others_lift_rightly_as_the_proof_says():
    """The bounds of claim 4 in numbers; energies in units of 2^(2f)."""
    largest, count, blocks = 4 * 4.84, 4 * CHECK_BUCKETS, 4  # of an entry's square; of buckets; s
    for log_energy in range(14, 50):  # 2^27 entries of at most 4.4 have less than 2^32
        energy = 2.0**log_energy
        of_bucket, mean = energy / 53, energy / CHECK_BUCKETS
        fuller = math.log(count) + of_bucket / largest * math.log(math.e * mean / of_bucket)  # Chernoff, any bucket
        passing = -((blocks * (energy - 1.21)) ** 2) / (
            6 * of_bucket * blocks * energy
        )  # Maurer, given fuller is false
        assert math.log2(math.exp(fuller) + math.exp(passing)) < -44
    of_bucket = 2.0**14 / 53
    beyond = math.log(2 * 4 * GRAM_BUCKETS) - (2.0**30 / 2**FRACTION_BITS) ** 2 / (2 * of_bucket)  # Hoeffding, any word
    assert beyond < -1000
