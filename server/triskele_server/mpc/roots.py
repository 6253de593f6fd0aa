"""Roots, quotients and logarithms on shares, accurate over the whole range of words: CrypTen's own approximations
converge in a narrow one only.

A number is taken apart into its mantissa and a power of four (see mantissa.py); a polynomial is applied to the
mantissa, and a product of integers with a power of two brings the result back. Rounds are the longest chain of
messages that wait for each other.
"""

from __future__ import annotations

import numpy as np
import torch

from triskele_server.mpc.arithmetic import add, multiply, truncate
from triskele_server.mpc.mantissa import (
    ARGUMENT_BITS,
    CENTRE,
    INV_SQRT,
    INVERSE,
    LOG,
    PAIRS,
    SQRT,
    TO_UNIT,
    argument,
    at_leading_pair,
    at_signed_leading_pair,
    each,
    plus,
    polynomial,
    powers,
    value,
)
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.truncation import multiply_truncated, product_part, reshare_truncated

LOG_BITS = 30
LOG_OF_ZERO = -64
QUOTIENT_BITS = 26
FRACTION_BITS = 30  # of a quotient that is at most 1
RATIO_BITS = 30
MAX_RATIO_BITS = 40
COSINE_BITS = 28

_LN_2 = 0.6931471805599453
_ROOT_BITS = 28  # fraction bits of a function of the mantissa before it meets a power of two of up to 2^32
_QUOTIENT_PAIRS = 5  # a quotient may reach 4^5
_NORM_PAIRS = 23  # root_ratio and cosines take words below 4^23
_CAP = 15  # root_ratio is capped at 2^15
_RATIO_PLACES = 23  # fraction bits of a ratio of mantissas' roots before it meets a power of two of up to 2^38


def inv_sqrt(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """1/sqrt(x / 2^fraction_bits) and its fraction bits; relative error below 2^-25 for 0 < x < 2^62, 0 for x <= 0.

    `fraction_bits` must be even. 21 rounds.
    """
    to_unit, back = at_leading_pair(session, x, [TO_UNIT, [2 ** (PAIRS - 1 - t) for t in range(PAIRS)]])
    root = value(session, INV_SQRT, powers(session, argument(session, x, to_unit)), _ROOT_BITS)
    # x = m 2^62 4^(t-30) / 2^f with m in [1/4, 1), so 1/sqrt(x) = 1/sqrt(m) 2^(30-t) 2^(f/2 - 31).
    return multiply(session, root, back), _ROOT_BITS + PAIRS - fraction_bits // 2


def sqrt(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """sqrt(x / 2^fraction_bits) and its fraction bits, with the same accuracy, conditions and rounds; 0 for x <= 0."""
    to_unit, back = at_leading_pair(session, x, [TO_UNIT, [2**t for t in range(PAIRS)]])
    root = value(session, SQRT, powers(session, argument(session, x, to_unit)), _ROOT_BITS)
    # sqrt(x) = sqrt(m) 2^(t-30) 2^(31 - f/2).
    return multiply(session, root, back), _ROOT_BITS - 1 + fraction_bits // 2


def reciprocal(session: Session, x: Shares, fraction_bits: int) -> tuple[Shares, int]:
    """1/(x / 2^f) for 0 < |x| < 2^62, with 62 - f fraction bits; 0 for x = 0. 22 rounds.

    The error is below 2^-24 of the value and one last place.
    """
    # In the result's places 1/x = 2^28 / m 2^(32 - 2t); negative powers are had by a truncation.
    exponents = [32 - 2 * t for t in range(PAIRS)]
    large = [2**e if e >= 0 else 0 for e in exponents]
    small = [0 if e >= 0 else 2 ** (e + _ROOT_BITS) for e in exponents]
    to_unit, up, down = at_signed_leading_pair(session, x, [TO_UNIT, large, small])
    inverse = value(session, INVERSE, powers(session, argument(session, x, to_unit)), _ROOT_BITS)
    shares = multiply_truncated(session, inverse, down, _ROOT_BITS, plus=product_part(inverse, up))
    return shares, 2 * PAIRS - fraction_bits


def log(session: Session, x: Shares, fraction_bits: int) -> Shares:
    """ln(x / 2^f) for 0 < x < 2^62 with LOG_BITS fraction bits, absolute error below 2^-26. 20 rounds.

    LOG_OF_ZERO, with the same error, for x <= 0.
    """
    # x = m 4^(t+1) / 2^f. A zero gets the mantissa in the middle and the exponent that makes it LOG_OF_ZERO there.
    of_zero = (LOG_OF_ZERO << LOG_BITS) - (LOG.coefficients[0] << (LOG_BITS - LOG.bits))
    exponents = [round((2 * t + 2 - fraction_bits) * _LN_2 * 2**LOG_BITS) - of_zero for t in range(PAIRS)]
    to_unit, exponent, centre = at_leading_pair(session, x, [TO_UNIT, exponents, [CENTRE] * PAIRS])
    u = plus(session, _minus(argument(session, x, to_unit), centre), CENTRE)
    of_mantissa = value(session, LOG, powers(session, u), LOG_BITS)
    return plus(session, add(of_mantissa, exponent), of_zero)


def leading_power(session: Session, x: Shares) -> Shares:
    """The power of four that brings x to [2^60, 2^62), for 0 < x < 2^62; 0 for x = 0. Nine rounds."""
    return at_leading_pair(session, x, [TO_UNIT])[0]


def fraction(session: Session, x: Shares, whole: Shares) -> Shares:
    """x / whole with FRACTION_BITS for |x| <= whole < 2^62, shapes broadcast; 0 for whole = 0. 22 rounds.

    Absolute error below 2^-24.
    """
    return _divided(session, x, whole, at_leading_pair(session, whole, [TO_UNIT])[0], pairs=0, bits=FRACTION_BITS)


def quotient(session: Session, x: Shares, y: Shares) -> Shares:
    """x / y with QUOTIENT_BITS for |x / y| < 2^10 and |y| < 2^52, shapes broadcast; 0 for y = 0. 22 rounds.

    The error is below 2^-22 max(1, |x / y|).
    """
    power = at_signed_leading_pair(session, y, [TO_UNIT[_QUOTIENT_PAIRS:]])[0]
    return _divided(session, x, y, power, pairs=_QUOTIENT_PAIRS, bits=QUOTIENT_BITS)


def _divided(session: Session, x: Shares, y: Shares, power: Shares, *, pairs: int, bits: int) -> Shares:
    """x / y, below 4^pairs. The power brings y to m 2^62 / 4^pairs, so that x times it stays below 2^62."""
    dividend, divisor = product_part(x, power), product_part(y, power)
    both = reshare_truncated(session, torch.cat([dividend.flatten(), divisor.flatten()]), 30 - pairs)
    scaled, doubled = _split(both, tuple(dividend.shape), tuple(divisor.shape))
    # Half of the pairs' bits are gone from the divisor, 2 m 2^(31 - pairs) now.
    u = plus(session, each(lambda word: word << pairs, doubled), -CENTRE)
    inverse = value(session, INVERSE, powers(session, u), 29 - pairs)
    return multiply_truncated(session, scaled, inverse, 61 - 2 * pairs - bits)


def root_ratio(session: Session, x: Shares, y: Shares, bits: int) -> Shares:
    """min(sqrt(x / y), 2^15) with `bits` fraction bits, for 0 <= x, y < 2^46, shapes broadcast. 26 rounds.

    `bits` is at most MAX_RATIO_BITS. The result is below the true value by at most 2^-20 of it and one last place,
    above it by less than one last place, and never above the cap. 0 for x = 0; the cap where y alone is 0.
    """
    shape = np.broadcast_shapes(x.shape, y.shape)  # torch's imports sympy: 30 MB
    # From 2^16 on y is too large for the cap to be reached; below it 2^30 y does not wrap.
    excess = each(lambda a, b: (b << 2 * _CAP) - a, x, y)
    places = range(_NORM_PAIRS)
    tables = [
        TO_UNIT[:_NORM_PAIRS],
        [2**t for t in places],
        [2 ** (_NORM_PAIRS - 1 - t) for t in places],
        [int(4**t >= 1 << 16) for t in places],
        [1 for _ in places],
    ]
    numbers = each(lambda a, b: torch.cat([a.flatten(), b.flatten()]), x, y)
    to_unit, *found, exceeds = at_leading_pair(session, numbers, tables, also=excess)
    (up, _), (_, down), (_, large), (present, _) = (_split(table, x.shape, y.shape) for table in found)
    small = plus(session, each(torch.neg, large), 1)

    def stacked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a.expand(shape), b.expand(shape)])

    power, capped = _unstacked(multiply(session, each(stacked, up, exceeds), each(stacked, down, small)))
    known = powers(session, argument(session, numbers, to_unit))
    # 30 places of a root below 1, 29 of an inverse root up to 2: one truncation by 31 for both.
    of_x, _ = _split(polynomial(session, SQRT, known), x.shape, y.shape)
    _, of_y = _split(polynomial(session, INV_SQRT, known), x.shape, y.shape)
    roots = truncate(session, each(lambda a, b: torch.cat([a.flatten(), b.flatten()]), of_x, of_y), ARGUMENT_BITS)
    root, inverse = _split(roots, x.shape, y.shape)
    ratio = multiply_truncated(session, root, inverse, SQRT.bits + INV_SQRT.bits - _RATIO_PLACES)
    # Two units off, so that no error makes it too large; the power is 2^22 times the true one.
    full_bits = _RATIO_PLACES + _NORM_PAIRS - 1
    full = multiply_truncated(session, plus(session, ratio, -2), power, full_bits - bits)
    below_cap = multiply(session, full, _minus(present, capped))
    return add(below_cap, each(lambda word: word << (_CAP + bits), capped))


def cosines(session: Session, gram: Shares) -> Shares:
    """G_ij / sqrt(G_ii G_jj) of a Gram matrix [n, n] of words below 2^46, with COSINE_BITS. 25 rounds.

    Symmetric (the upper triangle counts), absolute error below 2^-25; 0 where a row is zero, else 1 on the diagonal.
    Words that are off by rounding, as after a truncation, do no harm.
    """
    count = gram.shape[0]
    i, j = torch.triu_indices(count, count)
    diagonal = (i == j).nonzero().flatten()
    # A row's power of two takes its squared norm to m 2^60: a product is below 2^60 then, by Cauchy-Schwarz, and
    # rounded words have room to 2^62.
    to_unit = [2 ** (PAIRS - 2 - t) for t in range(_NORM_PAIRS)]
    norms = each(lambda word: word.diagonal(), gram)
    power, present = at_leading_pair(session, norms, [to_unit, [1] * _NORM_PAIRS])
    both = multiply(session, each(lambda word: word[i], power), each(lambda word: word[j], power))
    products = multiply_truncated(session, each(lambda word: word[i, j], gram), both, 60 - ARGUMENT_BITS)
    # A zero row gets the mantissa in the middle: its inverse root is no garbage then, and its products are zero.
    u = each(lambda product, one: 2 * product[diagonal] - CENTRE * one, products, present)
    root = value(session, INV_SQRT, powers(session, u), 30)
    inverse = multiply_truncated(session, each(lambda word: word[i], root), each(lambda word: word[j], root), 31)
    upper = multiply_truncated(session, products, inverse, ARGUMENT_BITS + 29 - COSINE_BITS)

    def mirrored(word: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        square = word.new_zeros(count, count)
        square[i, j] = word
        square[j, i] = word
        square.diagonal().copy_(one << COSINE_BITS)
        return square

    return each(mirrored, upper, present)


def _minus(x: Shares, y: Shares) -> Shares:
    return each(torch.sub, x, y)


def _split(both: Shares, shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[Shares, Shares]:
    """Two flattened tensors taken apart."""
    count = both.first.numel() - torch.Size(other).numel()
    return (
        each(lambda word: word.flatten()[:count].reshape(shape), both),
        each(lambda word: word.flatten()[count:].reshape(other), both),
    )


def _unstacked(both: Shares) -> tuple[Shares, Shares]:
    return each(lambda word: word[0], both), each(lambda word: word[1], both)
