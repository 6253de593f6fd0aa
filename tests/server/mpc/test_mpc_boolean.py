"""Boolean shares: comparisons on the full 64-bit range, bit decomposition, leading bits."""

from __future__ import annotations

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
    random_words,
    reconstruct,
    reconstruct_bits,
    share,
    share_bits,
)

from triskele_server.mpc import boolean
from triskele_server.mpc.arithmetic import bit_to_word
from triskele_server.mpc.session import Session

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
        known = (a, None) if session.party == 0 else (None, b)
        return boolean.top_bit_of_sum(session, *known, torch.empty_like(a))

    assert torch.equal(reconstruct_bits(at_three_parties(run)), (a + b < 0).to(torch.uint8))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 130, 131])
def test_any_bit_is_set(count):
    rng = np.random.default_rng(count)
    rows = np.zeros((5, count), np.uint8)
    rows[1, 0] = rows[2, -1] = rows[3, count // 2] = 1
    rows[4] = rng.integers(0, 2, count)
    shared = share_bits(rows)
    result = at_three_parties(lambda s: boolean.any_bit(s, shared[s.party]))
    assert reconstruct_bits(result).tolist() == rows.any(1).astype(int).tolist()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_conjunction_of_every_word_size(dtype):
    parts = [[(random_words((50,)) >> 3).to(dtype) for _ in range(3)] for _ in range(2)]
    expected = (parts[0][0] ^ parts[0][1] ^ parts[0][2]) & (parts[1][0] ^ parts[1][1] ^ parts[1][2])

    def run(session: Session):
        x, y = (boolean.Shares(p[session.party], p[(session.party + 1) % 3]) for p in parts)
        return boolean.conjunction(session, x, y)

    assert torch.equal(reconstruct_bits(at_three_parties(run)), expected)


def test_flipped_bits():
    shared = share_bits([0, 1, 1])
    assert reconstruct_bits(at_three_parties(lambda s: boolean.flipped(s, shared[s.party]))).tolist() == [1, 0, 0]


def test_a_comparison_takes_eight_rounds_and_25_bytes_a_word():
    """What the module promises."""
    count = 1000
    shared = share(random_words((count,)))

    def run(session: Session) -> tuple[int, int]:
        before = session.transport.traffic.bytes_sent, session.transport.traffic.rounds
        boolean.sign_bit(session, shared[session.party])
        after = session.transport.traffic
        return after.bytes_sent - before[0], after.rounds - before[1]

    results = at_three_parties(run)
    assert [sent for sent, _ in results] == [25 * count] * 3
    assert max(rounds for _, rounds in results) == 8


@pytest.mark.parametrize("produced", ["any_bit", "conjunction", "sign_bit", "flipped"])
def test_one_bit_results_convert_to_words(produced):
    """Masks leave junk in the higher bits of a byte's shares, which cancels in the XOR but not in an addition."""
    rows = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]] * 25, np.uint8)
    shared, words = share_bits(rows), share(rows.astype(np.int64) - 1)

    def run(session: Session):
        mine = shared[session.party]
        bits = {
            "any_bit": lambda: boolean.any_bit(session, mine),
            "conjunction": lambda: boolean.conjunction(session, mine, mine),
            "sign_bit": lambda: boolean.sign_bit(session, words[session.party]),
            "flipped": lambda: boolean.flipped(session, boolean.any_bit(session, mine)),
        }[produced]()
        return bit_to_word(session, bits)

    expected = {"any_bit": rows.any(1), "conjunction": rows, "sign_bit": rows == 0, "flipped": ~rows.any(1)}[produced]
    assert reconstruct(at_three_parties(run)).tolist() == expected.astype(int).tolist()
