"""Square roots on shares: relative error below 2^-22 from the smallest word to 2^62."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from three_parties import at_three_parties, on_tensors, reconstruct, share, values

from triskele_server.mpc import roots
from triskele_server.mpc.session import Session


def _whole_range() -> torch.Tensor:
    powers = 2 ** torch.arange(62)
    log_uniform = torch.from_numpy(np.exp2(np.random.default_rng(3).uniform(0, 61.99, 2000)).astype(np.int64))
    return torch.cat(
        [torch.arange(1, 300), powers, powers[1:] - 1, powers[1:] + 1, log_uniform, torch.tensor([(1 << 62) - 1])]
    )


@pytest.mark.parametrize("fraction_bits", [0, 20, 42])
@pytest.mark.parametrize("function", [roots.inv_sqrt, roots.sqrt])
def test_relative_error_over_the_whole_range(function, fraction_bits):
    words = _whole_range()
    shared = share(words)
    places = 0

    def run(session: Session):
        nonlocal places
        result, places = function(session, shared[session.party], fraction_bits)
        return result

    got = reconstruct(at_three_parties(run)).double().numpy() / 2.0**places
    exact = np.sqrt(words.double().numpy() / 2.0**fraction_bits)
    expected = 1 / exact if function is roots.inv_sqrt else exact
    assert np.abs(got / expected - 1).max() < 2.0**-22


@pytest.mark.parametrize("function", [roots.inv_sqrt, roots.sqrt])
def test_root_of_zero_is_zero(function):
    shared = share([0, 0, 0])
    assert not reconstruct(at_three_parties(lambda s: function(s, shared[s.party], 20)[0])).any()


@pytest.mark.parametrize("fraction_bits", [19, 20, 21])
def test_roots_of_tensors_with_odd_and_even_places(fraction_bits):
    words = torch.tensor([1, 2, 3, 1 << 19, 1 << 20, 12345678, 1 << 40])
    exact = np.sqrt(words.double().numpy() / 2.0**fraction_bits)
    assert np.abs(values(on_tensors(lambda x: x.sqrt(), (words, fraction_bits))) / exact - 1).max() < 2.0**-22
    assert np.abs(values(on_tensors(lambda x: x.inv_sqrt(), (words, fraction_bits))) * exact - 1).max() < 2.0**-22


def test_reciprocal_of_both_signs_in_the_range_whose_inverse_is_representable():
    """26 places are kept: the absolute error stays below 2^-24, relative 2^-20 up to 8."""
    entries = np.array([0.01, 0.1, 0.5, 1.0, 1.5, 3.0, 7.9])
    entries = np.concatenate([entries, -entries])
    words = np.round(entries * 2**20)
    got = values(on_tensors(lambda x: x.reciprocal(), (torch.from_numpy(words).long(), 20)))
    assert np.abs(got * (words / 2**20) - 1).max() < 2.0**-20
