"""Reachability in secret graphs, by powers of the adjacency matrix in integers and tests for what is positive."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement
from math import prod

import numba
import numpy as np
import torch

from triskele.ring import Words
from triskele_server.mpc.arithmetic import reshare
from triskele_server.mpc.boolean import negative
from triskele_server.mpc.session import Session, Shares


def closure(session: Session, edges: Shares) -> Shares:
    """0/1 words [..., n, n]: whether there is a path between two nodes.

    `edges` is symmetric, of 0 and 1, with ones on the diagonal. Entry (i, j) of its k-th power counts the walks of k
    steps, at most n^(k-1); below 2^63 the count is exact, so it is positive where there is a walk. Everything is
    computed on the upper triangle. Each product of `exponents` takes one round, the test after each power four.
    """
    n = edges.shape[-1]
    row, column = torch.triu_indices(n, n)
    triangle = Shares(edges.first[..., row, column], edges.second[..., row, column])
    for exponent in exponents(n):
        counts = _power(session, triangle, exponent, n)
        triangle = negative(session, Shares(-counts.first, -counts.second))
    return _whole(triangle, n)


@lru_cache(maxsize=64)
def exponents(n: int) -> tuple[int, ...]:
    """The powers that are taken one after the other, each tested for zeros: together walks of n - 1 steps or more.

    As few as the bound on the counts allows, then those of the fewest products; none for n <= 2.
    """
    largest = next(k for k in range(2, 65) if max(n, 2) ** k >= 1 << 63)
    tests = 0
    while largest**tests < n - 1:
        tests += 1
    enough = (c for c in combinations_with_replacement(range(2, largest + 1), tests) if prod(c) >= n - 1)
    return min(enough, key=lambda chosen: sum(map(_products, chosen)))


def _products(exponent: int) -> int:
    return exponent.bit_length() + exponent.bit_count() - 2


def _power(session: Session, triangle: Shares, exponent: int, n: int) -> Shares:
    """The upper triangle of the power: squares, and products with the matrix, from the exponent's highest bit on."""
    power, base = triangle, _whole(triangle, n)
    for bit in bin(exponent)[3:]:
        whole = _whole(power, n)
        power = _product(session, whole, whole)
        if bit == "1":
            power = _product(session, _whole(power, n), base)
    return power


def _product(session: Session, x: Shares, y: Shares) -> Shares:
    """The upper triangle of x y, for symmetric matrices that commute: their product is symmetric too. One round."""
    n = x.shape[-1]
    part = torch.empty((*x.shape[:-2], n * (n + 1) // 2), dtype=torch.int64)
    left, right = torch.cat([x.first, x.second], -1), torch.cat([y.first + y.second, y.first], -1)
    _row_products(_flat(left, 2), _flat(right, 2), _flat(part, 1))
    return reshare(session, "matmul", part)


def _whole(triangle: Shares, n: int) -> Shares:
    """The symmetric matrices [..., n, n] of upper triangles [..., n (n + 1) / 2], row by row."""
    whole = Shares(*(torch.empty((*triangle.shape[:-1], n, n), dtype=torch.int64) for _ in range(2)))
    _mirror(_flat(triangle.first, 1), _flat(whole.first, 2))
    _mirror(_flat(triangle.second, 1), _flat(whole.second, 2))
    return whole


def _flat(words: torch.Tensor, kept: int) -> Words:
    """The same words with one dimension before the last `kept` ones."""
    flat: Words = words.contiguous().numpy().reshape(-1, *words.shape[-kept:])
    return flat


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _row_products(x: Words, y: Words, out: Words) -> None:
    """The upper triangles [b, n (n + 1) / 2] of x y^T mod 2^64, for x and y [b, n, k]."""
    for b in range(len(x)):
        place = 0
        for i in range(x.shape[1]):
            left = x[b, i]
            for j in range(i, y.shape[1]):
                right = y[b, j]
                total = np.int64(0)
                for t in range(len(left)):
                    total += left[t] * right[t]
                out[b, place] = total
                place += 1


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _mirror(triangle: Words, out: Words) -> None:
    """Symmetric matrices [b, n, n] from their upper triangles."""
    for b in range(len(out)):
        place = 0
        for i in range(out.shape[1]):
            for j in range(i, out.shape[1]):
                out[b, i, j] = out[b, j, i] = triangle[b, place]
                place += 1
