"""Reachability in secret graphs: what a search from every node finds in the clear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_parties import at_three_parties, on_shares, on_tensors, share

from triskele_server.mpc import graph
from triskele_server.mpc.session import Session

few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _with_loops(n: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    edges = np.eye(n, dtype=np.int64)
    for i, j in pairs:
        edges[i, j] = edges[j, i] = 1
    return edges


def _reachable(edges: np.ndarray) -> np.ndarray:
    found = np.zeros_like(edges)
    for start in range(len(edges)):
        frontier = [start]
        while frontier:
            node = frontier.pop()
            if not found[start, node]:
                found[start, node] = 1
                frontier += np.flatnonzero(edges[node]).tolist()
    return found


def _path(n: int) -> np.ndarray:
    return _with_loops(n, [(i, i + 1) for i in range(n - 1)])


def _shuffled(edges: np.ndarray, seed: int) -> np.ndarray:
    names = np.random.default_rng(seed).permutation(len(edges))
    return edges[np.ix_(names, names)]


def _cliques(n: int, size: int) -> np.ndarray:
    group = np.arange(n) // size
    return (group[:, None] == group).astype(np.int64)


def _random(n: int, degree: float, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < degree / n, 1)
    return (upper + upper.T + np.eye(n)).astype(np.int64)


def _graphs(n: int) -> list[np.ndarray]:
    """Paths whole and cut, in order and shuffled; a star, cliques, no edge, every edge, and sparse random graphs."""
    cut = _path(n)
    cut[n // 2, n // 2 - 1] = cut[n // 2 - 1, n // 2] = int(n == 1)
    return [
        _path(n), _shuffled(_path(n), n), cut, _shuffled(cut, n), _with_loops(n, [(0, i) for i in range(1, n)]),
        _cliques(n, 3), _shuffled(_cliques(n, max(n // 2, 1)), 1), np.eye(n, dtype=np.int64), np.ones((n, n), np.int64),
        *(_random(n, degree, seed) for seed, degree in enumerate((0.5, 1.0, 1.5, 2.5))),
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 18, 33, 50, 64, 66, 87, 100])
def test_reachability_is_what_a_search_finds(n):
    graphs = np.stack(_graphs(n))
    expected = np.stack([_reachable(edges) for edges in graphs])
    got = on_shares(graph.closure, graphs).numpy()
    assert [np.array_equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * len(graphs)


@pytest.mark.parametrize("n", [101, 102, 128, 255, 256])
def test_a_path_is_connected_end_to_end_and_stays_apart_where_it_is_cut(n):
    cut = _path(n)
    cut[n // 3, n // 3 + 1] = cut[n // 3 + 1, n // 3] = 0
    graphs = np.stack([_path(n), cut])
    side = np.arange(n) > n // 3
    assert on_shares(graph.closure, graphs).tolist() == [np.ones((n, n)).tolist(), (side[:, None] == side).tolist()]


@few
@given(st.integers(1, 14), st.floats(0.0, 3.0), st.integers(0, 2**31))
def test_reachability_of_any_graph(n, degree, seed):
    edges = _random(n, degree, seed)
    assert on_shares(graph.closure, edges).tolist() == _reachable(edges).tolist()


def test_closure_of_a_tensor_of_any_scale_is_an_integer_tensor():
    edges = np.stack([[_path(5), _cliques(5, 2)]] * 2)
    for bits in (0, 20):
        words, left = on_tensors(lambda a: a.closure(), (edges << bits, bits))
        assert left == 0
        assert words.tolist() == [[np.ones((5, 5)).tolist(), _reachable(_cliques(5, 2)).tolist()]] * 2


@pytest.mark.parametrize("n", range(1, 257))
def test_powers_count_exactly_and_reach_every_node(n):
    powers = graph.exponents(n)
    assert all(n ** (power - 1) < 1 << 63 for power in powers)
    assert np.prod([1, *powers]) >= n - 1


def test_closure_of_100_nodes_takes_16_rounds_and_party_0_waits_for_nobody():
    edges = share(_path(100))

    def run(session: Session) -> tuple[int, int]:
        traffic = session.transport.traffic
        before = traffic.bytes_sent, traffic.rounds
        graph.closure(session, edges[session.party])
        return traffic.bytes_sent - before[0], traffic.rounds - before[1]

    costs = at_three_parties(run)
    # Two times: four products, a comparison and a word for its bit.
    assert [sent for sent, _ in costs] == [2 * 5050 * (4 * 8 + one) for one in (54, 14, 14)]
    assert [rounds for _, rounds in costs] == [0, 2 * (4 + 4), 2 * (4 + 4)]
