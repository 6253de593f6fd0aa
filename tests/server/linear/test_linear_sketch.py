"""The sketch: linear on shares, one result however it is cut, and a norm estimate as good as the theory says."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from held_memory import most_held

from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest
from triskele.ring import NARROW, WIDE
from triskele.sharing import Seed, ShareContext, expand
from triskele_server.linear.shares import SeedShare, WordShare, chunks
from triskele_server.linear.sketch import (
    BLOCKS,
    CHECK_BUCKETS,
    CHECK_WORDS,
    GRAM_BUCKETS,
    Sketch,
    project,
    squares_part,
)

COIN = bytes(range(32))
CONTEXT = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId("p0"))


def _words(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(1 << 63), 1 << 63, (rows, dimension), dtype=np.int64)


def _apply(sketch: Sketch, rows: np.ndarray) -> np.ndarray:
    return sketch.apply([WordShare(row) for row in rows])


@pytest.mark.parametrize("buckets", [CHECK_BUCKETS, GRAM_BUCKETS])
def test_sketches_of_shares_add_up_to_the_sketch(buckets):
    sketch = Sketch(COIN, 30_001, buckets)
    a, b = _words(3, 30_001, 1), _words(3, 30_001, 2)
    with np.errstate(over="ignore"):
        assert np.array_equal(_apply(sketch, a + b), _apply(sketch, a) + _apply(sketch, b))
        assert np.array_equal(_apply(sketch, a * 3), _apply(sketch, a) * 3)


def test_each_coordinate_goes_to_one_bucket_of_each_block_with_a_sign():
    dimension = 20_000
    sketch = Sketch(COIN, dimension, CHECK_BUCKETS)
    for coordinate in (0, 1, dimension - 1):
        row = np.zeros((1, dimension), np.int64)
        row[0, coordinate] = 5
        blocks = _apply(sketch, row).reshape(BLOCKS, CHECK_BUCKETS)
        assert (np.count_nonzero(blocks, 1) == 1).all()
        assert set(np.abs(blocks.sum(1))) == {5}


def test_buckets_and_signs_are_uniform_and_differ_between_blocks():
    sketch = Sketch(COIN, 100_000, CHECK_BUCKETS)
    places = sketch._places(0, 100_000).astype(np.int64)
    expected = 100_000 / (2 * CHECK_BUCKETS)
    for block in places:
        chi2 = ((np.bincount(block, minlength=2 * CHECK_BUCKETS) - expected) ** 2 / expected).sum()
        freedom = 2 * CHECK_BUCKETS - 1
        assert abs(chi2 - freedom) < 6 * (2 * freedom) ** 0.5
    assert (
        abs((places[0] == places[1]).mean() - 1 / (2 * CHECK_BUCKETS)) < 6 * (1 / (2 * CHECK_BUCKETS) / 100_000) ** 0.5
    )


@pytest.mark.parametrize("ring", [NARROW, WIDE])
@pytest.mark.parametrize("buckets", [CHECK_BUCKETS, GRAM_BUCKETS])
@pytest.mark.parametrize("rows", [1, 8, 17, 33])
def test_rows_beside_each_other_are_sketched_as_each_alone(ring, buckets, rows):
    """Whole and broken lines of lanes; a dimension that ends in the middle of a chunk, of a tile and of a square."""
    dimension = (1 << 17) + 1_029
    words = ring.reduced(_words(rows, dimension, 3))
    sketch = Sketch(COIN, dimension, buckets)
    expected = np.zeros((rows, BLOCKS, buckets), ring.dtype)
    for start, stop in chunks(dimension, 1 << 17):  # as the coin's places are drawn
        for block, places in enumerate(sketch._places(start, stop)):
            signed = np.where(places & 1, -words[:, start:stop], words[:, start:stop])
            for row, total in zip(signed, expected[:, block], strict=True):
                np.add.at(total, places >> 1, row)
    assert np.array_equal(_apply(sketch, words), expected.reshape(rows, -1))


@pytest.mark.parametrize("ring", [NARROW, WIDE])
def test_seeds_and_words_take_turns_in_one_sketch(ring):
    dimension = 200_003
    shares = [SeedShare(Seed(bytes([i]) * 16), CONTEXT, ShareIndex(1), ring) for i in range(3)]
    held = [shares[0], WordShare(ring.reduced(_words(1, dimension, 5)[0])), *shares[1:]]
    sketch = Sketch(COIN, dimension, CHECK_BUCKETS)
    together = sketch.apply(held)
    assert together.dtype == ring.dtype
    assert all(np.array_equal(row, sketch.apply([share])[0]) for row, share in zip(together, held, strict=True))


def test_a_seed_share_is_sketched_like_its_words():
    dimension = 200_003
    seed = Seed(secrets.token_bytes(16))
    words = expand(seed, CONTEXT, ShareIndex(1)).words(dimension)
    sketch = Sketch(COIN, dimension, CHECK_BUCKETS)
    by_seed = sketch.apply([SeedShare(seed, CONTEXT, ShareIndex(1))])
    assert np.array_equal(by_seed, _apply(sketch, words[None]))


def test_a_folded_sketch_is_a_count_sketch_of_fewer_buckets():
    """Bucket b becomes b mod 2048; the blocks stay apart, and one coordinate still has one bucket a block."""
    dimension = 9_000
    sketch = Sketch(COIN, dimension, GRAM_BUCKETS)
    row = np.zeros((1, dimension), np.int64)
    row[0, 77] = -3
    wide = _apply(sketch, row).reshape(BLOCKS, GRAM_BUCKETS)
    folded = sketch.folded(wide.reshape(1, -1)).reshape(BLOCKS, CHECK_BUCKETS)
    assert np.array_equal(np.nonzero(folded)[1], np.nonzero(wide)[1] % CHECK_BUCKETS)
    assert np.array_equal(folded.sum(1), wide.sum(1))
    words = _apply(sketch, _words(2, dimension, 5))
    with np.errstate(over="ignore"):
        expected = sum(words.reshape(2, BLOCKS, 4, CHECK_BUCKETS)[:, :, k] for k in range(4)).reshape(2, -1)
    assert np.array_equal(sketch.folded(words), expected)


@pytest.mark.parametrize(("buckets", "folded"), [(CHECK_BUCKETS, False), (GRAM_BUCKETS, False), (GRAM_BUCKETS, True)])
def test_the_norm_estimate_has_the_standard_deviation_of_theory(buckets, folded):
    """A block's relative variance is (2/k) (1 - sum x^4 / |x|^4); the mean of s blocks divides it by s."""
    dimension, trials = 9_000, 150
    row = np.random.default_rng(6).integers(-1000, 1001, (1, dimension), dtype=np.int64)
    norm = float((row.astype(float) ** 2).sum())
    estimates = []
    for trial in range(trials):
        sketch = Sketch(trial.to_bytes(32, "big"), dimension, buckets)
        z = _apply(sketch, row)
        z = sketch.folded(z) if folded else z
        estimates.append(float((z.astype(float) ** 2).sum()) / sketch.blocks / norm)
    k = CHECK_BUCKETS if folded else buckets
    deviation = (2 / k / BLOCKS) ** 0.5
    assert abs(np.mean(estimates) - 1) < 5 * deviation / trials**0.5
    assert 0.75 < np.std(estimates) / deviation < 1.3


@pytest.mark.parametrize("dimension", [1, 2, 5, CHECK_WORDS])
def test_a_short_vector_is_its_own_sketch(dimension):
    rows = _words(3, dimension, 7)
    for buckets in (CHECK_BUCKETS, GRAM_BUCKETS):
        sketch = Sketch(COIN, dimension, buckets)
        assert (sketch.identity, sketch.blocks) == (True, 1)
        assert np.array_equal(_apply(sketch, rows), rows)
        assert np.array_equal(sketch.folded(rows), rows)
        assert sketch.projections(3).shape == (3, dimension)


def test_the_first_longer_vector_is_sketched():
    sketch = Sketch(COIN, CHECK_WORDS + 1, CHECK_BUCKETS)
    assert (sketch.identity, sketch.blocks) == (False, BLOCKS)
    assert _apply(sketch, _words(1, CHECK_WORDS + 1)).shape == (1, CHECK_WORDS)
    assert sketch.projections(2).shape == (2, CHECK_WORDS)


def test_projections_are_minus_one_twice_zero_and_one():
    drawn = Sketch(COIN, 20_000, CHECK_BUCKETS).projections(64)
    assert drawn.dtype == np.int8
    total = drawn.size
    for value, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        assert abs((drawn == value).mean() - share) < 6 * (share * (1 - share) / total) ** 0.5
    assert set(np.unique(drawn)) == {-1, 0, 1}


def test_inner_products_wrap_like_the_ring():
    z = _words(3, 50, 8)
    vectors = np.random.default_rng(9).integers(-1, 2, (4, 50)).astype(np.int8)
    expected = [[sum(int(a) * int(b) for a, b in zip(row, v, strict=True)) % 2**64 for v in vectors] for row in z]
    assert (project(z, vectors).view(np.uint64).astype(object) == np.array(expected, dtype=object)).all()


def test_the_squares_parts_of_three_parties_add_up_to_each_rows_sum_of_squares():
    x = _words(3, 1_001, 11)
    a, b = _words(3, 1_001, 12), _words(3, 1_001, 13)
    with np.errstate(over="ignore"):
        parts = [a, b, x - a - b]
        total = sum(squares_part(parts[i], parts[(i + 1) % 3]) for i in range(3))
        assert np.array_equal(total, (x * x).sum(1))


@pytest.mark.parametrize("ring", [NARROW, WIDE])
def test_sketching_holds_the_sketches_and_what_does_not_depend_on_the_rows(ring):
    """Of 1,000 submissions they are 131 MB: never twice."""
    sketch = Sketch(COIN, 20_000, CHECK_BUCKETS)
    rows = ring.reduced(_words(256, 20_000, 14))
    _apply(sketch, rows[:1])  # loads the kernels
    held = most_held(lambda: _apply(sketch, rows))
    assert held < len(rows) * CHECK_WORDS * ring.word_bytes + (12 << 20)


def test_the_check_of_the_sketches_copies_none():
    first, second = _words(64, 1 << 15, 15), _words(64, 1 << 15, 16)
    vectors = np.random.default_rng(17).integers(-1, 2, (4, 1 << 15)).astype(np.int8)

    def local(count: int) -> None:
        project(first[:count], vectors)
        squares_part(first[:count], second[:count])

    local(1)  # loads the kernels
    assert most_held(lambda: local(64)) < 1 << 17


def test_another_coin_gives_another_sketch():
    rows = _words(1, 9_000, 10)
    one, other = (_apply(Sketch(coin, 9_000, CHECK_BUCKETS), rows) for coin in (COIN, bytes(32)))
    assert (one == other).mean() < 0.01
    assert not np.array_equal(Sketch(COIN, 10, 2048).projections(1), Sketch(bytes(32), 10, 2048).projections(1))
