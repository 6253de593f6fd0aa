"""Shares: they add up, say nothing alone, and belong to one place only."""

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from triskele.ids import PARTIES, ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest, held_shares
from triskele.keystream import KeyStream
from triskele.sharing import (
    Salt,
    Seed,
    ShareContext,
    commit,
    commitment_matches,
    expand,
    heavy_index,
    reconstruct,
    split,
)

CONTEXT = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId("alice"))
WORDS = arrays(np.int64, st.integers(1, 40), elements=st.integers(-(2**63), 2**63 - 1))


def share(words, heavy=0, entropy=bytes(32), context=CONTEXT):
    return split(words, heavy=ShareIndex(heavy), context=context, entropy=entropy)


def share_words(sharing, index):
    if index == sharing.heavy:
        return sharing.heavy_words
    return expand(sharing.seeds[index], CONTEXT, index).words(len(sharing.heavy_words))


@given(WORDS, st.integers(0, 2), st.binary(min_size=32, max_size=32))
def test_shares_add_up_to_the_words(words, heavy, entropy):
    sharing = share(words, heavy, entropy)
    assert np.array_equal(reconstruct(sharing, CONTEXT), words)
    assert set(sharing.seeds) == {0, 1, 2} - {heavy}


def test_long_vector_adds_up_over_many_chunks():
    words = np.arange(200_001, dtype=np.int64) - 100_000
    assert np.array_equal(reconstruct(share(words), CONTEXT), words)


@pytest.mark.parametrize("heavy", [0, 1, 2])
@pytest.mark.parametrize("party", PARTIES)
def test_two_shares_of_a_party_look_uniform(party, heavy):
    """Every bit of both shares and of their sum is balanced, and independent of the words behind them."""
    words = np.full(1 << 16, 1 << 20, np.int64)  # as far from uniform as an update can be
    sharing = share(words, heavy, entropy=b"\x05" * 32)
    one, other = (share_words(sharing, index) for index in held_shares(party))
    for seen in (one, other, one + other, one - other):
        bits = np.unpackbits(seen.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
        columns = np.unpackbits(seen.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
        assert np.abs(columns - 0.5).max() < 6 * 0.5 / np.sqrt(len(seen))


def test_what_a_party_sees_is_the_same_for_two_updates_but_for_the_heavy_share():
    one, other = share(np.zeros(10, np.int64)), share(np.ones(10, np.int64))
    assert one.seeds == other.seeds  # which is why different updates must never share their entropy
    assert np.array_equal(other.heavy_words - one.heavy_words, np.ones(10, np.int64))


def test_seed_is_bound_to_task_round_participant_and_index():
    seed = Seed(bytes(16))
    places = [
        (CONTEXT, 0),
        (CONTEXT, 1),
        (ShareContext(TaskDigest(b"\1" * 32), CONTEXT.round, CONTEXT.participant), 0),
        (ShareContext(CONTEXT.task, RoundNumber(2), CONTEXT.participant), 0),
        (ShareContext(CONTEXT.task, CONTEXT.round, ParticipantId("bob")), 0),
        (ShareContext(CONTEXT.task, CONTEXT.round, ParticipantId("alice1")), 0),
    ]
    streams = [expand(seed, context, ShareIndex(index)).words(4).tolist() for context, index in places]
    for one, other in itertools.combinations(streams, 2):
        assert not set(one) & set(other)


def test_seeds_and_salts_of_one_sharing_are_all_different():
    sharing = share(np.zeros(1, np.int64))
    assert len({*sharing.seeds.values(), *sharing.salts}) == 5


def test_commitments_open_with_their_own_share_and_salt_only():
    sharing = share(np.arange(5, dtype=np.int64), heavy=1)
    commitments = sharing.commitments()
    shares = [sharing.seeds.get(ShareIndex(i), sharing.heavy_words.tobytes()) for i in range(3)]
    for i, j, k in itertools.product(range(3), repeat=3):
        assert commitment_matches(commitments[i], sharing.salts[j], shares[k]) == (i == j == k)


def test_commitment_hides_without_the_salt():
    assert commit(Salt(bytes(16)), b"guess") != commit(Salt(b"\1" * 16), b"guess")


def test_heavy_share_rotates_with_the_slot():
    assert [heavy_index(Slot(slot)) for slot in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_every_share_has_two_holders_and_no_party_all():
    held = [set(held_shares(party)) for party in PARTIES]
    assert all(len(shares) == 2 for shares in held)
    assert all(sum(index in shares for shares in held) == 2 for index in range(3))


def test_key_stream_reads_the_same_in_one_piece_or_many():
    whole = KeyStream(bytes(16)).read(600_001)
    stream = KeyStream(bytes(16))
    assert np.array_equal(np.concatenate([stream.read(size) for size in (1, 15, 300_000, 299_985)]), whole)
    assert np.array_equal(KeyStream(bytes(16), block=2).read(100), whole[32:132])
    assert repr(stream) == "KeyStream(...)"


def test_key_stream_is_the_one_of_ctr_mode_from_any_block_and_in_any_pieces():
    key, length = bytes(range(16)), 700_000
    plain = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(length))
    for sizes in [(length,), (1, 30, 1, 1, 4), (31, 33, 100_000), (32, 16, 262_144, 5), (0, 33, 524_321)]:
        stream, position = KeyStream(key), 0
        for size in sizes:
            assert stream.read(size).tobytes() == plain[position : position + size]
            position += size
    for block in (1, 2, 3, 40_000):
        assert KeyStream(key, block=block).read(1000).tobytes() == plain[16 * block : 16 * block + 1000]
