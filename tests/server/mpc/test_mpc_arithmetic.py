"""Arithmetic shares: products, conversions and truncation are right on the whole range they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_parties import MAX, MIN, at_three_parties, on_shares, random_words, reconstruct, share, share_bits

from triskele_server.mpc import arithmetic, boolean
from triskele_server.mpc.session import Session, Shares

EDGES = [0, 1, -1, 2, -2, MAX, MIN, MIN + 1, 1 << 62, -(1 << 62), (1 << 32) - 1, -(1 << 32)]
HALF_RANGE = [0, 1, -1, (1 << 62) - 1, -(1 << 62), -(1 << 62) + 1, 1 << 61, -(1 << 61), (1 << 31) + 5, -(1 << 31) - 5]
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.lists(st.integers(MIN, MAX), min_size=1, max_size=6)


def test_shares_of_a_public_tensor_add_up_to_it():
    public = torch.tensor(EDGES)
    result = at_three_parties(lambda s: arithmetic.constant(s, public))
    assert torch.equal(reconstruct(result), public)


@few
@given(words)
def test_product_is_the_product_mod_2_64(entries):
    x, y = torch.tensor(entries), torch.tensor(entries[::-1])
    assert torch.equal(on_shares(arithmetic.multiply, x, y), x * y)


def test_product_of_all_pairs_of_edge_values():
    x = torch.tensor(EDGES)
    product = on_shares(arithmetic.multiply, x.unsqueeze(0), x.unsqueeze(1))
    assert torch.equal(product, x.unsqueeze(0) * x.unsqueeze(1))


def test_matrix_product_is_the_product_mod_2_64():
    x, y = random_words((5, 7)), random_words((7, 3))
    assert torch.equal(on_shares(arithmetic.matmul, x, y), x @ y)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (3, 2)])
def test_products_of_any_shape(shape):
    x, y = random_words(shape), random_words(shape)
    assert torch.equal(on_shares(arithmetic.multiply, x, y), x * y)


def test_bits_become_words():
    bits = torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8)
    shared = share_bits(bits)
    result = at_three_parties(lambda s: arithmetic.bit_to_word(s, shared[s.party]))
    assert reconstruct(result).tolist() == bits.tolist()


def test_a_public_linear_map_of_bits_travels_as_its_result_only():
    bits = torch.from_numpy(np.random.default_rng(1).integers(0, 2, 100).astype(np.uint8))
    shared = share_bits(bits)

    def run(session: Session) -> tuple[Shares, int]:
        before = session.transport.traffic.bytes_sent
        total = arithmetic.bit_to_word(session, shared[session.party], combine=lambda part: part.sum(0))
        return total, session.transport.traffic.bytes_sent - before

    results = at_three_parties(run)
    assert int(reconstruct([total for total, _ in results])) == int(bits.sum())
    assert [sent for _, sent in results] == [100 * 8, 8, 8]


@pytest.mark.parametrize("bits", [1, 2, 7, 20, 33, 52, 61, 62])
def test_truncation_errs_by_at_most_one_unit_on_the_whole_range(bits):
    entries = torch.cat([torch.tensor(HALF_RANGE), random_words((3000,)) >> 1])
    result = on_shares(lambda s, x: arithmetic.truncate(s, x, bits), entries)
    for got, given_word in zip(result.tolist(), entries.tolist(), strict=True):
        # Never below the floor, and one above it at most: the large error of local truncation does not occur.
        assert got - (given_word >> bits) in (0, 1)


def test_truncation_has_no_bias_beyond_its_last_bit():
    """The expected error is 2^-bits of a unit, from values whose low bits are all zero."""
    bits, count = 12, 200_000
    entries = torch.from_numpy(np.random.default_rng(2).integers(-(1 << 61), 1 << 61, count))
    result = on_shares(lambda s, x: arithmetic.truncate(s, x, bits), entries)
    remainder = (entries & ((1 << bits) - 1)).double() / (1 << bits)
    error = (result - (entries >> bits)).double() - remainder
    assert abs(float(error.mean()) - 2.0**-bits) < 5 * 0.41 / count**0.5  # standard deviation of an error: 6^-1/2
    assert abs(float(error.std()) - 6**-0.5) < 0.01


@pytest.mark.parametrize("bits", [1, 2, 7, 20, 33, 52, 61, 62])
def test_floor_shift_is_exact_on_the_whole_range(bits):
    multiples = torch.arange(-3, 4) << min(bits, 60)
    entries = torch.cat([torch.tensor(HALF_RANGE), multiples, multiples - 1, random_words((1000,)) >> 1])
    result = on_shares(lambda s, x: boolean.floor_shift(s, x, bits), entries)
    assert result.tolist() == [word >> bits for word in entries.tolist()]


def test_shares_of_the_same_product_are_new_every_time():
    """A product's shares are masked: the same factors never give the same share twice."""
    x = share(torch.ones(50, dtype=torch.int64))

    def run(session: Session) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (arithmetic.multiply(session, x[session.party], x[session.party]) for _ in range(2))
        return a.first, b.first

    for once, again in at_three_parties(run):
        assert not (once == again).any()


def test_zero_sharings_add_up_to_zero_and_never_repeat():
    def run(session: Session) -> list[torch.Tensor]:
        return [session.randomness.zero_sum((64,)) for _ in range(3)]

    parts = at_three_parties(run)
    for draw in range(3):
        assert not (parts[0][draw] + parts[1][draw] + parts[2][draw]).any()
    drawn = torch.cat([draw for party in parts for draw in party])
    assert len(set(drawn.tolist())) == len(drawn)


def test_each_pairwise_key_is_known_to_two_parties_and_streams_stay_in_step():
    """Draws of every kind, then what party i and i + 1 draw together must be equal, and unlike any other pair's."""

    def run(session: Session) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (3,)
        boolean.negative(session, arithmetic.constant(session, torch.ones(shape, dtype=torch.int64)))
        arithmetic.deal(session, "v", torch.ones(shape, dtype=torch.int64) if session.party == 0 else None,
                        torch.empty(shape, dtype=torch.int64))  # fmt: skip
        boolean.negative(session, arithmetic.constant(session, torch.ones(boolean.ROTATED, dtype=torch.int64)))
        session.randomness.zero_sum(shape)
        return session.randomness.with_previous((4,), torch.int64), session.randomness.with_next((4,), torch.int64)

    drawn = at_three_parties(run)
    for party in range(3):
        assert torch.equal(drawn[party][1], drawn[(party + 1) % 3][0])
    assert len({tuple(with_next.tolist()) for _, with_next in drawn}) == 3


def test_no_two_sessions_share_a_key():
    drawn = [at_three_parties(lambda s: s.randomness.with_next((4,), torch.int64))[0] for _ in range(2)]
    assert not (drawn[0] == drawn[1]).any()
