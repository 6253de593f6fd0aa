"""Uploads over broken connections: resumed, counted once, and never mixed with another update's."""

import numpy as np
import pytest

from triskele import Conflict, InvalidUpdate, PartyFault, Unavailable, WrongState
from triskele.errors import InvalidUpload
from triskele.limits import Limits
from triskele_proto.v1 import party_pb2

from .conftest import QUICK

HEAVY = 1500 * 8  # bytes of the heavy share; slot 0 puts it at parties 0 and 2


def update(seed=0):
    return np.random.default_rng(seed).normal(size=1500) / 40


@pytest.fixture
def open_round(federation, join):
    federation.coordinator.show(1, "OPEN")
    return join().round("faces", 1)


def sum_in_model_units(federation):
    return federation.sum_of_uploads() * (4.0 / 2**20)


@pytest.mark.parametrize(("slot", "seeds_only"), [(0, 1), (1, 2), (2, 0)])
def test_heavy_share_goes_to_its_two_holders_in_every_slot(federation, open_round, slot, seeds_only):
    federation.coordinator.first_slot = slot
    open_round.submit(update())
    sizes = [len(party.uploads["spiffe://demo/participant/alice"].heavy) for party in federation.parties]
    assert sizes == [0 if index == seeds_only else HEAVY for index in range(3)]
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_broken_upload_goes_on_from_the_committed_offset(federation, open_round):
    party = federation.parties[0]
    party.breaks = [3000]
    open_round.submit(update())
    assert party.streams == 2
    assert party.offsets == [0, 1024, 2048, *range(2048, HEAVY, 1024)]  # the third chunk broke and came again
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_upload_that_advances_each_time_is_never_given_up(federation, open_round):
    party = federation.parties[2]
    party.breaks = [1024] * 11
    assert len(party.breaks) > QUICK.attempts
    open_round.submit(update())
    assert party.streams == 12
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_upload_that_never_advances_is_given_up(federation, open_round):
    federation.parties[0].breaks = [0] * 100
    with pytest.raises(Unavailable, match="party 0"):
        open_round.submit(update())
    assert federation.parties[0].streams <= QUICK.attempts + 1
    assert federation.parties[1].uploads["spiffe://demo/participant/alice"].complete


def test_restarted_participant_resumes_the_same_upload(federation, join, open_round):
    federation.parties[0].breaks = [4096] + [0] * 100
    with pytest.raises(Unavailable):
        open_round.submit(update())
    federation.parties[0].breaks = []
    before = len(federation.parties[0].offsets)
    again = join().round("faces", 1)
    assert again.membership.credentials is not open_round.membership.credentials
    again.submit(update())
    assert federation.parties[0].offsets[before:] == list(range(4096, HEAVY, 1024))
    assert federation.coordinator.slots == {"spiffe://demo/participant/alice": 0}
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_repeated_submission_sends_nothing_again(federation, open_round):
    open_round.submit(update())
    open_round.submit(update())
    assert [party.streams for party in federation.parties] == [1, 1, 1]


def test_who_was_admitted_just_now_does_not_ask_what_is_there(federation, open_round):
    federation.coordinator.says_new = True
    open_round.submit(update())
    assert [party.asked for party in federation.parties] == [0, 0, 0]
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_a_coordinator_that_takes_an_upload_for_new_only_costs_a_question(federation, join, open_round):
    federation.parties[0].breaks = [4096] + [0] * 100
    with pytest.raises(Unavailable):
        open_round.submit(update())
    federation.parties[0].breaks = []
    federation.coordinator.says_new = True
    asked, before = federation.parties[0].asked, len(federation.parties[0].offsets)
    join().round("faces", 1).submit(update())
    assert federation.parties[0].asked == asked + 1
    assert federation.parties[0].offsets[before:] == list(range(4096, HEAVY, 1024))
    assert np.abs(sum_in_model_units(federation) - update()).max() < 4.0 * 2.0**-20


def test_another_update_of_the_same_participant_is_a_conflict(federation, open_round):
    open_round.submit(update(0))
    with pytest.raises(Conflict, match="party"):
        open_round.submit(update(1))
    assert np.abs(sum_in_model_units(federation) - update(0)).max() < 4.0 * 2.0**-20


def test_refusal_by_one_party_is_told_and_not_repeated(federation, open_round):
    federation.parties[1].refusal = WrongState("the round is sealed")
    with pytest.raises(WrongState, match="party 1: the round is sealed"):
        open_round.submit(update())
    assert federation.parties[1].streams == 1


def test_refusal_is_told_rather_than_another_partys_absence(federation, open_round):
    federation.parties[0].breaks = [0] * 100
    federation.parties[2].refusal = InvalidUpload("no")
    with pytest.raises(InvalidUpload, match="party 2"):
        open_round.submit(update())


@pytest.mark.parametrize("committed", [HEAVY, HEAVY + 8])
def test_party_that_acknowledges_what_it_does_not_call_complete_is_blamed(federation, open_round, committed):
    federation.parties[2].lies_complete = party_pb2.UploadReply(committed=committed, complete=False)
    with pytest.raises(PartyFault) as caught:
        open_round.submit(update())
    assert caught.value.party == 2


def test_upload_ended_early_by_the_party_is_repeated(federation, open_round):
    federation.parties[0].lies_complete = party_pb2.UploadReply(committed=8, complete=False)
    with pytest.raises(Unavailable, match="after 8 of 12000 bytes"):
        open_round.submit(update())
    assert federation.parties[0].streams == QUICK.attempts


def test_progress_ends_complete_at_every_party(federation, open_round):
    seen = []
    open_round.submit(update(), progress=seen.append)
    for party, total in ((0, HEAVY), (1, 0), (2, HEAVY)):
        own = [progress for progress in seen if progress.party == party]
        assert [progress.sent for progress in own] == sorted(progress.sent for progress in own)
        assert (own[-1].sent, own[-1].total, own[-1].complete) == (total, total, True)
        assert not any(progress.complete for progress in own[:-1])


def test_update_above_the_clip_is_clipped_or_refused(federation, open_round):
    long = update() * 100
    with pytest.raises(InvalidUpdate, match="clip_norm"):
        open_round.submit(long, clip=False)
    assert federation.coordinator.slots == {}
    open_round.submit(long)
    clipped = long * (4.0 / np.linalg.norm(long))
    assert np.abs(sum_in_model_units(federation) - clipped).max() < 4.0 * 2.0**-20


@pytest.fixture
def relaying(federation):
    """Every party brings the share that goes up to it to the party before it."""
    for party in federation.parties:
        party.brings_to = federation.parties[(party.index + 2) % 3]
    return federation


@pytest.mark.parametrize(("slot", "first", "second"), [(0, 0, 2), (1, 1, 0), (2, 2, 1)])
def test_heavy_share_goes_up_once(relaying, open_round, slot, first, second):
    relaying.coordinator.first_slot = slot
    open_round.submit(update())
    assert [bool(party.offsets) for party in relaying.parties] == [index == first for index in range(3)]
    assert [party.announced for party in relaying.parties] == [index == second for index in range(3)]
    assert np.abs(sum_in_model_units(relaying) - update()).max() < 4.0 * 2.0**-20


def test_heavy_share_goes_up_twice_where_its_participant_wants_it(relaying, join, tmp_path):
    relaying.coordinator.show(1, "OPEN")
    join(relay=False).round("faces", 1).submit(update())
    assert [party.announced for party in relaying.parties] == [0, 0, 0]
    assert [bool(party.offsets) for party in relaying.parties] == [True, False, True]


def test_party_that_is_silent_about_a_share_it_should_bring_keeps_nobody_out(relaying, join):
    relaying.coordinator.show(1, "OPEN")
    relaying.parties[0].brings = lambda words: None
    join(limits=Limits(chunk_bytes=1024, relay_seconds=0.3)).round("faces", 1).submit(update())
    assert relaying.parties[2].offsets == list(range(0, HEAVY, 1024))
    assert np.abs(sum_in_model_units(relaying) - update()).max() < 4.0 * 2.0**-20


def test_party_that_brings_other_words_keeps_nobody_out(relaying, open_round):
    relaying.parties[0].brings = lambda words: words[:-1] + bytes([words[-1] ^ 1])
    open_round.submit(update())  # at once: the other holder has said that it has given the relay up
    assert relaying.parties[2].offsets == list(range(0, HEAVY, 1024))
    assert np.abs(sum_in_model_units(relaying) - update()).max() < 4.0 * 2.0**-20


def test_relayed_upload_is_known_again_after_a_restart(relaying, join, open_round):
    open_round.submit(update())
    join().round("faces", 1).submit(update())
    assert [party.streams for party in relaying.parties] == [1, 1, 0]
