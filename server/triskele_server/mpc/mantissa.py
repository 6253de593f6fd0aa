"""Mantissas of secret positive numbers, and polynomials on them.

The place t of x's leading pair of bits, 4^t <= x < 4^(t+1), comes from comparisons with every power of four, made side
by side; public tables of t come out as shares. One of them holds the power of four that brings x to a mantissa m in
[1/4, 1), by a product of integers. The powers of u = 2 m - 1.25 take four products in a row and serve every polynomial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from triskele_server.mpc.arithmetic import add, constant, truncate
from triskele_server.mpc.boolean import negative
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.truncation import multiply_truncated

PAIRS = 31  # pairs of bits in a value below 2^62
TO_UNIT = [4 ** (PAIRS - 1 - t) for t in range(PAIRS)]  # brings [4^t, 4^(t+1)) to [2^60, 2^62)
ARGUMENT_BITS = 31  # fraction bits of u, which is in [-0.75, 0.75), and of its powers
CENTRE = 5 << (ARGUMENT_BITS - 2)  # 1.25
DEGREE = 16


@dataclass(frozen=True)
class Polynomial:
    """Coefficients of u^0 to u^16 in units of 2^-bits."""

    bits: int
    coefficients: tuple[int, ...]


# The polynomials of least greatest error on u in [-0.75, 0.75] (Remez' algorithm with 60 digits), relative but for the
# logarithm. With rounded coefficients the errors are 2^-28.4, 2^-29.7, 2^-25.8 and 2^-28.4.
INV_SQRT = Polynomial(
    29,
    (679093957, -271637550, 162982421, -108657714, 76064464, -54697559, 40053742, -30523614, 23296412, -13042411,
     8381124, -21726479, 19873904, 14054560, -14361532, -18701162, 16057621),
)  # fmt: skip
SQRT = Polynomial(
    30,
    (848867446, 339546977, -67909384, 27163833, -13582365, 7603998, -4555986, 2888776, -1922691, 1127411,
     -595382, 947844, -1024444, -330872, 632293, 642672, -642329),
)  # fmt: skip
INVERSE = Polynomial(
    28,
    (429496730, -343597233, 274877786, -219915095, 175932076, -140425447, 112340357, -93450551, 74760441, -38603819,
     30883055, -95987948, 76790358, 75038285, -60030628, -90612269, 72489815),
)  # fmt: skip
LOG = Polynomial(
    29,
    (-252331277, 429496720, -171798613, 91626800, -54978857, 35164343, -23403399, 16299049, -11685184, 6803427,
     -3852288, 7917301, -8004046, -3970200, 5353962, 6116551, -5656153),
)  # fmt: skip


def each(function: Callable[..., torch.Tensor], *operands: Shares) -> Shares:
    """The same local linear function of both shares."""
    return Shares(function(*(x.first for x in operands)), function(*(x.second for x in operands)))


def plus(session: Session, x: Shares, word: int) -> Shares:
    """x + a public word, local."""
    return add(x, constant(session, torch.full(x.shape, word, dtype=torch.int64)))


def at_leading_pair(
    session: Session, x: Shares, tables: Sequence[Sequence[int]], also: Shares | None = None
) -> list[Shares]:
    """table[t] for each of the tables, where 4^t <= x < 4^(t+1), for 0 <= x < 4^(length of the tables).

    0 for x <= 0. With `also`, one result more: 1 where that word is negative, else 0. Nine rounds.
    """
    pairs, count = len(tables[0]), x.first.numel()
    bounds = constant(session, 4 ** torch.arange(pairs).unsqueeze(1))
    compared = each(lambda word, bound: (word.flatten() - bound).flatten(), x, bounds)
    if also is not None:
        compared = each(lambda word, other: torch.cat([word, other.flatten()]), compared, also)
    # Bits b_t = (x < 4^t), so that the sum of table[t] (b_{t+1} - b_t), b_pairs = 1, is a sum over b_t and a constant.
    entries = torch.tensor(tables)
    steps = -entries.diff(dim=1, prepend=torch.zeros_like(entries[:, :1]))

    def looked_up(bits: torch.Tensor) -> torch.Tensor:
        head = steps @ bits[: pairs * count].reshape(pairs, count)
        return torch.cat([head.flatten(), bits[pairs * count :]])

    words = negative(session, compared, combine=looked_up)
    results = [
        plus(session, each(lambda word, k=k: word[k * count : (k + 1) * count].reshape(x.shape), words), table[-1])
        for k, table in enumerate(tables)
    ]
    if also is not None:
        results.append(each(lambda word: word[len(tables) * count :].reshape(also.shape), words))
    return results


def at_signed_leading_pair(session: Session, x: Shares, tables: Sequence[Sequence[int]]) -> list[Shares]:
    """The same for |x|, and the entry takes the sign of x."""
    both = each(lambda word: torch.stack([word, -word]), x)
    return [each(lambda word: word[0] - word[1], found) for found in at_leading_pair(session, both, tables)]


def argument(session: Session, x: Shares, to_unit: Shares) -> Shares:
    """u for x, which the power `to_unit` brings to m 2^62; -1.25 for 0. Two rounds."""
    doubled = multiply_truncated(session, x, to_unit, 2 * PAIRS - ARGUMENT_BITS - 1)
    return plus(session, doubled, -CENTRE)


def powers(session: Session, u: Shares) -> Shares:
    """u, u^2, ..., u^16, stacked. Eight rounds."""
    known = each(lambda word: word.unsqueeze(0), u)
    while known.shape[0] < DEGREE:
        further = multiply_truncated(session, known, each(lambda word: word[-1:], known), ARGUMENT_BITS)
        known = each(lambda low, high: torch.cat([low, high]), known, further)
    return known


def polynomial(session: Session, which: Polynomial, known: Shares) -> Shares:
    """The polynomial of a number whose powers are given, with which.bits + ARGUMENT_BITS fraction bits; local."""
    factors = torch.tensor(which.coefficients[1:]).reshape(-1, *[1] * (known.first.dim() - 1))
    total = each(lambda word: (word * factors).sum(0), known)
    return plus(session, total, which.coefficients[0] << ARGUMENT_BITS)


def value(session: Session, which: Polynomial, known: Shares, bits: int) -> Shares:
    """The polynomial with `bits` fraction bits. Two rounds."""
    return truncate(session, polynomial(session, which, known), which.bits + ARGUMENT_BITS - bits)
