"""Fixed-point encoding: unbiased, clipped, exact where it can be; and the headroom that keeps sums from wrapping."""

import numpy as np
import pytest

from triskele.encoding import decode, encode, l2_norm
from triskele.errors import InvalidTask, InvalidUpdate
from triskele.keystream import KeyStream
from triskele.task import FRACTION_BITS, MAX_CLIP_NORM, MIN_CLIP_NORM, VALUE_BITS, TaskSpec

ONE = 2**FRACTION_BITS


def stream(number=0):
    return KeyStream(number.to_bytes(16, "big"))


@pytest.mark.parametrize("value", [0.3, -0.3, 0.001, -1 / 3, 7.9999])
def test_rounding_is_unbiased(value):
    count = 1 << 18
    grid = np.full(count, value / ONE)  # `value` grid steps, far below the clip
    words = encode(grid, clip_norm=1.0, rounding=stream(1))
    assert set(np.unique(words)) <= {np.floor(value), np.floor(value) + 1}
    fraction = value - np.floor(value)
    deviations = (words.mean() - value) / np.sqrt(fraction * (1 - fraction) / count)
    assert abs(deviations) < 5
    assert words.min() < words.max()


def test_rounding_of_neighbours_is_independent():
    words = encode(np.full(1 << 18, 0.5 / ONE), clip_norm=1.0, rounding=stream(2)).astype(np.float64)
    assert abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_on_the_grid_are_exact(dtype):
    grid = np.array([0, 1, -1, 12345, -54321, 2**19, -(2**19)])
    words = encode((grid / ONE).astype(dtype), clip_norm=1.0, rounding=stream(3))
    assert np.array_equal(words, grid)
    assert np.array_equal(decode(words, clip_norm=1.0, weight_total=1.0), grid / ONE)


def test_single_entry_at_the_clip_is_the_largest_value():
    assert encode(np.array([2.5]), clip_norm=2.5, rounding=stream()).tolist() == [ONE]
    assert encode(np.array([-1e30]), clip_norm=2.5, rounding=stream()).tolist() == [-ONE]


@pytest.mark.parametrize("dimension", [1, 10, 100_000])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.0001, 1e6])
def test_norm_never_exceeds_the_clip(dimension, factor):
    vector = np.random.default_rng(4).normal(size=dimension)
    vector *= 3.0 * factor / np.linalg.norm(vector)
    words = encode(vector, clip_norm=3.0, rounding=stream(4)).astype(np.float64)
    assert np.linalg.norm(words) <= ONE + np.sqrt(dimension)
    expected = vector * min(1.0, 3.0 / np.linalg.norm(vector)) / 3.0 * ONE
    assert np.abs(words - expected).max() <= 1 + 1e-6


def test_clipping_can_be_forbidden():
    with pytest.raises(InvalidUpdate, match="clip_norm"):
        encode(np.array([1.1]), clip_norm=1.0, rounding=stream(), clip=False)
    assert encode(np.array([1.0]), clip_norm=1.0, rounding=stream(), clip=False).tolist() == [ONE]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_what_has_no_norm_is_refused(bad):
    vector = np.zeros(200_000)
    vector[-1] = bad
    with pytest.raises(InvalidUpdate):
        encode(vector, clip_norm=1.0, rounding=stream())


@pytest.mark.parametrize("clip_norm", [MIN_CLIP_NORM, MAX_CLIP_NORM])
def test_extreme_clips_still_encode(clip_norm):
    words = encode(np.array([clip_norm / 2, -clip_norm / 4, 0.0]), clip_norm=clip_norm, rounding=stream())
    assert np.abs(words - [ONE // 2, -ONE // 4, 0]).max() <= 1
    tiny = encode(np.full(4, 1e-300), clip_norm=clip_norm, rounding=stream())
    assert np.abs(tiny).max() <= 1


def test_norm_is_that_of_numpy_over_many_chunks():
    vector = np.random.default_rng(5).normal(size=300_001).astype(np.float32)
    assert l2_norm(vector) == pytest.approx(np.linalg.norm(vector.astype(np.float64)), rel=1e-12)


def test_encoding_goes_into_the_given_words():
    out = np.full(5, 9, np.int64)
    assert encode(np.ones(4), clip_norm=2.0, rounding=stream(), out=out[:4]).base is out
    assert out.tolist() == [ONE // 2] * 4 + [9]


def test_weighted_mean_comes_back():
    vectors = np.random.default_rng(6).normal(size=(3, 50)) / 10
    weights = np.array([1, 10, 100])
    words = sum(w * encode(v, clip_norm=1.0, rounding=stream(7)) for v, w in zip(vectors, weights, strict=True))
    mean = decode(words, clip_norm=1.0, weight_total=111.0)
    assert np.abs(mean - weights @ vectors / 111).max() < 2.0**-20


def test_largest_honest_aggregate_does_not_wrap():
    spec = TaskSpec("x", 1, 1.0, max_weight=(1 << 32) - 1, max_participants=512)
    largest = (2**VALUE_BITS - 1) * spec.max_weight * spec.max_participants
    assert largest < 2**62
    spec.check_headroom()
    with pytest.raises(InvalidTask, match=r"21 bits of value \+ 32 bits of weight \+ 10 bits for 1024"):
        TaskSpec("x", 1, 1.0, max_weight=(1 << 32) - 1, max_participants=1024)


def test_headroom_counts_the_rules_own_bits():
    spec = TaskSpec("x", 1, 1.0, max_weight=1000, max_participants=128)  # 21 + 10 + 7 bits
    spec.check_headroom(24)
    with pytest.raises(InvalidTask, match="63 > 62"):
        spec.check_headroom(25)
