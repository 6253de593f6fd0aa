"""A heavy share that goes up once: party h brings it to party h - 1, which believes the signed manifest alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading

import grpc
import pytest
import structlog
from prometheus_client import REGISTRY

from triskele.errors import Unavailable
from triskele_proto.v1 import party_pb2, types_pb2
from triskele_server.at_rest import STORE_KEY
from triskele_server.party import process, service
from triskele_server.party import upload as upload_module
from triskele_server.party.intake import Intake
from triskele_server.party.service import PartyService

INVALID = grpc.StatusCode.INVALID_ARGUMENT
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED
SIZE = 8000  # bytes of a heavy share in these tests
NOWHERE = "127.0.0.1:9"  # where nobody listens

# Slot 0: party 0 is the first holder of the heavy share, party 2 the second, party 1 has two seeds.


@pytest.fixture(autouse=True)
def two_parties_in_one_process(monkeypatch):
    """What a process shows of itself is registered once; these tests run two parties in one."""

    @contextlib.asynccontextmanager
    async def shown(_):
        yield

    monkeypatch.setattr(process, "_shown", shown)
    monkeypatch.setattr(service, "ANNOUNCED_SECONDS", 0.05)


@contextlib.asynccontextmanager
async def _two(start_party, spec, *, relay_to=None):
    """Parties 0 and 2 with an open round."""
    async with start_party(2) as second, start_party(0, relay_to=relay_to or second._address) as first:
        for party in (first, second):
            await party.open(spec)
        yield first, second


def _to_first(made):
    header = made.header(0)
    header.header.relay = True
    return [header, *made.chunks()]


def _announcement(made, party=2):
    header = made.header(party)
    header.header.relayed = True
    return [header]


async def _announce(second, made):
    return await second.upload(_announcement(made), as_participant=made.participant)


async def _until_complete(party, made):
    async with asyncio.timeout(20):
        while not (reply := await party.status(made)).complete:  # noqa: ASYNC110  a party pushes nothing
            await asyncio.sleep(0.02)
    return reply


def _relayed(made, *, words=None, salt=None, start=0):
    """What party 0 sends party 2."""
    words = made.heavy_bytes if words is None else words
    salt = made.sharing.salts[0] if salt is None else salt
    signed = made.federation.sign(made.signer or made.participant, made.manifest)
    yield party_pb2.RelayRequest(header=party_pb2.RelayHeader(manifest=signed, salt=salt))
    for at in range(start, len(words), 1024):
        yield party_pb2.RelayRequest(chunk=types_pb2.Chunk(offset=at, data=words[at : at + 1024]))


async def _relay(second, made, *, folder="party-0", **changes):
    return await second.sent(folder, lambda client: client.Relay(iter(list(_relayed(made, **changes))), timeout=20))


def _status_request(made):
    manifest = made.manifest
    return party_pb2.RelayStatusRequest(
        task_digest=manifest.task,
        round=manifest.round,
        participant=manifest.participant,
        manifest_digest=manifest.digest,
    )


@pytest.fixture(params=[False, True])
def encrypted(request, monkeypatch):
    """Whether the parties have store keys."""
    if request.param:
        monkeypatch.setenv(STORE_KEY, "5a" * 32)
    return request.param


@pytest.mark.parametrize("announced", ["first", "last"])
def test_share_that_goes_up_once_is_at_both_holders(start_party, spec, submission, encrypted, announced):
    async def scenario():
        async with _two(start_party, spec) as (first, second):
            made = submission()
            if announced == "first":
                reply = await _announce(second, made)
                assert (reply.complete, reply.relayed) == (False, True)
            carried = await first.upload(_to_first(made), as_participant="alice")
            assert (carried.complete, carried.relaying) == (True, True)
            if announced == "last":
                name = "alice-0.words.enc" if encrypted else "alice-0.words"
                await second.until_file(name, SIZE)
                await asyncio.sleep(0.1)
                assert (await _announce(second, made)).complete
            await _until_complete(second, made)
            return made, first.share_files(), second.share_files(), await second.round_status(spec)

    made, first, second, status = asyncio.run(scenario())
    assert [s.participant for s in status.complete] == ["alice"]
    if not encrypted:
        assert second == {"alice-0.words": made.heavy_bytes, "alice-2.seed": made.sharing.seeds[2]}
        assert first["alice-0.words"] == made.heavy_bytes
        assert made.sharing.seeds[1] not in b"".join(second.values())
    for name, content in (first | second).items():
        assert not (encrypted and made.sharing.salts[0] in content), name


def test_announcement_is_answered_when_the_words_are_there(start_party, spec, submission, monkeypatch):
    monkeypatch.setattr(service, "ANNOUNCED_SECONDS", 60.0)

    async def scenario():
        async with _two(start_party, spec) as (first, second), asyncio.timeout(30):
            made = submission()
            announced = asyncio.create_task(_announce(second, made))
            await second.until_file("alice-2.seed", 16)
            await asyncio.sleep(0.1)
            assert not announced.done()
            await first.upload(_to_first(made), as_participant="alice")
            return await announced

    assert asyncio.run(scenario()).complete


def test_announcement_is_answered_at_once_when_the_relay_is_refused(start_party, spec, submission, monkeypatch):
    monkeypatch.setattr(service, "ANNOUNCED_SECONDS", 60.0)

    async def scenario():
        async with start_party(2) as second, asyncio.timeout(30):
            await second.open(spec)
            made = submission()
            announced = asyncio.create_task(_announce(second, made))
            await second.until_file("alice-2.seed", 16)
            with contextlib.suppress(grpc.RpcError):
                await _relay(second, made, words=made.heavy_bytes[:-1] + b"\x55")
            return await announced

    reply = asyncio.run(scenario())
    assert (reply.complete, reply.relayed) == (False, False), "the participant sends the words itself"


def _counted(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_waits_to_be_brought_and_the_bytes_of_it_are_counted(start_party, spec, submission):
    waiting = "triskele_party_relays_waiting"
    sent = "triskele_grpc_client_sent_bytes_total", {"method": "/triskele.v1.Party/Relay", "party": "2"}
    before, bytes_before = _counted(waiting), _counted(sent[0], **sent[1])
    made = submission()

    async def nowhere():
        async with _two(start_party, spec, relay_to=NOWHERE) as (first, _):
            await first.upload(_to_first(made), as_participant="alice")
            return _counted(waiting)

    async def there():
        async with _two(start_party, spec) as (_, second):  # the first goes on with what was due
            await _announce(second, made)
            await _until_complete(second, made)

    assert asyncio.run(nowhere()) == before + 1
    assert _counted(waiting) == before
    asyncio.run(there())
    assert SIZE < _counted(sent[0], **sent[1]) - bytes_before < 2 * SIZE
    assert _counted(sent[0].replace("sent", "received"), **sent[1]) > 0


def test_party_that_knows_no_way_says_that_it_brings_nothing(start_party, spec, submission):
    async def scenario():
        async with start_party(0, relay_to=None) as party:
            await party.open(spec)
            return await party.upload(_to_first(submission()), as_participant="alice")

    reply = asyncio.run(scenario())
    assert (reply.complete, reply.relaying) == (True, False)


def test_relay_goes_on_after_both_parties_were_killed(start_party, spec, submission, monkeypatch):
    monkeypatch.setattr(upload_module, "COMMIT_EVERY_BYTES", 1024)

    async def scenario():
        made = submission()
        async with _two(start_party, spec, relay_to=NOWHERE) as (first, second):
            await _announce(second, made)
            assert (await first.upload(_to_first(made), as_participant="alice")).relaying
            with contextlib.suppress(grpc.RpcError):  # a relay that breaks off in the middle
                half = list(_relayed(made))[:4]
                await second.sent("party-0", lambda client: client.Relay(iter(half), timeout=20))
        async with start_party(2) as second:
            status = await second.sent("party-0", lambda client: client.RelayStatus(_status_request(made), timeout=20))
            assert (status.committed, status.complete, status.relayed) == (3 * 1024, False, True)
            async with start_party(0, relay_to=second._address):  # nobody asks it to
                await _until_complete(second, made)
            return made, second.share_files(), await second.round_status(spec)

    made, files, status = asyncio.run(scenario())
    assert files["alice-0.words"] == made.heavy_bytes
    assert len(status.complete) == 1


def test_relay_that_fails_breaks_no_other_relay_off(start_party, spec, submission, monkeypatch):
    begun, answered = Intake.begin_relay, PartyService.RelayStatus
    begins, asked = [], []
    alice_waits, bob_is_back = threading.Event(), threading.Event()

    def begin(self, caller, signed, salt):
        participant = signed.manifest.participant
        begins.append(participant)
        if participant == "alice":
            alice_waits.set()
            assert bob_is_back.wait(30)
        elif begins.count("bob") == 1:
            assert alice_waits.wait(30)
            raise Unavailable("the disk is full just now")
        else:
            bob_is_back.set()
        return begun(self, caller, signed, salt)

    async def status(self, request, context):
        asked.append(request.participant)
        return await answered(self, request, context)

    monkeypatch.setattr(Intake, "begin_relay", begin)
    monkeypatch.setattr(PartyService, "RelayStatus", status)

    async def scenario():
        made = [submission("alice"), submission("bob", slot=3)]
        async with _two(start_party, spec) as (first, second):
            for one in made:
                await _announce(second, one)
                assert (await first.upload(_to_first(one), as_participant=one.participant)).relaying
            for one in made:
                await _until_complete(second, one)

    asyncio.run(scenario())
    assert sorted(begins) == ["alice", "bob", "bob"]
    assert asked == ["bob"], "only after a failure"


def test_words_that_do_not_match_are_thrown_away_and_the_party_that_brought_them_is_named(
    start_party, spec, submission, refused
):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made = submission()
            await _announce(second, made)
            with structlog.testing.capture_logs() as logs:
                async with refused(INVALID, "party 0", "do not match"):
                    await _relay(second, made, words=made.heavy_bytes[:-1] + b"\x55")
            status = await second.status(made)
            assert (status.committed, status.complete, status.relayed) == (0, False, False)
            async with refused(WRONG_STATE, "the participant sends the words itself"):
                await _relay(second, made)
            assert (await second.submit(made)).complete
            return made, second.share_files(), [line for line in logs if line["log_level"] == "error"]

    made, files, logged = asyncio.run(scenario())
    assert files["alice-0.words"] == made.heavy_bytes
    assert [(line["event"], line["party"]) for line in logged] == [("relayed_words_do_not_match", 0)]


def test_relay_that_stands_still_is_taken_over_by_the_participant_from_the_first_byte(
    start_party, spec, submission, monkeypatch
):
    """What a lying party brought before must not be in the way of the right words."""
    monkeypatch.setattr(upload_module, "COMMIT_EVERY_BYTES", 1024)

    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made = submission()
            await _announce(second, made)
            with contextlib.suppress(grpc.RpcError):
                wrong = list(_relayed(made, words=b"\x77" * SIZE))[:4]
                await second.sent("party-0", lambda client: client.Relay(iter(wrong), timeout=20))
            assert (await second.status(made)).committed == 3 * 1024
            assert (await second.submit(made)).complete
            return made, second.share_files(), await second.round_status(spec)

    made, files, status = asyncio.run(scenario())
    assert files == {"alice-0.words": made.heavy_bytes, "alice-2.seed": made.sharing.seeds[2]}
    assert len(status.complete) == 1


def test_relay_repeated_or_after_a_direct_upload_changes_nothing(start_party, spec, submission):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made = submission()
            assert (await second.submit(made)).complete
            before = second.share_files()
            for _ in range(2):
                assert (await _relay(second, made, words=b"\x77" * SIZE)).complete  # not looked at any more
            assert (await _announce(second, made)).complete
            return before, second.share_files(), await second.round_status(spec)

    before, after, status = asyncio.run(scenario())
    assert after == before
    assert len(status.complete) == 1


@pytest.mark.parametrize("folder", ["party-1", "party-2"])
def test_only_the_first_holder_brings_a_share(start_party, spec, submission, refused, folder):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            async with refused(DENIED, "does not bring share 0"):
                await _relay(second, submission(), folder=folder)
            await _announce(second, submission())
            made = submission("bob")
            await _announce(second, made)
            async with refused(DENIED, "does not bring share 0"):
                await second.sent(folder, lambda client: client.RelayStatus(_status_request(made), timeout=20))

    asyncio.run(scenario())


@pytest.mark.parametrize("folder", ["participants/alice", "coordinator"])
def test_nobody_but_parties_relays(start_party, spec, submission, refused, folder):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            async with refused(DENIED, "may not call"):
                await _relay(second, submission(), folder=folder)

    asyncio.run(scenario())


def test_share_is_brought_to_its_second_holder_only(start_party, spec, submission, refused):
    async def scenario():
        for index in (0, 1):
            async with start_party(index) as party:
                await party.open(spec)
                async with refused(DENIED, "does not bring share 0"):
                    await _relay(party, submission())
                async with refused(INVALID, "second holder"):
                    await party.upload(_announcement(submission(), index), as_participant="alice")

    asyncio.run(scenario())


WRONG_RELAYS = {
    "manifest of another's key": lambda made: {"made": dataclasses.replace(made, signer="mallory")},
    "salt too short": lambda made: {"made": made, "salt": b"s" * 15},
    "other salt": lambda made: {"made": made, "salt": b"s" * 16},
    "truncated": lambda made: {"made": made, "words": made.heavy_bytes[:-8]},
    "oversized": lambda made: {"made": made, "words": made.heavy_bytes + b"\0" * 8},
    "gap": lambda made: {"made": made, "start": 1024},
}


@pytest.mark.parametrize("name", WRONG_RELAYS)
def test_wrong_relay_is_refused_and_keeps_nobody_out(start_party, spec, submission, refused, name):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made = submission()
            changed = WRONG_RELAYS[name](made)
            async with refused(INVALID):
                await _relay(second, changed.pop("made"), **changed)
            assert (await second.submit(made)).complete
            return made, second.share_files()

    made, files = asyncio.run(scenario())
    assert files == {"alice-0.words": made.heavy_bytes, "alice-2.seed": made.sharing.seeds[2]}


def test_stranger_manifest_brought_first_cannot_exist(start_party, spec, submission, refused):
    """A party that could sign for a participant would keep it out; the manifest that it brings is the participant's."""

    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made, other = submission(), submission(value=8)
            async with refused(INVALID):
                await _relay(second, dataclasses.replace(other, signer="mallory"))
            assert (await second.submit(made)).complete
            async with refused(grpc.StatusCode.ALREADY_EXISTS):
                await _relay(second, other)  # two manifests of one participant: its own doing

    asyncio.run(scenario())


def test_relay_to_a_round_that_takes_no_uploads_ends(start_party, spec, submission, refused):
    async def scenario():
        async with start_party(2) as second:
            await second.open(spec)
            made = [submission("bob", slot=3), submission("carol", slot=6)]
            for each in made:
                await second.submit(each)
            await second.seal(spec, made)
            async with refused(WRONG_STATE, "takes no uploads"):
                await _relay(second, submission())
            return await second.round_status(spec)

    assert len(asyncio.run(scenario()).complete) == 2


def test_announcement_repeated_is_harmless_and_a_lost_seed_is_asked_for_again(start_party, spec, submission):
    async def scenario():
        made = submission()
        async with start_party(2) as second:
            await second.open(spec)
            for _ in range(3):
                await _announce(second, made)
            await _relay(second, made)
            await _until_complete(second, made)
            (seed,) = second.config.data.glob("rounds/*/1/alice-2.seed")
        seed.unlink()
        async with start_party(2) as second:
            status = await second.status(made)
            assert (status.complete, status.relayed, status.committed) == (False, True, SIZE)
            assert (await _announce(second, made)).complete
            return made, second.share_files()

    made, files = asyncio.run(scenario())
    assert files == {"alice-0.words": made.heavy_bytes, "alice-2.seed": made.sharing.seeds[2]}
