"""The same call again, another call under the same id, and a party that has lost its memory: for every RPC that changes
something. The list is made from the protocol, so a new RPC fails here until it is said what it does."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from triskele.errors import ConfigurationError, WrongState
from triskele.ids import TaskDigest
from triskele_proto.v1 import control_pb2, party_pb2
from triskele_server.party.share_files import RoundKey
from triskele_server.party.store import PartyStore
from triskele_server.rpc.methods import ALL

CONFLICT, MISSING, EARLIER = (
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)

READS = {
    *(
        f"Coordinator/{name}"
        for name in ("ListTasks", "ListRounds", "WatchRounds", "FetchResult", "FetchLog", "FetchCertificate")
    ),
    *(
        "Party/UploadStatus",
        "Party/RelayStatus",
        "Party/FetchMaskKeys",
        "PartyControl/RoundStatus",
        "PartyControl/FetchOutput",
        "Info/Describe",
    ),
}
CHANGES = {  # what identifies the change, and where it is tested
    "Coordinator/Enrol": "task, round, caller: the same slot (tests/server/coordinator/test_service.py)",
    "Coordinator/EnrolFor": "task, round, the participant that signed: the same slot (tests/server/coordinator)",
    "Party/Upload": "task, round, participant; digest of the manifest",
    "Party/Relay": "the same, of the participant's signed manifest (tests/server/party/test_relay.py)",
    "Party/UploadSealed": "the same (tests/server/party/test_sealed_upload.py)",
    "PartyControl/OpenRound": "round and digest of the task, which are all of it",
    "PartyControl/SealRound": "task, round; the input set",
    "PartyControl/RunRound": "task, round, attempt, which are all of it",
    "PartyControl/EndRound": "task, round; whether it was released",
    "PartyControl/Cosign": "the checkpoint, which is all of it (tests/server/party/test_cosigner.py)",
    "Peer/Exchange": "session (task, round, attempt), frame number: a second stream is refused (tests/server/mpc)",
}


def test_every_rpc_is_a_read_or_has_its_rule_here():
    assert {name.removeprefix("/triskele.v1.") for name in ALL} == READS | set(CHANGES)


@pytest.fixture
def made(submission):
    return [submission("alice"), submission("bob", slot=1)]


async def sealed(party, spec, made) -> None:
    await party.open(spec)
    for each in made:
        await party.submit(each)
    await party.seal(spec, made)


async def _open(party, spec, _made):
    return await party.open(spec)


async def _upload(party, _spec, made):
    return await party.submit(made[0])


async def _seal(party, spec, made):
    return await party.seal(spec, made)


async def _run(party, spec, _made):
    return await party.run(spec)


async def _release(party, spec, _made):
    return await party.end(spec, "RELEASED")


STEPS = [_open, _upload, _seal, _run, _release]


@pytest.mark.parametrize("place", range(len(STEPS)), ids=["OpenRound", "Upload", "SealRound", "RunRound", "EndRound"])
@pytest.mark.parametrize("restart", [False, True], ids=["lost answer", "lost answer and restart"])
def test_repeated_call_gets_the_same_answer_at_every_later_moment(start_party, spec, made, place, restart):
    """Whatever has happened since: nothing moves back, nothing is done twice."""

    async def step(party, number):
        reply = await STEPS[number](party, spec, made)
        if STEPS[number] is _upload:
            await party.submit(made[1])
        if STEPS[number] is _run:
            await party.until(spec, "COMBINED")
        return reply

    async def scenario():
        async with start_party() as party:
            for number in range(place + 1):
                first = await step(party, number)
            jobs = len(party.runner.jobs)
            again = await STEPS[place](party, spec, made) if not restart else None
        async with start_party() as party:
            again = again or await STEPS[place](party, spec, made)
            for number in range(place + 1, len(STEPS)):
                await step(party, number)
                later = await STEPS[place](party, spec, made)
                assert (
                    getattr(later, "state", "") == (await party.round_status(spec)).state
                    if place != 1
                    else later.complete
                )
            jobs += len(party.runner.jobs)
            return first, again, jobs

    first, again, jobs = asyncio.run(scenario())
    assert jobs == 1  # computed once
    if isinstance(first, party_pb2.UploadReply):
        assert (first.complete, again.complete) == (True, True)
    else:
        assert list(again.complete) == list(first.complete)
        assert again.attempt == first.attempt


def test_another_upload_of_the_same_participant_is_a_conflict(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            await party.submit(submission("alice", value=1))
            async with refused(CONFLICT):
                await party.submit(submission("alice", value=2))

    asyncio.run(scenario())


def test_another_input_set_of_the_same_round_is_a_conflict(start_party, spec, made, submission, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            more = [*made, submission("carol", slot=3)]
            for each in more:
                await party.submit(each)
            await party.seal(spec, made)
            async with refused(CONFLICT, "another input set"):
                await party.seal(spec, more)
            assert (await party.seal(spec, made)).state == "SEALED"

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", [("RELEASED", "FAILED"), ("RELEASED", "EXPIRED"), ("FAILED", "RELEASED")])
def test_another_end_of_the_same_round_is_a_conflict_and_the_first_one_stays(start_party, spec, made, refused, ends):
    first, then = ends

    async def scenario():
        async with start_party() as party:
            await sealed(party, spec, made)
            if first == "RELEASED":
                await party.run(spec)
                await party.until(spec, "COMBINED")
            await party.end(spec, first)
            async with refused(CONFLICT, first):
                await party.end(spec, then)
            assert party.share_files() == {}
            return (await party.end(spec, first)).state

    assert asyncio.run(scenario()) == first


def test_round_before_the_newest_cannot_be_opened_afterwards(start_party, spec, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec, 3)
            async with refused(EARLIER, "only go forward"):
                await party.open(spec, 2)
            assert (await party.open(spec, 3)).state == "OPEN"

    asyncio.run(scenario())


def _drives(spec, made):
    key = {"task_digest": spec.digest, "round": 1}
    submissions = [
        control_pb2.Submission(slot=m.manifest.slot, participant=m.participant, manifest_digest=m.manifest.digest)
        for m in made
    ]
    return {
        "RoundStatus": control_pb2.RoundRequest(**key),
        "SealRound": control_pb2.SealRoundRequest(**key, submissions=submissions),
        "RunRound": control_pb2.RunRoundRequest(**key, attempt=1),
        "EndRound": control_pb2.EndRoundRequest(**key, state="RELEASED"),
    }


@pytest.mark.parametrize("method", ["RoundStatus", "SealRound", "RunRound", "EndRound"])
def test_round_that_the_party_does_not_remember_is_driven_nowhere(start_party, spec, made, refused, method):
    async def scenario():
        async with start_party() as party:
            async with refused(MISSING, "never opened"):
                await getattr(party.control, method)(_drives(spec, made)[method], timeout=20)
            return party.runner.jobs

    assert asyncio.run(scenario()) == []


def _wipe(data) -> None:
    for path in data.glob("party.db*"):
        path.unlink()


def _empty(data) -> None:
    _wipe(data)
    (data / "party.db").touch()


def _damage(data) -> None:
    _wipe(data)
    (data / "party.db").write_bytes(b"SQLite format 3\0" + bytes(5000))


def _forget_coin(data) -> None:
    (data / "coin.key").unlink()


@pytest.mark.parametrize("loss", [_wipe, _empty, _damage, _forget_coin])
def test_party_that_has_lost_its_memory_does_not_start(start_party, spec, made, tmp_path, loss):
    async def scenario():
        async with start_party() as party:
            await sealed(party, spec, made)
        loss(tmp_path / "data-0")
        async with start_party():
            pass

    with pytest.raises(ConfigurationError, match=r"restore it"):
        asyncio.run(scenario())


def test_new_party_starts_and_one_that_never_had_a_round_may_start_again(start_party):
    async def scenario():
        for _ in range(2):
            async with start_party():
                pass

    asyncio.run(scenario())


def test_rounds_of_one_task_say_nothing_about_those_of_another(tmp_path):
    store = PartyStore(tmp_path)
    try:
        store.open_round(RoundKey(TaskDigest(b"\1" * 32), 9), b"")
        store.open_round(RoundKey(TaskDigest(b"\2" * 32), 1), b"")
        with pytest.raises(WrongState):
            store.open_round(RoundKey(TaskDigest(b"\1" * 32), 8), b"")
    finally:
        store.close()


def test_header_of_another_participant_is_no_replay(start_party, spec, submission, refused):
    """What mallory saw of alice's stream it cannot send as its own."""

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                await party.upload(submission("alice").requests(0), as_participant="mallory")

    asyncio.run(scenario())
