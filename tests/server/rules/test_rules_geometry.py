"""Cosines, distances and medians from a secret Gram matrix, against numpy on the rows themselves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "mpc"))  # the engine's harness serves here too

from three_parties import on_tensors, values

from triskele_server.rules import geometry
from triskele_server.rules.flame import majority_cluster

ONE = 1 << 20  # a row of norm 1 in grid units: squared norms have 40 fraction bits
UNIT = 2.0**-28  # the last place of a cosine


def _gram(rows: np.ndarray) -> np.ndarray:
    """Exact inner products of integer rows."""
    exact = rows.astype(object)
    return (exact @ exact.T).astype(np.int64)


def _cosines(gram: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.diag(gram).astype(float))
    norms[norms == 0] = np.inf
    return gram / norms[:, None] / norms


def _directions(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _of_every_length(n: int = 40, d: int = 30) -> np.ndarray:
    """Norms from one grid unit to 1.1; zero rows, equal rows, opposite rows and multiples among them."""
    lengths = np.exp2(np.random.default_rng(1).uniform(0, 20.1, (n, 1)))
    lengths[:2] = 1.1 * ONE
    rows = np.round(_directions(n, d, 2) * lengths).astype(np.int64)
    rows[3:6] = 0
    rows[6] = rows[7]
    rows[8] = -rows[7]
    rows[9] = 0
    rows[9, 4] = 1
    rows[10:12] = 0
    rows[10:12, 5] = -1, 1 << 20
    rows[12] = rows[0] // 1000 * 3
    return rows


def _one_dominating() -> np.ndarray:
    """One row 2^20 times longer than the others, which have a norm of one or two grid units."""
    rows = np.random.default_rng(3).integers(-1, 2, (20, 3))
    rows[7] = np.array([1, -1, 0]) * (ONE * 7 // 10)
    return rows


def _nearly_parallel() -> np.ndarray:
    """Cosines within 2^-10 of each other and of 1."""
    rows = _directions(1, 50, 4) + 0.003 * np.random.default_rng(5).normal(size=(30, 50))
    return np.round(rows * ONE * 0.9).astype(np.int64)


ROWS = {
    "every length": _of_every_length(),
    "one dominating": _one_dominating(),
    "nearly parallel": _nearly_parallel(),
    "identical": np.tile(_of_every_length()[:1], (9, 1)),
    "all of one unit": np.eye(6, dtype=np.int64)[[0, 0, 1, 2, 3, 3]],
    "zero": np.zeros((5, 3), np.int64),
    "one row": _of_every_length()[1:2],
    "a hundred": np.round(_directions(100, 8, 6) * ONE).astype(np.int64),
}


@pytest.mark.parametrize("bits", [40, 44])
@pytest.mark.parametrize("kind", ROWS)
def test_cosines_are_right_for_rows_of_every_length(kind, bits):
    gram = _gram(ROWS[kind])
    got = on_tensors(geometry.cosines, (torch.from_numpy(gram << (bits - 40)), bits))
    cosines = values(got)
    assert got[1] == 28
    assert np.abs(cosines - _cosines(gram)).max() < 2.0**-25
    assert (cosines == cosines.T).all()
    present = np.diag(gram) > 0
    assert np.diag(cosines).tolist() == present.tolist()
    assert np.abs(cosines[~present]).max(initial=0) <= UNIT


def test_cosines_survive_a_gram_matrix_with_rounded_entries():
    """Floors of an averaged Gram matrix: rows of hardly one word may come out beyond 1, but never as garbage."""
    lengths = np.exp2(np.concatenate([np.random.default_rng(7).uniform(-22.2, 0, 60), np.linspace(-22.1, -21.5, 20)]))
    rows = _directions(80, 6, 8) * lengths[:, None]
    exact = rows @ rows.T
    words = np.floor(exact * 2.0**44).astype(np.int64)
    got = values(on_tensors(geometry.cosines, (torch.from_numpy(words), 44)))
    assert np.abs(got).max() < 2.1
    long = lengths > 2.0**-10
    assert np.abs(got - exact / lengths[:, None] / lengths)[np.ix_(long, long)].max() < 2.0**-22


@pytest.mark.parametrize("kind", ROWS)
def test_squared_distances_are_exact(kind):
    rows = ROWS[kind]
    gram = _gram(rows)
    got = on_tensors(geometry.squared_distances, (torch.from_numpy(gram << 4), 44))
    expected = ((rows[:, None] - rows) ** 2).sum(-1) << 4
    assert (got[0].tolist(), got[1]) == (expected.tolist(), 44)


SQUARED_NORMS = [
    [5],
    [3, 7],
    [7, 3],
    [4, 4],
    [0, 0, 0],
    [1, 0, 0, 0],
    [2, 9, 2, 9, 2],
    [6, 5, 4, 3, 2, 1],
    [8, 8, 8, 1, 1, 1],
    [1, 5, 5, 5, 5, 9],
    [(1 << 44) + 3, 1, 0, (1 << 44) + 4, 2, 1 << 43, 77],
    np.random.default_rng(9).integers(0, 1 << 44, 50).tolist(),
]


@pytest.mark.parametrize("norms", SQUARED_NORMS)
def test_the_two_middle_norms_and_the_rows_beyond_them(norms):
    """Rows after the middle in the stable order are the longer ones; the entries off the diagonal do not matter."""
    n = len(norms)
    gram = torch.full((n, n), -3) + torch.diag(torch.tensor(norms) + 3)
    low, high, longer = on_tensors(lambda g: list(geometry.median_squared_norms(g)), (gram, 40))
    ordered = sorted(norms)
    assert [int(low[0]), int(high[0])] == [ordered[(n - 1) // 2], ordered[n // 2]]
    assert (low[1], high[1], longer[1]) == (40, 40, 0)
    expected = np.zeros(n, np.int64)
    expected[np.argsort(np.array(norms), kind="stable")[(n + 1) // 2 :]] = 1
    assert longer[0].tolist() == expected.tolist()


@pytest.mark.parametrize("module", ["torch", "crypten"])
def test_geometry_is_imported_without_the_engine(monkeypatch, module):
    """The coordinator and the parties' front processes import the rules."""
    monkeypatch.setitem(sys.modules, module, None)
    assert runpy.run_path(geometry.__file__)["cosines"]


def test_distances_that_differ_by_rounding_only_are_the_same_to_flame():
    """Rows that are all alike, their cosines a last place or two above and below 1: nobody is left out."""
    n, places = 7, 28
    words = np.full((n, n), 4, np.int64)
    words[:5, :5] = -4  # a majority would be connected at a threshold of exactly zero
    np.fill_diagonal(words, 0)
    assert values(on_tensors(majority_cluster, (torch.from_numpy(words), places))).tolist() == [1] * n
