"""A participant takes the mask off an aggregate: keys from the parties themselves, two copies of each, compared."""

import numpy as np
import pytest

from triskele import PartyFault, Unavailable
from triskele.errors import Conflict
from triskele.task import TaskSpec

from .toy_federation import MASK_KEYS

WORDS = np.arange(1500, dtype=np.int64) << 8


@pytest.fixture
def released(federation, join):
    federation.coordinator.release(1, WORDS, 2)
    return lambda: join().round("faces", 1).aggregate()


def test_the_words_of_the_coordinator_are_masked_and_the_participants_are_not(federation, released):
    _, sent = federation.coordinator.result
    assert not np.any(np.frombuffer(sent, "<i8") == WORDS)
    assert np.array_equal(released(), WORDS / 2 * 4.0 / 2**20)


def test_every_party_is_asked_for_the_words_that_came(federation, released):
    released()
    header, _ = federation.coordinator.result
    assert [party.asked_for_keys for party in federation.parties] == [[header.digest]] * 3


def test_a_party_that_has_not_heard_of_the_release_is_waited_for(federation, released):
    federation.parties[1].not_yet = 2
    assert np.array_equal(released(), WORDS / 2 * 4.0 / 2**20)
    federation.parties[1].not_yet = 1000
    with pytest.raises(Unavailable, match="not released here yet"):
        released()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_a_party_that_gives_another_key_is_found_whichever_it_is(federation, released, index, first):
    held = federation.parties[index].mask_keys
    changed = list(held)[0 if first else 1]
    held[changed] = bytes([held[changed][0] ^ 1]) + held[changed][1:]
    with pytest.raises(PartyFault, match="different ones") as caught:
        released()
    assert f"{index}" in str(caught.value)
    assert all(key.hex() not in str(caught.value) for key in MASK_KEYS)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {0: MASK_KEYS[0]},
        {0: MASK_KEYS[0], 2: MASK_KEYS[2]},
        {0: MASK_KEYS[0], 1: MASK_KEYS[1][:-1]},
        {0: MASK_KEYS[0], 1: MASK_KEYS[1] + b"\0"},
        {0: b"", 1: b""},
        {0: MASK_KEYS[0], 1: MASK_KEYS[1], 2: MASK_KEYS[2]},
    ],
    ids=["none", "one", "another's", "short", "long", "empty", "three"],
)
def test_a_party_that_does_not_give_its_two_keys_is_named(federation, released, keys):
    federation.parties[0].mask_keys = keys
    with pytest.raises(PartyFault, match="party 0") as caught:
        released()
    assert caught.value.party == 0


def test_a_refusal_of_a_party_comes_through(federation, released):
    federation.parties[2].refusal = Conflict("released with other words at this party")
    with pytest.raises(Conflict, match="other words"):
        released()


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_coordinator_that_does_not_say_where_the_parties_are_is_at_fault(federation, released, count):
    header, _ = federation.coordinator.result
    addresses = [*header.party_addresses, header.party_addresses[0]][:count]
    del header.party_addresses[:]
    header.party_addresses.extend(addresses)
    with pytest.raises(PartyFault, match="where the parties are"):
        released()


def test_a_coordinator_cannot_bring_another_party_between(federation, released):
    """The server's certificate must be the very party's, whatever the address."""
    header, _ = federation.coordinator.result
    header.party_addresses[0], header.party_addresses[1] = header.party_addresses[1], header.party_addresses[0]
    with pytest.raises(Unavailable):
        released()
    assert federation.parties[0].asked_for_keys == federation.parties[1].asked_for_keys == []


class TestPublicRelease:
    @pytest.fixture
    def spec(self):
        return TaskSpec("faces", 1500, 4.0, release="public")

    def test_no_party_is_asked(self, federation, released):
        assert np.array_equal(released(), WORDS / 2 * 4.0 / 2**20)
        assert [party.asked_for_keys for party in federation.parties] == [[]] * 3
