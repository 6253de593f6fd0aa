"""The sampler against the exact discrete Gaussian: chi-square at three scales, with a reference computed here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss
from scipy import stats

from triskele.keystream import KeyStream
from triskele_server.linear import discrete_gaussian as module
from triskele_server.linear.discrete_gaussian import MAX_SIGMA, boundaries, decided, discrete_gaussian

SAMPLES = 4_000_000
BINS = 60
KEY = bytes(range(16))


def exact_pmf(sigma: int) -> tuple[np.ndarray, np.ndarray]:
    """Every integer up to 12 sigma and its probability: the definition, normalised by its own sum."""
    values = np.arange(-12 * sigma, 12 * sigma + 1)
    weights = np.exp(-(values.astype(np.float64) ** 2) / (2.0 * sigma**2))
    return values, weights / weights.sum()


def p_value(samples: np.ndarray, sigma: int) -> float:
    """Of Pearson's test on bins of about equal probability; no bin is expected to hold fewer than 5 samples."""
    values, probabilities = exact_pmf(sigma)
    cumulated = np.cumsum(probabilities)
    wanted = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = np.unique(values[np.searchsorted(cumulated, wanted)])
    if sigma < BINS:  # every integer that is likely enough is a bin of its own
        likely = values[probabilities * len(samples) >= 20]
        edges = likely[:-1]
    expected = np.diff(np.concatenate([[0.0], cumulated[np.searchsorted(values, edges)], [1.0]])) * len(samples)
    observed = np.bincount(np.searchsorted(edges, samples, side="left"), minlength=len(edges) + 1)
    assert expected.min() >= 5
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("sigma", [4, 120, 100_004])
def test_samples_fit_the_exact_distribution(sigma):
    samples = discrete_gaussian(KEY, sigma, SAMPLES)
    assert p_value(samples, sigma) > 0.001
    assert p_value(np.abs(samples[1:] - samples[:-1]), sigma) < 1e-9  # the test can fail


def test_the_fit_at_the_smallest_scale_tells_it_from_a_rounded_continuous_gaussian():
    """The difference that exactness is about: a rounded Gaussian has 1/12 more variance."""
    rounded = np.round(4 * np.random.default_rng(5).normal(size=SAMPLES)).astype(np.int64)
    assert p_value(rounded, 4) < 1e-4


@pytest.mark.parametrize("sigma", [4, 120])
def test_the_far_tail_is_as_likely_as_it_should_be(sigma):
    """Beyond 4 sigma, where one step is more than one trial of exp(-a)."""
    values, probabilities = exact_pmf(sigma)
    samples = np.abs(discrete_gaussian(bytes(16), sigma, SAMPLES))
    for least in (4 * sigma, math.ceil(4.25 * sigma)):
        expected = SAMPLES * probabilities[np.abs(values) >= least].sum()
        assert abs(int((samples >= least).sum()) - expected) < 4 * math.sqrt(expected)


def test_two_scales_out_of_reach_of_a_table_have_the_right_quantiles():
    for sigma in (1 << 41, MAX_SIGMA):
        samples = discrete_gaussian(KEY, sigma, 100_000) / sigma
        assert stats.kstest(samples, "norm").pvalue > 0.001


def test_the_reference_is_dp_accountings_discrete_gaussian():
    sigma = 30
    theirs = DiscreteGaussianPrivacyLoss(sigma, truncation_bound=12 * sigma)
    values, probabilities = exact_pmf(sigma)
    assert np.allclose(np.cumsum(probabilities), theirs.noise_cdf(values), atol=1e-12)


def test_samples_are_a_function_of_the_key_and_nothing_else(monkeypatch):
    length = 70_000  # more than a block
    whole = discrete_gaussian(KEY, 1000, length)
    assert np.array_equal(whole[:1000], discrete_gaussian(KEY, 1000, 1000))
    monkeypatch.setattr(module, "_WORDS_EACH", 1)  # the words run out in the middle of a sample, again and again
    assert np.array_equal(whole, discrete_gaussian(KEY, 1000, length))
    other = discrete_gaussian(bytes(16), 1000, length)
    assert abs(np.corrcoef(whole, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.02


def _heights(places: int) -> list[int]:
    """exp(-k^2/32) in units of 2^-places, k below 75: by the series of exp(-1/32) and multiplications of integers."""
    root = term = one = 1 << places
    for n in range(1, places):
        term = -term // (32 * n)
        root += term
    heights, power = [one], root
    while len(heights) < 75:
        heights.append(heights[-1] * power >> places)
        power = power * root * root >> 2 * places
    return heights


@pytest.mark.parametrize("bits", [1, 8, 64, 128])
def test_the_cumulated_probabilities_are_right_to_the_last_bit(bits):
    """Against integer arithmetic with 400 places, which knows nothing of Decimal."""
    heights = _heights(400)
    cumulated = [sum(heights[: k + 1]) << bits for k in range(len(boundaries(bits)))]
    assert [x // sum(heights) for x in cumulated] == list(boundaries(bits))
    assert boundaries(bits)[-1] == 2**bits - 1


def test_a_word_that_decides_nothing_is_followed_by_more_bits():
    """Of a u that begins like an F_k the bits of the key stream decide, and so often as its F_k says."""
    for k, first in enumerate(boundaries(8)[:3]):
        fraction = (boundaries(72)[k] - (first << 64)) / 2**64
        lower = sum(decided(first, 8, KeyStream(i.to_bytes(16, "big"))) == k for i in range(400))
        assert abs(lower - 400 * fraction) < 4 * math.sqrt(400 * fraction * (1 - fraction))


def test_samples_fit_when_words_often_decide_nothing(monkeypatch):
    """Four bits instead of 64: the path that is taken once in 2^58 draws, taken by every second one."""
    length = 60_000
    monkeypatch.setattr(module, "_TABLE_BITS", 4)
    samples = discrete_gaussian(KEY, 120, length)
    assert p_value(samples, 120) > 0.001
    monkeypatch.setattr(module, "_WORDS_EACH", 1)
    assert p_value(discrete_gaussian(KEY, 120, length), 120) > 0.001
    monkeypatch.setattr(module, "decided", lambda first, bits, _: list(boundaries(bits)).index(first))
    assert p_value(discrete_gaussian(KEY, 120, length), 120) < 1e-9  # the first k that may be: the test can fail


def test_what_was_decided_stays_so_when_the_words_run_out_after_it(monkeypatch):
    monkeypatch.setattr(module, "_TABLE_BITS", 4)
    found = []
    for words in (5, 1):
        monkeypatch.setattr(module, "_WORDS_EACH", words)
        apart = KeyStream(bytes(16))
        monkeypatch.setattr(module, "decided", lambda first, bits, _, apart=apart: decided(first, bits, apart))
        found.append(discrete_gaussian(KEY, 120, 30_000))
    assert np.array_equal(*found)


@pytest.mark.parametrize("sigma", [0, -4, 2, 30, MAX_SIGMA + 4])
def test_a_scale_that_the_steps_do_not_divide_or_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        discrete_gaussian(KEY, sigma, 1)
