"""Roots, quotients and logarithms on shares: their stated errors from the smallest word to the largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from three_parties import encoded, on_shares, on_tensors, values

from triskele.errors import TriskeleError
from triskele_server.mpc import mantissa, roots

CAP = 2.0**15


def _log_uniform(top: float, count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.exp2(np.random.default_rng(seed).uniform(0, top, count)).astype(np.int64))


def _whole_range(top: int = 62) -> torch.Tensor:
    """Positive words below 2^top: the small ones, all powers of two and their neighbours, and 2000 more."""
    powers = 2 ** torch.arange(top)
    last = torch.tensor([(1 << top) - 1])
    return torch.cat([torch.arange(1, 300), powers, powers[1:] - 1, powers[1:] + 1, _log_uniform(top, 2000, 3), last])


def _numbers(words: torch.Tensor, fraction_bits: int) -> np.ndarray:
    return words.double().numpy() / 2.0**fraction_bits


# ---- mantissas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("polynomial", "function", "relative", "bits"),
    [
        (mantissa.INV_SQRT, lambda m: m**-0.5, True, 28.4),
        (mantissa.SQRT, np.sqrt, True, 29.7),
        (mantissa.INVERSE, lambda m: 1 / m, True, 25.8),
        (mantissa.LOG, np.log, False, 28.4),
    ],
)
def test_polynomials_are_as_close_as_their_table_says(polynomial, function, relative, bits):
    u = np.linspace(-0.75, 0.75, 100_001)
    exact = function((u + 1.25) / 2)
    got = np.polynomial.polynomial.polyval(u, np.array(polynomial.coefficients) / 2.0**polynomial.bits)
    error = np.abs(got - exact) / (exact if relative else 1)
    assert 2.0 ** -(bits + 0.1) < error.max() < 2.0**-bits


@pytest.mark.parametrize("pairs", [1, 2, 23, 31])
def test_tables_are_read_at_the_leading_pair_of_bits(pairs):
    words = _whole_range(2 * pairs)
    words = torch.cat([torch.tensor([0, -1, -(1 << 60)]), words[words < 4.0**pairs]])
    table = torch.from_numpy(np.random.default_rng(pairs).integers(-(1 << 62), 1 << 62, pairs))
    places = torch.tensor([(max(int(word), 0).bit_length() + 1) // 2 - 1 for word in words])
    expected = torch.where(places >= 0, table[places], 0)
    got = on_shares(lambda s, x: mantissa.at_leading_pair(s, x, [[5] * pairs, table.tolist()])[1], words)
    assert torch.equal(got, expected)
    signed = on_shares(lambda s, x: mantissa.at_signed_leading_pair(s, x, [table.tolist()])[0], -words[3:])
    assert torch.equal(signed, -expected[3:])


def test_leading_power_brings_a_word_below_the_limit():
    words = _whole_range()
    power = on_shares(roots.leading_power, words)
    assert ((power * words) >> 60).ge(1).all()
    assert ((power * words) >> 60).le(3).all()
    assert not on_shares(roots.leading_power, torch.zeros(3)).any()


# ---- of one number ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction_bits", [0, 20, 40, 43])
def test_roots_over_the_whole_range(fraction_bits):
    words = _whole_range(62 - fraction_bits % 2)  # odd places are made even by a doubling
    exact = np.sqrt(_numbers(words, fraction_bits))
    root, inverse = on_tensors(lambda x: [x.sqrt(), x.inv_sqrt()], (words, fraction_bits))
    assert np.abs(values(root) / exact - 1).max() < 2.0**-25
    assert np.abs(values(inverse) * exact - 1).max() < 2.0**-25


@pytest.mark.parametrize("fraction_bits", [0, 20, 40])
def test_reciprocals_of_both_signs_over_the_whole_range(fraction_bits):
    words = _whole_range()
    words = torch.cat([words, -words])
    got, bits = on_tensors(lambda x: x.reciprocal(), (words, fraction_bits))
    assert bits == 62 - fraction_bits
    exact = 2.0**62 / words.double().numpy()
    assert (np.abs(got.double().numpy() - exact) < 2.0**-24 * np.abs(exact) + 1).all()


@pytest.mark.parametrize("fraction_bits", [0, 20, 40])
def test_logarithms_over_the_whole_range(fraction_bits):
    words = _whole_range()
    got = on_tensors(lambda x: x.log(), (words, fraction_bits))
    assert got[1] == 30
    assert np.abs(values(got) - np.log(_numbers(words, fraction_bits))).max() < 2.0**-26


def test_functions_of_zero_and_of_negative_numbers():
    words = torch.tensor([0] * 50 + [-1, -(1 << 40), -(1 << 61)])
    for name in ("sqrt", "inv_sqrt"):
        assert not on_tensors(lambda x, name=name: getattr(x, name)(), (words, 40))[0].any()
    assert not on_tensors(lambda x: x.reciprocal(), (words[:50], 40))[0].any()
    assert np.abs(values(on_tensors(lambda x: x.log(), (words, 40))) + 64).max() < 2.0**-26


def test_log_odds_of_weights_near_both_ends():
    """ln(w / (1 - w)) as the difference of two logarithms, w from 2^-20 to 1 - 2^-20."""
    small = np.exp2(np.random.default_rng(4).uniform(-20, -1, 500))
    weights = encoded(np.concatenate([small, 1 - small]), 40)
    got = values(on_tensors(lambda w: w.log() - (1 - w).log(), (weights, 40)))
    exact = _numbers(weights, 40)
    assert np.abs(got - np.log(exact / (1 - exact))).max() < 2.0**-25


# ---- of two and more -------------------------------------------------------------------------------------------------


def _quotients(smallest: float, bits: int, other_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words of dividends and divisors of both signs; divisors from 2^smallest to 2^10, quotients below 2^10."""
    rng = np.random.default_rng(bits)
    y = np.trunc(np.exp2(rng.uniform(smallest, 10, 3000)) * rng.choice([1, -1], 3000) * 2.0**other_bits)
    y = np.concatenate([y, 2.0**other_bits * np.array([1, -1, 2.0**smallest, 1023])])
    quotients = np.exp2(rng.uniform(-30, 9.99, len(y))) * rng.choice([1, -1], len(y))
    x = np.trunc(quotients * y * 2.0 ** (bits - other_bits))
    x = np.where(np.abs(x) < 2.0**61, x, 0)
    return torch.from_numpy(x).long(), torch.from_numpy(y).long()


@pytest.mark.parametrize(
    ("smallest", "bits", "other_bits"),
    [(-40, 40, 40), (-40, 20, 40), (-20, 40, 20), (0, 0, 0), (-42, 42, 42), (-10, 50, 52), (-10, 30, 51)],
)
def test_quotients_of_small_and_large_numbers_of_both_signs(smallest, bits, other_bits):
    x, y = _quotients(smallest, bits, other_bits)
    exact = _numbers(x, bits) / _numbers(y, other_bits)
    got = on_tensors(lambda a, b: a / b, (x, bits), (y, other_bits))
    assert got[1] == 26
    assert (np.abs(values(got) - exact) < 2.0**-22 * np.maximum(1, np.abs(exact))).all()


def test_a_quotient_by_zero_is_zero_and_shapes_broadcast():
    x, y = torch.tensor([[3], [-5]]), torch.tensor([0, 1, -2])
    got = values(on_tensors(lambda a, b: a / b, (x, 20), (y, 20)))
    assert np.abs(got - [[0, 3, -1.5], [0, -5, 2.5]]).max() < 2.0**-20


@pytest.mark.parametrize("fraction_bits", [0, 40])
@pytest.mark.parametrize("largest", [1, 3, 1 << 20, 1 << 41, 1 << 50, (1 << 55) - 1])
def test_normalised_rows_of_any_sum(largest, fraction_bits):
    """Sums from one word to nearly 2^62; zero rows, one entry that is nearly all, equal entries."""
    rows = np.random.default_rng(7).integers(0, largest + 1, (40, 100))
    rows[0] = 0
    rows[1, 1:] = 0
    rows[2] = 1
    rows[3], rows[3, 4] = 1, largest
    rows[4] = largest
    got, bits = on_tensors(lambda x: x.normalised(), (torch.from_numpy(rows), fraction_bits))
    assert bits == 30
    totals = rows.astype(float).sum(1, keepdims=True)
    assert np.abs(values((got, bits)) - rows / np.where(totals > 0, totals, 1)).max() < 2.0**-24
    assert not got[0].any()


def _ratio_operands() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of words below 2^46: of all sizes, equal, and with a ratio of roots within a thousandth of the cap."""
    x, y = _log_uniform(45.99, 8000, 8), _log_uniform(45.99, 8000, 9)
    large = torch.from_numpy(np.exp2(np.random.default_rng(10).uniform(40, 45.99, 3000)).astype(np.int64))
    spread = torch.from_numpy(np.exp(np.random.default_rng(11).normal(-30 * np.log(2), 2e-3, 3000)))
    near = (large * spread).long().clamp(min=1)
    edge = torch.tensor([1, (1 << 46) - 1, 1 << 30, (1 << 30) - 1, 1 << 16, 1 << 46 - 1, (1 << 45) + 1])
    pairs = torch.cartesian_prod(edge, edge)
    return torch.cat([x, x, large, pairs[:, 0]]), torch.cat([y, x, near, pairs[:, 1]])


@pytest.mark.parametrize("bits", [20, 30, 40])
def test_ratios_of_roots_over_the_whole_range(bits):
    x, y = _ratio_operands()
    got = on_tensors(lambda a, b: a.root_ratio(b, bits), (x, 40), (y, 40))
    exact = np.sqrt(x.double().numpy() / y.double().numpy())
    error = values(got) - np.minimum(exact, CAP)
    assert got[1] == bits
    assert (error > -(2.0**-20) * np.minimum(exact, CAP) - 2.0**-bits).all()
    assert error.max() < 2.0**-bits
    assert values(got).max() == CAP
    assert (values(got)[: len(x)][(x == y).numpy()] <= 1).all()


def test_ratios_with_zeros_mixed_scales_and_shapes():
    x, y = torch.tensor([[0], [1], [1 << 40]]), torch.tensor([0, 1, 1 << 44])
    got = values(on_tensors(lambda a, b: a.root_ratio(b), (x, 36), (y, 40)))
    exact = [[0, 0, 0], [CAP, 4, 2.0**-20], [CAP, CAP, 1]]
    assert np.abs(got - exact).max() < 2.0**-18
    assert got[0].tolist() == [0, 0, 0]
    assert got[:, 0].tolist() == [0, CAP, CAP]
    # One number over many, as a norm over all norms.
    got = values(on_tensors(lambda a: a[2].root_ratio(a), (torch.tensor([4, 9, 36, 0]), 40)))
    assert np.abs(got - [3, 2, 1, CAP]).max() < 2.0**-18


def test_a_ratio_of_zero_is_exactly_zero():
    """The truncation of a zero alone would give one unit now and then."""
    x, y = torch.zeros(2000, dtype=torch.int64), _log_uniform(45.99, 2000, 12)
    assert not on_tensors(lambda a, b: a.root_ratio(b, 40), (x, 40), (y, 40))[0].any()


@pytest.mark.parametrize("bits", [-1, 41])
def test_a_ratio_with_places_that_cannot_hold_is_refused(bits):
    with pytest.raises(TriskeleError, match="0 to 40 fraction bits"):
        on_tensors(lambda a: a.root_ratio(a, bits), (torch.ones(1), 40))


def test_truncated_places_err_by_less_than_a_unit():
    words = torch.cat([_whole_range(), -_whole_range()])
    got, bits = on_tensors(lambda x: x.truncated(20), (words, 40))
    assert bits == 20
    assert torch.isin(got - (words >> 20), torch.tensor([0, 1])).all()
    assert on_tensors(lambda x: x.truncated(40), (words, 40))[0].tolist() == words.tolist()
