"""Who gets a party's keys of a mask: members who may read the aggregate, for the released words, after the release."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import grpc
import numpy as np
import pytest

from triskele.errors import Conflict
from triskele.identity import Identity
from triskele_proto.v1 import party_pb2
from triskele_server.config import PolicyTable
from triskele_server.party.job import RoundOutcome
from triskele_server.party.mask_keys import MaskKeys
from triskele_server.party.release_files import ReleaseFiles
from triskele_server.party.share_files import RoundKey
from triskele_server.party.store import PartyStore

WORDS = np.arange(1000, dtype="<i8").tobytes()
DIGEST = hashlib.sha256(WORDS).digest()
KEYS = [(0, b"\1" * 32), (1, b"\2" * 32)]


async def _computed(party, spec, submission) -> None:
    await party.open(spec)
    made = [submission(name, slot=k, task=spec) for k, name in enumerate(("alice", "bob"))]
    for one in made:
        await party.submit(one)
    await party.seal(spec, made)
    await party.run(spec)
    await party.until(spec, "COMBINED")


async def _asked(party, spec, caller="alice", digest=DIGEST, number=1):
    request = party_pb2.MaskKeysRequest(task_digest=spec.digest, round=number, output_digest=digest)
    reply = await party.intake(caller).FetchMaskKeys(request, timeout=20)
    return [(k.index, k.key) for k in reply.keys]


def test_any_participant_gets_them_after_the_release_and_after_a_restart(start_party, spec, submission):
    """Also one that was not in the round: it trains on the model too."""

    async def scenario():
        async with start_party() as party:
            await _computed(party, spec, submission)
            await party.end(spec, "RELEASED")
            first = [await _asked(party, spec), await _asked(party, spec, "carol")]
        async with start_party() as party:
            return [*first, await _asked(party, spec)]

    assert asyncio.run(scenario()) == [KEYS] * 3


def test_nobody_gets_them_before_the_release(start_party, spec, submission, refused):
    """UNAVAILABLE: the caller waits, for the coordinator may have told it of the release before it told this party."""

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            async with refused(grpc.StatusCode.UNAVAILABLE, "OPEN"):
                await _asked(party, spec)
            made = [submission(name, slot=k, task=spec) for k, name in enumerate(("alice", "bob"))]
            for one in made:
                await party.submit(one)
            await party.seal(spec, made)
            await party.run(spec)
            await party.until(spec, "COMBINED")
            async with refused(grpc.StatusCode.UNAVAILABLE, "COMBINED"):
                await _asked(party, spec)

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED"])
def test_a_round_that_failed_has_none_and_keeps_none(start_party, spec, submission, refused, state):
    async def scenario():
        async with start_party() as party:
            if state == "EXPIRED":
                await party.open(spec)
            else:
                await _computed(party, spec, submission)
            await party.end(spec, state)
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, state):
                await _asked(party, spec)
            return list((party.config.data / "release").rglob("*.keys"))

    assert asyncio.run(scenario()) == []


def test_only_for_the_words_that_were_released(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await _computed(party, spec, submission)
            await party.end(spec, "RELEASED")
            for digest in (b"", bytes(32), DIGEST[:-1], DIGEST + b"\0"):
                async with refused(grpc.StatusCode.ALREADY_EXISTS, "other words"):
                    await _asked(party, spec, digest=digest)
            async with refused(grpc.StatusCode.NOT_FOUND):
                await _asked(party, spec, number=2)

    asyncio.run(scenario())


def test_a_public_release_has_no_keys(start_party, spec, submission, refused):
    public = replace(spec, release="public")

    async def scenario():
        async with start_party() as party:
            await _computed(party, public, submission)
            await party.end(public, "RELEASED")
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "public"):
                await _asked(party, public)

    asyncio.run(scenario())


def test_only_the_group_of_a_task_may_read_its_aggregates(start_party, spec, submission, refused):
    group = replace(spec, participants=("alice", "bob"))

    async def scenario():
        async with start_party() as party:
            await _computed(party, group, submission)
            await party.end(group, "RELEASED")
            async with refused(grpc.StatusCode.PERMISSION_DENIED, "group"):
                await _asked(party, group, "carol")
            return await _asked(party, group, "bob")

    assert asyncio.run(scenario()) == KEYS


def test_coordinator_and_other_parties_are_refused(start_party, spec, submission, federation):
    async def scenario():
        async with start_party() as party:
            await _computed(party, spec, submission)
            await party.end(spec, "RELEASED")
            request = party_pb2.MaskKeysRequest(task_digest=spec.digest, round=1, output_digest=DIGEST)
            told = []
            for folder in ("coordinator", "party-1", "party-2"):
                with pytest.raises(grpc.RpcError) as caught:
                    await party.sent(folder, lambda client: client.FetchMaskKeys(request, timeout=20))
                told.append(caught.value.code())
            return told

    assert asyncio.run(scenario()) == [grpc.StatusCode.PERMISSION_DENIED] * 3


def test_the_keys_of_an_earlier_attempt_are_gone_once_a_later_one_counts(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _computed(party, spec, submission)
            await party.run(spec, attempt=2)
            async with asyncio.timeout(20):
                while (await party.round_status(spec)).outcome.attempt != 2:  # noqa: ASYNC110  a party pushes nothing
                    await asyncio.sleep(0.01)
            await party.end(spec, "RELEASED")
            return sorted(path.name for path in (party.config.data / "release").rglob("*.keys"))

    assert asyncio.run(scenario()) == ["1-2.keys"]


@pytest.fixture
def released(tmp_path, spec):
    store = PartyStore(tmp_path)
    key = RoundKey(spec.digest, 1)
    store.open_round(key, spec.canonical())
    files = ReleaseFiles(tmp_path)
    yield store, files, key
    store.close()


def test_another_public_aggregate_of_a_later_attempt_is_a_conflict_and_another_mask_is_not(released, spec, attested):
    store, _, key = released
    public = RoundOutcome(bytes(32), 2, 0, (), None, (), attested(), 1)
    store.seal(key, [])
    store.combined(key, public)
    with pytest.raises(Conflict):
        store.combined(key, replace(public, output_digest=b"\1" * 32, attempt=2))
    masked = replace(public, output_digest=b"\1" * 32, attempt=2, masked=True)
    assert store.combined(key, masked).outcome == masked


@pytest.mark.parametrize(("readers", "gives"), [(False, False), (True, True)])
def test_a_reader_gets_them_where_the_policy_lets_readers(released, spec, readers, gives, attested):
    store, files, key = released
    files.keep_keys(key, 1, (b"\1" * 32, b"\2" * 32))
    store.seal(key, [])
    store.combined(key, RoundOutcome(DIGEST, 2, 0, (), None, (), attested(masked=True), 1, masked=True))
    from triskele_server.round_state import RoundEvent

    store.end(key, RoundEvent.RELEASE, None)
    keys = MaskKeys(store, files, 1, PolicyTable(readers=readers))
    if gives:
        assert keys.hand_out(Identity("demo", "reader", "r"), key, DIGEST) == {1: b"\1" * 32, 2: b"\2" * 32}
    else:
        with pytest.raises(Exception, match="readers"):
            keys.hand_out(Identity("demo", "reader", "r"), key, DIGEST)
    for role in ("forwarder", "coordinator", "party", "operator"):
        with pytest.raises(Exception, match="lets participants"):
            keys.hand_out(Identity("demo", role, "x"), key, DIGEST)
