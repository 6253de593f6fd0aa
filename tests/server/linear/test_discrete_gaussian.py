"""The sampler against the exact discrete Gaussian: chi-square at three scales, with a reference computed here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss
from scipy import stats

from triskele_server.linear import discrete_gaussian as module
from triskele_server.linear.discrete_gaussian import MAX_SIGMA, discrete_gaussian

SAMPLES = 400_000
BINS = 60
KEY = bytes(range(16))


def exact_pmf(sigma: int) -> tuple[np.ndarray, np.ndarray]:
    """Every integer up to 12 sigma and its probability: the definition, normalised by its own sum."""
    values = np.arange(-12 * sigma, 12 * sigma + 1)
    weights = np.exp(-(values.astype(np.float64) ** 2) / (2.0 * sigma**2))
    return values, weights / weights.sum()


def p_value(samples: np.ndarray, sigma: int) -> float:
    """Of Pearson's test on bins of about equal probability; no bin is expected to hold fewer than 20 samples."""
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


@pytest.mark.parametrize("sigma", [1, 30, 100_003])
def test_samples_fit_the_exact_distribution(sigma):
    samples = discrete_gaussian(KEY, sigma, SAMPLES)
    assert p_value(samples, sigma) > 0.001
    assert p_value(np.abs(samples[1:] - samples[:-1]), sigma) < 1e-9  # the test can fail


def test_the_fit_at_the_smallest_scale_tells_it_from_a_rounded_continuous_gaussian():
    """The difference that exactness is about: a rounded Gaussian has 1/12 more variance."""
    rounded = np.round(np.random.default_rng(5).normal(size=SAMPLES)).astype(np.int64)
    assert p_value(rounded, 1) < 1e-9


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
    with ThreadPoolExecutor(2) as pool:
        assert np.array_equal(whole, discrete_gaussian(KEY, 1000, length, pool))
    monkeypatch.setattr(module, "_WORDS_EACH", 1)  # the words run out in the middle of a sample, again and again
    assert np.array_equal(whole, discrete_gaussian(KEY, 1000, length))
    other = discrete_gaussian(bytes(16), 1000, length)
    assert abs(np.corrcoef(whole, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.02


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1])
def test_a_scale_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        discrete_gaussian(KEY, sigma, 1)
