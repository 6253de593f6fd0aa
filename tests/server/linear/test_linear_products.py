"""Gram and combine on shares: right mod 2^64, one result however the work is cut, shares read where they lie."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest
from held_memory import most_held

from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest
from triskele.ring import NARROW, WIDE
from triskele.sharing import Seed, ShareContext, expand
from triskele_server.at_rest import ShareVault, StoreDamaged
from triskele_server.linear.combine import combine_public, combine_secret
from triskele_server.linear.gram import exact_gram_part, gram_part
from triskele_server.linear.shares import FileShare, SeedShare, SharePair, WordShare, chunks, read_rows

CONTEXT = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId("p0"))


def _words(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(1 << 63), 1 << 63, shape, dtype=np.int64)


def _shared(x: np.ndarray, seed: int) -> list[np.ndarray]:
    a, b = _words(*x.shape, seed=seed), _words(*x.shape, seed=seed + 1)
    return [a, b, x - a - b]


def _pairs(parts: list[np.ndarray], party: int) -> list[SharePair]:
    first, second = parts[party], parts[(party + 1) % 3]
    return [SharePair(WordShare(a), WordShare(b)) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (2, 511), (3, 512), (5, 513), (7, 8192), (4, 20_001)])
def test_the_parties_gram_parts_add_up_to_the_product_mod_2_64(rows, words):
    x = _words(rows, words, seed=words)
    parts = _shared(x, words + 1)
    total = sum(gram_part(parts[i], parts[(i + 1) % 3]) for i in range(3))
    assert np.array_equal(total, x @ x.T)


@pytest.mark.parametrize("dimension", [1, 8192, 8193, 20_001])
def test_the_streamed_gram_is_the_whole_one(dimension):
    parts = _shared(_words(4, dimension, seed=1), 2)
    for party in range(3):
        whole = gram_part(parts[party], parts[(party + 1) % 3])
        assert np.array_equal(exact_gram_part(_pairs(parts, party), dimension), whole)
        norms = exact_gram_part(_pairs(parts, party), dimension, norms_only=True)
        assert np.array_equal(norms, np.diag(np.diag(whole)))


@pytest.mark.parametrize("words", [5, 2048, 5000])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_gram_of_chosen_rows_and_of_one_beside_them_is_that_of_their_copies(words, mixed):
    first, second = _words(6, words, seed=11), _words(6, words, seed=12)
    last = _words(1, words, seed=13), _words(1, words, seed=14)
    matrix = np.array([[1, 0, 2, 0], [0, -1, 0, 0], [0, 0, 0, 3]]) if mixed else None
    copies = [np.concatenate([share[[4, 0, 5]], row]) for share, row in zip((first, second), last, strict=True)]
    if matrix is not None:
        copies = [matrix @ copy for copy in copies]
    a, b = copies
    part = gram_part(first, second, [4, 0, 5, 6], matrix, last)
    assert np.array_equal(part, a @ a.T + a @ b.T + b @ a.T)
    norms = gram_part(first, second, [4, 0, 5, 6], matrix, last, norms_only=True)
    assert np.array_equal(norms, np.diag(np.diag(part)))


def test_a_gram_part_copies_no_share():
    """With 1,000 submissions the copies were 150 MB beside 131 MB of sketches."""
    first, second = _words(64, 1 << 15, seed=15), _words(64, 1 << 15, seed=16)
    half = np.kron(np.eye(32, dtype=np.int64), [1, 1])
    for rows, matrix in ((None, None), (range(64), None), (range(64), half)):
        gram_part(first[:, :9], second[:, :9], rows, matrix)  # loads the kernel
        held = most_held(lambda rows=rows, matrix=matrix: gram_part(first, second, rows, matrix))
        assert held < first.nbytes // 4


def test_a_gram_part_is_symmetric():
    part = gram_part(_words(6, 1000, seed=3), _words(6, 1000, seed=4))
    assert np.array_equal(part, part.T)


@pytest.mark.parametrize("ring", [NARROW, WIDE])
@pytest.mark.parametrize("dimension", [1, 3, 65_536, 140_001])
def test_public_weights_on_one_share(dimension, ring):
    shares, weights = ring.reduced(_words(5, dimension, seed=5)), [1, 0, -3, 1 << 40, (1 << 63) - 1]
    expected = (shares * ring.reduced(np.array(weights))[:, None]).sum(0, dtype=ring.dtype)
    assert np.array_equal(combine_public([WordShare(row) for row in shares], weights, dimension), expected)


@pytest.mark.parametrize("ring", [NARROW, WIDE])
@pytest.mark.parametrize("dimension", [1, 3, 65_536, 140_001])
def test_secret_weights_add_up_to_the_weighted_sum_in_the_ring(dimension, ring):
    x, w = _words(4, dimension, seed=6), _words(4, seed=7)
    parts, weights = [ring.reduced(part) for part in _shared(x, 8)], _shared(w, 9)
    total = np.zeros(dimension, ring.dtype)
    for party in range(3):
        pair = list(zip(weights[party].tolist(), weights[(party + 1) % 3].tolist(), strict=True))
        total += combine_secret(_pairs(parts, party), pair, dimension)
    assert np.array_equal(total, ring.reduced((x * w[:, None]).sum(0)))


def test_the_words_of_a_submission_beyond_the_dimension_are_not_combined():
    """The example weight rides behind the update."""
    assert combine_public([WordShare(np.array([1, 2, 99]))], [2], 2).tolist() == [2, 4]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_one_word_of_a_pair_is_read_from_both_shares(length):
    seed = Seed(secrets.token_bytes(16))
    expanded = expand(seed, CONTEXT, ShareIndex(2)).words(length)
    words = np.arange(length, dtype=np.int64) * 3
    pair = SharePair(SeedShare(seed, CONTEXT, ShareIndex(2)), WordShare(words))
    assert [pair.word(k) for k in range(length)] == [(int(expanded[k]), int(words[k])) for k in range(length)]


@pytest.mark.parametrize("ring", [NARROW, WIDE])
def test_every_share_gives_the_same_words_from_any_block_on_and_in_any_pieces(ring, tmp_path):
    seed = SeedShare(Seed(bytes(16)), CONTEXT, ShareIndex(0), ring)
    words = read_rows([seed], 0, 1001)[0]
    (tmp_path / "share").write_bytes(words.tobytes())
    vault = ShareVault(bytes(32))
    with vault.create(tmp_path / "sealed", b"place") as file:
        file.append(words.tobytes())
        file.finish()
    sealed = vault.words(tmp_path / "sealed", b"place", 1001, ring)
    for share in (seed, WordShare(words), FileShare.of(tmp_path / "share", 1001, ring), sealed):
        for start in (0, 4, 500, 1000):
            stream, at = share.stream(start), start
            for size in (1, 3, 0, 400, 597):
                piece = np.empty(min(size, 1001 - at), ring.dtype)
                stream.read_into(piece)
                assert np.array_equal(piece, words[at : at + len(piece)])
                at += len(piece)


def test_words_are_read_from_the_file_and_of_the_right_length(tmp_path):
    words = _words(1001, seed=10)
    path = tmp_path / "share"
    path.write_bytes(words.astype("<i8").tobytes())
    share = FileShare.of(path, 1001)
    assert np.array_equal(read_rows([share], 8, 1001)[0], words[8:])
    for length in (1000, 1002):
        with pytest.raises(StoreDamaged, match=f"does not hold {length} words"):
            FileShare.of(path, length)
    path.write_bytes(words[:1000].tobytes())
    with pytest.raises(StoreDamaged, match="shorter"):
        read_rows([share], 8, 1001)
    path.unlink()
    with pytest.raises(StoreDamaged, match="cannot be read"):
        read_rows([share], 8, 1001)


def test_a_party_that_has_read_its_shares_holds_no_page_of_them(tmp_path):
    """Mapped files counted as a party's memory: 0.5 of its 1.1 GB at a hundred participants of a million words."""
    path = tmp_path / "share"
    path.write_bytes(bytes(32 << 20))

    def of_files() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssFile"))

    share = FileShare.of(path, 4 << 20)
    before = of_files()
    assert sum(int(read_rows([share], start, stop).sum()) for start, stop in chunks(4 << 20)) == 0
    assert of_files() - before < 8 << 20


def test_shares_print_no_words():
    pair = SharePair(SeedShare(Seed(b"secretsecretseed"), CONTEXT, ShareIndex(0)), WordShare(np.array([987654321])))
    read_rows([pair.first], 0, 2)
    assert "987654321" not in repr(pair)
    assert "secret" not in repr(pair)


def test_chunks_cover_everything_once_and_begin_evenly():
    for length in (0, 1, 9, 10, 11):
        spans = list(chunks(length, 4))
        assert [t for a, b in spans for t in range(a, b)] == list(range(length))
        assert all(a % 2 == 0 for a, _ in spans)
