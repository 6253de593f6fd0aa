"""Comparisons on the full range of wide and narrow words, alone and in batches of every size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_parties import (
    MAX,
    MIN,
    at_three_parties,
    on_bits,
    on_shares,
    random_words,
    reconstruct,
    reconstruct_bits,
    share,
)

from triskele_server.mpc import boolean
from triskele_server.mpc.arithmetic import bit_to_word, constant
from triskele_server.mpc.carry_tree import NARROW, WIDE
from triskele_server.mpc.session import Session, Shares

EDGES = [0, 1, -1, MAX, MIN, MIN + 1, MAX - 1, 1 << 62, -(1 << 62), *(1 << p for p in range(63))]
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_sign_on_the_full_range():
    entries = torch.cat([torch.tensor(EDGES), random_words((2000,))])
    assert torch.equal(on_bits(boolean.sign_bit, entries), (entries < 0).to(torch.uint8))


@few
@given(st.lists(st.integers(MIN, MAX), min_size=1, max_size=8))
def test_sign_of_any_words(entries):
    assert on_bits(boolean.sign_bit, entries).tolist() == [int(word < 0) for word in entries]


@few
@given(st.lists(st.tuples(st.integers(MIN, MAX), st.integers(MIN, MAX)), min_size=1, max_size=6))
def test_top_bit_of_any_two_summands(pairs):
    """The adder itself, on summands chosen against it (long carry chains), not only on random shares."""
    a, b = (torch.tensor([p[k] for p in pairs] + [MAX, 1, -1, MIN, 0x5555555555555555]) for k in (0, 1))
    b = torch.cat([b[:-5], torch.tensor([1, MAX, 1, MIN, 0x2AAAAAAAAAAAAAAA])])

    def run(session: Session):
        return boolean.top_bit_of_sum(session, a if session.party == 0 else b)

    assert torch.equal(reconstruct_bits(at_three_parties(run)), (a + b < 0).to(torch.uint8))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_carries_start_run_and_stop_at_every_place(width):
    """From each bit on, up to each bit, a carry runs through; next to it stands one that does not."""
    a, b = [], []
    for low in range(width):
        for high in range(low, width):
            ones = (1 << (high + 1)) - (1 << low)
            a += [ones, ones, ones ^ 1 << (low + high) // 2]
            b += [1 << low, 1 << low >> 1, 1 << low]
    first, third = (torch.from_numpy(np.array(words, np.uint64).view(np.int64)) for words in (a, b))
    noise = random_words((len(a),))
    parts = [first - noise, noise, third]
    shared = [boolean.Shares(parts[i], parts[(i + 1) % 3]) for i in range(3)]
    result = at_three_parties(lambda s: boolean.negative(s, shared[s.party], width=width))
    expected = (first + third) >> (width - 1) & 1
    assert torch.equal(reconstruct(result), expected)


def test_narrow_comparisons_are_right_for_every_narrow_word():
    entries = torch.arange(-(1 << 15), 1 << 15)
    result = on_shares(lambda s, x: boolean.negative(s, x, width=NARROW), entries)
    assert torch.equal(result, (entries < 0).long())


@pytest.mark.parametrize("count", [0, 1, boolean.ROTATED - 1, boolean.ROTATED, boolean.ROTATED + 1])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_batches_of_every_size_whoever_deals(count, width):
    entries = random_words((count,)) >> (64 - width)

    def twice(session: Session, x: Shares) -> Shares:
        """The second shows that the first left no frame behind."""
        once, again = (boolean.negative(session, x, width=width) for _ in range(2))
        return Shares(torch.stack([once.first, again.first]), torch.stack([once.second, again.second]))

    assert torch.equal(on_shares(twice, entries), (entries < 0).long().repeat(2, 1))


def test_counts_of_negative_words_by_row():
    for rows in (3, 300):
        entries = random_words((rows, 80))
        result = on_shares(lambda s, x: boolean.negative(s, x, lambda bits: bits.sum(-1)), entries)
        assert torch.equal(result, (entries < 0).sum(-1))


def _cost(program: Callable[[Session, Shares], object], count: int) -> list[tuple[int, int]]:
    """Bytes sent and steps that waited for a peer, by party."""
    shared = share(random_words((count,)))

    def run(session: Session) -> tuple[int, int]:
        traffic = session.transport.traffic
        before = traffic.bytes_sent, traffic.rounds
        program(session, shared[session.party])
        return traffic.bytes_sent - before[0], traffic.rounds - before[1]

    return at_three_parties(run)


def test_party_0_waits_for_nobody_and_the_others_exchange_six_bytes_a_word():
    """What the module promises."""
    assert _cost(boolean.sign_bit, 1000) == [(46_000, 0), (6_000, 3), (6_000, 3)]


def test_bits_as_words_take_one_exchange_more():
    narrow = _cost(lambda s, x: boolean.negative(s, x, width=NARROW), 1000)
    assert narrow == [(18_000, 0), (2_000 + 8_000, 3), (2_000 + 8_000, 3)]
    wide = _cost(lambda s, x: boolean.negative(s, x, lambda bits: bits.sum().reshape(1)), 1000)
    assert wide == [(54_000, 0), (6_008, 4), (6_008, 4)]


def test_large_batches_cost_every_party_the_same():
    count = 3 * boolean.ROTATED
    sent = [s for s, _ in _cost(lambda s, x: boolean.negative(s, x, lambda bits: bits.sum().reshape(1)), count)]
    assert sent == [count * (54 + 6 + 6) // 3 + extra for extra in (16, 8, 8)]


def test_bits_convert_to_words():
    """Masks leave junk in the higher bits of a byte's shares, which cancels in the XOR but not in an addition."""
    entries = torch.tensor([-1, 0, 1, MIN, MAX] * 20)
    result = on_shares(lambda s, x: bit_to_word(s, boolean.sign_bit(s, x)), entries)
    assert torch.equal(result, (entries < 0).long())


def test_masks_are_drawn_anew_for_every_comparison():
    def run(session: Session) -> list[Shares]:
        return [boolean.sign_bit(session, constant(session, torch.zeros(64).long())) for _ in range(2)]

    for once, again in at_three_parties(run):
        assert (once.first != again.first).any()
        assert (once.second != again.second).any()
