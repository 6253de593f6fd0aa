"""1/sqrt(x) on shares, accurate over the whole range: CrypTen's own approximation converges in a narrow one only.

x is brought to [1/4, 1) by the power of four that its leading bit selects (all in shares), Newton's iteration runs
there from a linear start, and the power's square root brings the result back.
"""

from __future__ import annotations

import torch

from triskele_server.mpc.arithmetic import add, bit_to_word, constant, multiply, truncate
from triskele_server.mpc.boolean import leading_bit
from triskele_server.mpc.session import Session, Shares

_PAIRS = 31  # pairs of bits in a value below 2^62
_BITS = 28  # fraction bits of the iteration: every product stays below 2^62
_STEPS = 3  # relative error 0.086, 0.011, 2.0e-4, 5.7e-8
# Best linear start for 1/sqrt(x) on [1/4, 1] in relative error, found by numerical minimax.
_START, _SLOPE = 2.13277255, 1.21872717


def inv_sqrt(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """1/sqrt(x / 2^fraction_bits) and its fraction bits; relative error below 2^-22 for 0 < x < 2^62, 0 for x = 0.

    `fraction_bits` must be even.
    """
    hot, _, root = _normalised(session, x)
    back = _weighted(hot, [2 ** (_PAIRS - 1 - t) for t in range(_PAIRS)])
    # x = m 2^62 4^(t-30) / 2^f with m in [1/4, 1), so 1/sqrt(x) = 1/sqrt(m) 2^(30-t) 2^(f/2 - 31).
    return multiply(session, root, back), _BITS + 31 - fraction_bits // 2


def sqrt(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """sqrt(x / 2^fraction_bits) and its fraction bits, with the same accuracy and conditions; 0 for x = 0."""
    hot, mantissa, root = _normalised(session, x)
    power = _weighted(hot, [2**t for t in range(_PAIRS)])
    # sqrt(x) = m / sqrt(m) 2^(t-30) 2^(31 - f/2).
    return multiply(session, _product(session, mantissa, root), power), _BITS - 1 + fraction_bits // 2


def reciprocal(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """1/(x / 2^f) for 0 < x < 2^62, with 62 - f fraction bits: right to 2^-22 or to the last place; 0 for x = 0."""
    hot, _, root = _normalised(session, x)
    inverse = _product(session, root, root)  # of the mantissa, in (1, 4]
    # In the result's places 1/x = inverse 2^(32 - 2t); negative powers are had by a truncation.
    powers = [32 - 2 * t for t in range(_PAIRS)]
    up = _weighted(hot, [2**p if p >= 0 else 0 for p in powers])
    down = _weighted(hot, [0 if p >= 0 else 2 ** (p + _BITS) for p in powers])
    large, small = multiply(session, inverse, up), _product(session, inverse, down)
    return add(large, small), 62 - fraction_bits


def leading_power(session: Session, x: Shares) -> Shares:
    """The power of four that brings x to [2^60, 2^62), for 0 < x < 2^62; 0 for x = 0."""
    return _to_unit(_leading_pair(session, x))


def _to_unit(hot: Shares) -> Shares:
    return _weighted(hot, [4 ** (_PAIRS - 1 - t) for t in range(_PAIRS)])


def _normalised(session: Session, x: Shares) -> tuple[Shares, Shares, Shares]:
    """The one-hot leading pair t, the mantissa m in [1/4, 1) and 1/sqrt(m)."""
    hot = _leading_pair(session, x)
    unit = multiply(session, x, _to_unit(hot))  # in [2^60, 2^62)
    mantissa = truncate(session, unit, 62 - _BITS)
    return hot, mantissa, _newton(session, mantissa)


def _product(session: Session, a: Shares, b: Shares, shift: int = _BITS) -> Shares:
    return truncate(session, multiply(session, a, b), shift)


def _leading_pair(session: Session, x: Shares) -> Shares:
    """One-hot int64 shares [31, ...] of the pair of bits that holds the leading one."""
    leading = leading_bit(session, x)

    def pairs(word: torch.Tensor) -> torch.Tensor:  # one-hot, so "or" is "xor"
        return torch.stack([((word >> 2 * t) ^ (word >> (2 * t + 1))) & 1 for t in range(_PAIRS)])

    return bit_to_word(session, Shares(pairs(leading.first), pairs(leading.second)))


def _weighted(hot: Shares, weights: list[int]) -> Shares:
    column = torch.tensor(weights).reshape(-1, *[1] * (hot.first.dim() - 1))
    return Shares((hot.first * column).sum(0), (hot.second * column).sum(0))


def _newton(session: Session, x: Shares) -> Shares:
    """1/sqrt(x) for x in [1/4, 1): y <- y (3 - x y^2) / 2."""
    slope = round(-_SLOPE * 2**_BITS)
    y = _plus(session, truncate(session, Shares(x.first * slope, x.second * slope), _BITS), _START)
    for _ in range(_STEPS):
        residue = _product(session, x, _product(session, y, y))
        y = _product(session, y, _plus(session, Shares(-residue.first, -residue.second), 3.0), _BITS + 1)
    return y


def _plus(session: Session, x: Shares, number: float) -> Shares:
    return add(x, constant(session, torch.full(x.shape, round(number * 2**_BITS), dtype=torch.int64)))
