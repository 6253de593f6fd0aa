"""Largest, smallest and selected elements, by networks and by ranks: what numpy's stable sort gives, ties included."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_parties import (
    MAX,
    MIN,
    Recording,
    at_three_parties,
    on_shares,
    on_tensors,
    random_words,
    reconstruct,
    share,
    share_bits,
    transports_of,
)

from triskele_server.mpc import arithmetic, boolean, graph, order
from triskele_server.mpc.carry_tree import NARROW
from triskele_server.mpc.randomness import CorrelatedRandomness
from triskele_server.mpc.session import Session, Shares

EDGE = 1 << 61
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _rows(n: int) -> np.ndarray:
    """Rows of n words: random, with many ties, all equal, ascending, descending, and at the edges of the range."""
    rng = np.random.default_rng(n)
    return np.stack([
        rng.integers(-1000, 1000, n), rng.integers(0, 3, n), np.full(n, -7), np.arange(n), -np.arange(n),
        rng.choice([-EDGE, EDGE], n), rng.choice([-EDGE, -1, 0, 1, EDGE], n),
    ])  # fmt: skip


def _marked(rows: np.ndarray, count: int) -> list:
    marks = np.zeros(rows.shape, np.int64)
    np.put_along_axis(marks, np.argsort(rows, -1, kind="stable")[..., :count], 1, -1)
    return marks.tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 127, 128, 129, 256])
def test_largest_and_smallest_element_of_a_row(n):
    rows = _rows(n)
    (largest, bits), (smallest, _) = on_tensors(lambda a: [a.max(), a.min()], (rows, 20))
    assert (largest.tolist(), smallest.tolist(), bits) == (rows.max(1).tolist(), rows.min(1).tolist(), 20)


@few
@given(st.lists(st.integers(-EDGE, EDGE), min_size=1, max_size=20))
def test_largest_of_any_words(entries):
    assert int(on_shares(order.maximum, entries)) == max(entries)


def test_largest_element_keeps_the_leading_dimensions():
    block = np.random.default_rng(1).integers(-9, 9, (2, 3, 5))
    assert on_tensors(lambda a: a.max(), (block, 0))[0].tolist() == block.max(-1).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 127, 128])
def test_smallest_by_ranks(n):
    rows = _rows(n)
    for count in {0, 1, n // 2, n}:
        words, bits = on_tensors(lambda a, c=count: a.smallest(c), (rows, 20))
        assert (words.tolist(), bits) == (_marked(rows, count), 0)


@pytest.mark.parametrize("n", [129, 200, 256])
def test_smallest_by_a_network(n):
    limit = (1 << 54) - 1
    rows = np.clip(_rows(n), -limit, limit)
    for count in (0, 1, 2, n // 3, n // 2, n - 1, n, n + 5):
        words, bits = on_tensors(lambda a, c=count: a.smallest(c), (rows, 20))
        assert (words.tolist(), bits) == (_marked(rows, count), 0), count


@few
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=24), st.integers(0, 25))
def test_network_marks_ties_at_the_lower_index(entries, count):
    got = on_shares(lambda s, x: order.smallest(s, x, count), entries)
    assert got.tolist() == _marked(np.array(entries), count)


def test_smallest_of_256_rows_of_256():
    rows = np.random.default_rng(2).integers(-50, 50, (256, 256))
    rows[:, 17] = rows[:, 200]
    for count in (1, 100):
        assert on_tensors(lambda a, c=count: a.smallest(c), (rows, 0))[0].tolist() == _marked(rows, count)


@pytest.mark.parametrize("n", range(1, 10))
def test_every_selection_network_on_every_row_of_bits(n):
    """The 0-1 principle: a network that is right on all rows of bits is right on all rows."""
    bits = np.array(list(itertools.product((0, 1), repeat=n)))
    for place in range(n):
        assert (_selected(bits, place) == np.sort(bits, 1)[:, place]).all()


@pytest.mark.parametrize("n", [16, 17, 33, 100, 128, 200, 256])
def test_selection_networks_on_thresholds_and_random_rows(n):
    rng = np.random.default_rng(n)
    rows = np.concatenate([rng.permuted(np.tile(np.arange(n), (20, 1)), axis=1), np.arange(n)[None, ::-1]])
    for place in {0, 1, n // 4, n // 2, n - 2, n - 1}:
        assert (_selected(rows, place) == place).all()


def _selected(rows: np.ndarray, place: int) -> np.ndarray:
    wires = rows.copy()
    for stage in order.selection_network(rows.shape[1], place):
        low, high = np.array(stage).T
        assert len({*low, *high}) == 2 * len(stage)  # comparators of a stage share no wire
        wires[:, low], wires[:, high] = (
            np.minimum(wires[:, low], wires[:, high]),
            np.maximum(wires[:, low], wires[:, high]),
        )
    return wires[:, place]


def test_a_network_has_a_fraction_of_all_pairs():
    sizes = {place: sum(map(len, order.selection_network(256, place))) for place in (0, 128, 255)}
    assert sizes == {0: 255, 128: 3197, 255: 255}  # of 32,640 pairs
    assert len(order.selection_network(256, 128)) == 36


def _cost(program: Callable[[Session, Shares], object], words: object) -> tuple[int, int]:
    """Bytes of the busiest sender and rounds of the party that waits most often."""
    shared = share(words)

    def run(session: Session) -> tuple[int, int]:
        traffic = session.transport.traffic
        before = traffic.bytes_sent, traffic.rounds
        program(session, shared[session.party])
        return traffic.bytes_sent - before[0], traffic.rounds - before[1]

    costs = at_three_parties(run)
    return max(sent for sent, _ in costs), max(rounds for _, rounds in costs)


def test_the_largest_takes_one_comparator_for_each_further_element():
    assert _cost(order.maximum, random_words((5, 100)) >> 2) == (5 * 99 * (46 + 16), 7 * 4)


def test_a_row_of_256_is_selected_from_with_a_tenth_of_the_bytes_of_all_pairs():
    sent, rounds = _cost(lambda s, x: order.smallest(s, x, 128), torch.arange(256))
    assert (sent, rounds) == (3197 * (46 + 16) + 256 * (46 + 8), 36 * 4 + 4)
    assert sent < 256 * 255 // 2 * 54 / 7


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5)])
def test_word_times_secret_bit(shape):
    words, bits = random_words(shape), random_words(shape) & 1
    words.view(-1)[:4] = torch.tensor([MAX, MIN, 0, -1])[: words.numel()]
    shared, shared_bits = share(words), share_bits(bits)

    def run(session: Session) -> Shares:
        # Masks leave junk above the lowest bit of a share of a one-bit value.
        junk = [Shares(x.first + 2 * k, x.second + 2 * ((k + 1) % 3)) for k, x in enumerate(shared_bits)]
        return arithmetic.times_bit(session, junk[session.party], shared[session.party])

    assert torch.equal(reconstruct(at_three_parties(run)), words * bits)


# ---- what is received tells nothing ----------------------------------------------------------------------------------

SIGMAS = 7.0
COUNT = 4096


def _path(session: Session) -> None:
    edges = torch.eye(64, dtype=torch.int64) + torch.eye(64, dtype=torch.int64).roll(1, 0).tril()
    edges = edges + edges.tril(-1).t()
    graph.closure(session, arithmetic.constant(session, edges))


OPERATIONS: dict[str, Callable[[Session], object]] = {
    "largest": lambda s: order.maximum(s, arithmetic.constant(s, torch.zeros(COUNT, 4, dtype=torch.int64))),
    "smallest": lambda s: order.smallest(s, arithmetic.constant(s, torch.zeros(COUNT, 4, dtype=torch.int64)), 2),
    "negative": lambda s: boolean.negative(s, arithmetic.constant(s, torch.zeros(5 * COUNT, dtype=torch.int64))),
    "narrow": lambda s: boolean.negative(s, arithmetic.constant(s, torch.zeros(COUNT).long()), width=NARROW),
    "truncation": lambda s: arithmetic.truncate(s, arithmetic.constant(s, torch.zeros(COUNT, dtype=torch.int64)), 20),
    "product": lambda s: arithmetic.multiply(s, *[arithmetic.constant(s, torch.ones(COUNT, dtype=torch.int64))] * 2),
    "parts": lambda s: arithmetic.reshare_at_once(s, "parts", torch.ones(COUNT, dtype=torch.int64)),
    "closure": _path,
}


def _non_uniform(content: np.ndarray) -> float:
    """By how many standard deviations the bytes' chi-square is above that of uniform bytes."""
    counts, expected = np.bincount(content, minlength=256), len(content) / 256
    return (float(((counts - expected) ** 2 / expected).sum()) - 255) / (2 * 255) ** 0.5


def _largest_deviation(operation: str) -> float:
    """Over every frame of every party, and sums and differences of two frames of a size; of public input.

    Public numbers have trivial shares, so a frame that is sent without a mask is far from uniform.
    """
    transports = transports_of(Recording)
    at_three_parties(OPERATIONS[operation], transports=transports)
    found = []
    for transport in transports:
        frames = [np.frombuffer(f.payload, np.uint8) for _, f in transport.frames if len(f.payload) >= COUNT // 2]
        found += [_non_uniform(content) for content in frames]
        for one, other in itertools.combinations(frames, 2):
            if len(one) == len(other) and len(one) % 8 == 0:
                a, b = one.view(np.int64), other.view(np.int64)
                found += [_non_uniform(word.view(np.uint8)) for word in (a + b, a - b, a ^ b)]
    assert found
    return max(found)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_frame_is_uniform_to_its_receiver(operation):
    assert _largest_deviation(operation) < SIGMAS


@pytest.mark.parametrize("operation", ["truncation", "product", "closure"])
def test_unmasked_exchanges_of_parties_1_and_2_are_found(operation, monkeypatch):
    zero = torch.zeros_like
    monkeypatch.setattr(arithmetic, "_drawn_share", lambda _, like: Shares(zero(like), zero(like)))
    assert _largest_deviation(operation) > SIGMAS


@pytest.mark.parametrize("operation", ["largest", "smallest", "negative", "narrow", "closure"])
@pytest.mark.parametrize("mask", ["with_next", "with_previous"])
def test_unmasked_comparisons_are_found(operation, mask, monkeypatch):
    monkeypatch.setattr(CorrelatedRandomness, mask, lambda _, shape, dtype: torch.zeros(shape, dtype=dtype))
    assert _largest_deviation(operation) > SIGMAS


def test_unmasked_parts_are_found(monkeypatch):
    monkeypatch.setattr(CorrelatedRandomness, "zero_sum", lambda _, shape, dtype: torch.zeros(shape, dtype=dtype))
    assert _largest_deviation("parts") > SIGMAS
