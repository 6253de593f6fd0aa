"""Uploads to a party, honest and hostile: each refusal is typed and changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses

import grpc
import numpy as np
import pytest

from triskele.limits import DEFAULT_LIMITS
from triskele.task import TaskSpec
from triskele_proto.v1 import party_pb2, types_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONFLICT = grpc.StatusCode.ALREADY_EXISTS
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
SIZE = 8000  # bytes of a heavy share in these tests


def _chunk(offset, data):
    return party_pb2.UploadRequest(chunk=types_pb2.Chunk(offset=offset, data=data))


@pytest.mark.parametrize("index", range(3))
def test_each_party_keeps_exactly_its_two_shares(start_party, spec, submission, index):
    async def scenario():
        async with start_party(index) as party:
            await party.open(spec)
            made = [submission(p, slot=slot) for slot, p in enumerate(("alice", "bob", "carol"))]
            replies = [await party.submit(s) for s in made]
            status = await party.round_status(spec)
            return party, made, replies, status

    party, made, replies, status = asyncio.run(scenario())
    expected = {}
    for s in made:
        for share in (index, (index + 1) % 3):
            heavy = share == s.manifest.heavy
            expected[f"{s.manifest.participant}-{share}.{'words' if heavy else 'seed'}"] = (
                s.heavy_bytes if heavy else s.sharing.seeds[share]
            )
    assert party.share_files() == expected
    assert all(r.complete for r in replies)
    assert [r.committed for r in replies] == [SIZE if s.holds_heavy(index) else 0 for s in made]
    assert [(c.slot, c.participant, c.manifest_digest) for c in status.complete] == [
        (slot, s.participant, s.manifest.digest) for slot, s in enumerate(made)
    ]


def test_share_files_are_for_the_party_only(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            await party.submit(submission())
            root = party.config.data
            return {p.name: p.stat().st_mode & 0o777 for p in root.rglob("*") if "rounds" in p.parts}, root

    modes, root = asyncio.run(scenario())
    assert {mode for name, mode in modes.items() if name.endswith((".seed", ".words"))} == {0o600}
    assert {mode for name, mode in modes.items() if "." not in name} == {0o700}
    assert root.stat().st_mode & 0o777 == 0o700


def test_share_seed_and_salt_never_enter_the_database(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            await party.submit(made)
            return made, b"".join(p.read_bytes() for p in party.config.data.glob("party.db*"))

    made, database = asyncio.run(scenario())
    assert made.manifest.digest in database  # the control: what is stored is found this way
    for secret in (*made.sharing.seeds.values(), *made.sharing.salts, made.heavy_bytes[:16], made.heavy_bytes[-16:]):
        assert secret not in database


def test_replayed_upload_is_counted_once_and_changes_nothing(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            first = await party.submit(made)
            before = party.share_files()
            again = [await party.submit(made) for _ in range(3)]
            return first, again, before, party.share_files(), await party.round_status(spec)

    first, again, before, after, status = asyncio.run(scenario())
    assert again == [first] * 3
    assert after == before
    assert len(status.complete) == 1


def _wrong_streams():
    """Name -> (what is sent, words of the answer); `s` is a good submission, party 0 holds its heavy share."""

    def header_twice(s):
        return [s.header(0), s.header(0), *s.chunks()]

    def share(s, position, **changes):
        shares = s.shares(0)
        for key, value in changes.items():
            setattr(shares[position], key, value)
        return [s.header(0, shares), *s.chunks()]

    limit = DEFAULT_LIMITS.max_chunk_bytes
    return {
        "nothing": (lambda s: [], "begins with its header"),
        "no header": (lambda s: s.chunks(), "begins with its header"),
        "empty message": (lambda s: [party_pb2.UploadRequest()], "begins with its header"),
        "empty header": (lambda s: [party_pb2.UploadRequest(header=party_pb2.UploadHeader())], "manifest"),
        "header twice": (header_twice, "chunks only"),
        "truncated": (lambda s: [s.header(0), *s.chunks(stop=SIZE - 8)], "truncated: 7992 of 8000"),
        "header only": (lambda s: [s.header(0)], "truncated: 0 of 8000"),
        "oversized": (lambda s: [s.header(0), *s.chunks(), _chunk(SIZE, b"\0" * 8)], "oversized"),
        "oversized at once": (lambda s: [s.header(0), _chunk(0, b"\0" * (SIZE + 1))], "oversized"),
        "huge chunk": (lambda s: [s.header(0), _chunk(0, b"\0" * (limit + 1))], "chunk"),
        "empty chunk": (lambda s: [s.header(0), _chunk(0, b"")], "chunk: 0 bytes"),
        "re-ordered": (lambda s: [s.header(0), s.chunks()[1], s.chunks()[0]], "expected 0"),
        "repeated chunk": (lambda s: [s.header(0), s.chunks()[0], s.chunks()[0]], "expected 1024"),
        "gap": (lambda s: [s.header(0), s.chunks()[0], s.chunks()[2]], "expected 1024"),
        "seed too short": (lambda s: share(s, 1, seed=b"\0" * 15), "seed has 15 bytes"),
        "seed too long": (lambda s: share(s, 1, seed=b"\0" * 17), "seed has 17 bytes"),
        "no seed": (lambda s: share(s, 1, seed=b""), "seed has 0 bytes"),
        "other seed": (lambda s: share(s, 1, seed=b"\0" * 16), "does not match"),
        "seed for the heavy share": (lambda s: share(s, 0, seed=b"\0" * 16), "as words"),
        "salt too short": (lambda s: share(s, 0, salt=b"\0" * 15), "salt has 15 bytes"),
        "no salt": (lambda s: share(s, 1, salt=b""), "salt has 0 bytes"),
        "other salt of a seed": (lambda s: share(s, 1, salt=b"\0" * 16), "does not match"),
        "shares in the other order": (lambda s: [s.header(0, s.shares(0)[::-1]), *s.chunks()], "in this order"),
        "one share": (lambda s: [s.header(0, s.shares(0)[:1]), *s.chunks()], "in this order"),
        "three shares": (lambda s: [s.header(0, s.shares(0) + s.shares(1)[1:]), *s.chunks()], "in this order"),
        "another party's shares": (lambda s: [s.header(0, s.shares(1)), *s.chunks()], "in this order"),
        "no shares": (lambda s: [s.header(0, []), *s.chunks()], "in this order"),
    }


@pytest.mark.parametrize("name", _wrong_streams())
def test_wrong_stream_is_refused_and_the_right_one_still_counts(start_party, spec, submission, refused, name):
    build, words = _wrong_streams()[name]

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            async with refused(INVALID, words):
                await party.upload(build(made), as_participant="alice")
            status = await party.round_status(spec)
            assert (status.state, len(status.complete)) == ("OPEN", 0)
            done = await party.status(made)
            reply = await party.upload([made.header(0), *made.chunks(start=done.committed)], as_participant="alice")
            return reply, party.share_files()["alice-0.words"] == made.heavy_bytes

    reply, same = asyncio.run(scenario())
    assert (reply.complete, reply.committed, same) == (True, SIZE, True)


def test_chunks_after_two_seeds_are_refused(start_party, spec, submission, refused):
    async def scenario():
        async with start_party(1) as party:  # party 1 gets two seeds of slot 0
            await party.open(spec)
            made = submission()
            async with refused(INVALID, "oversized"):
                await party.upload([made.header(1), *made.chunks()], as_participant="alice")
            assert len((await party.round_status(spec)).complete) == 0
            assert (await party.submit(made)).complete

    asyncio.run(scenario())


def _wrong_manifests():
    """Name -> (change of the submission, status, words)."""

    def other(s, **changes):
        return dataclasses.replace(s, manifest=dataclasses.replace(s.manifest, **changes))

    not_found = grpc.StatusCode.NOT_FOUND
    return {
        "foreign task": (lambda s: other(s, task=b"\1" * 32), not_found, "never opened"),
        "other round": (lambda s: other(s, round=2), not_found, "never opened"),
        "shorter": (lambda s: other(s, length=999), INVALID, "999 words"),
        "longer": (lambda s: other(s, length=1 << 40), INVALID, "words"),
        "slot beyond the task": (lambda s: other(s, slot=18), INVALID, "slot 18"),
        "signed by somebody else": (lambda s: dataclasses.replace(s, signer="mallory"), INVALID, "somebody else"),
    }


@pytest.mark.parametrize("name", _wrong_manifests())
def test_manifest_that_does_not_fit_is_refused(start_party, spec, submission, refused, name):
    change, status, words = _wrong_manifests()[name]

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            async with refused(status, words):
                await party.submit(change(submission()))
            return party.share_files()

    assert asyncio.run(scenario()) == {}


def test_other_participants_manifest_cannot_be_sent(start_party, spec, submission, refused):
    """Mallory has seen Alice's signed manifest (or made one in her name) and sends it under her own certificate."""

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            stolen = submission("alice")
            async with refused(INVALID, "somebody else"):
                await party.upload(stolen.requests(0), as_participant="mallory")
            forged = dataclasses.replace(submission("alice"), signer="mallory")
            async with refused(INVALID, "made for alice"):
                await party.upload(forged.requests(0), as_participant="mallory")
            assert party.share_files() == {}
            assert (await party.submit(stolen)).complete  # Alice's own upload is untouched

    asyncio.run(scenario())


def test_who_is_not_in_the_tasks_group_cannot_upload_whatever_the_coordinator_says(
    start_party, spec, submission, refused
):
    group = dataclasses.replace(spec, participants=("bob", "alice"))

    async def scenario():
        async with start_party() as party:
            await party.open(group)
            async with refused(grpc.StatusCode.PERMISSION_DENIED, "not one of them"):
                await party.submit(submission("carol", task=group))
            assert party.share_files() == {}
            assert (await party.submit(submission("alice", task=group))).complete

    asyncio.run(scenario())


def test_tampered_manifest_is_refused(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            request = made.header(0)
            request.header.manifest.manifest.slot = 3  # also heavy index 0, so that only the signature tells
            async with refused(INVALID, "signature"):
                await party.upload([request, *made.chunks()], as_participant="alice")
            return party.share_files()

    assert asyncio.run(scenario()) == {}


@pytest.mark.parametrize("first_is", ["complete", "half sent"])
def test_second_manifest_of_a_participant_is_a_conflict(start_party, spec, submission, refused, first_is):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            first, second = submission(value=1), submission(value=2)
            if first_is == "complete":
                await party.submit(first)
            else:
                async with refused(INVALID, "truncated"):
                    await party.upload([first.header(0), *first.chunks(stop=4096)], as_participant="alice")
            before = party.share_files()
            async with refused(CONFLICT, "another manifest"):
                await party.submit(second)
            async with refused(CONFLICT, "another manifest"):
                await party.status(second)
            assert party.share_files() == before
            rest = first.chunks(start=(await party.status(first)).committed)
            assert (await party.upload([first.header(0), *rest], as_participant="alice")).complete

    asyncio.run(scenario())


def test_claiming_the_slot_of_another_participant_does_not_keep_it_out(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            await party.submit(submission("mallory", slot=0))
            alice = submission("alice", slot=0)
            assert (await party.submit(alice)).complete
            bob = submission("bob", slot=1)
            await party.submit(bob)
            status = await party.seal(spec, [alice, bob])
            assert status.state == "SEALED"

    asyncio.run(scenario())


@pytest.mark.parametrize("where", [0, SIZE // 2, SIZE - 1])
def test_wrong_commitment_throws_the_upload_away_and_nothing_else(start_party, spec, submission, refused, where):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            await party.submit(submission("bob", slot=3))
            before = party.share_files()
            made = submission("alice")
            data = bytearray(made.heavy_bytes)
            data[where] ^= 1
            async with refused(INVALID, "share 0", "commitment"):
                await party.upload([made.header(0), _chunk(0, bytes(data))], as_participant="alice")
            assert party.share_files() == before
            assert (await party.status(made)).committed == 0
            assert [c.participant for c in (await party.round_status(spec)).complete] == ["bob"]
            assert (await party.submit(submission("alice", value=9))).complete  # even with another manifest

    asyncio.run(scenario())


def test_other_salt_of_the_heavy_share_is_a_wrong_commitment(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            shares = made.shares(0)
            shares[0].salt = b"\0" * 16
            async with refused(INVALID, "share 0", "commitment"):
                await party.upload([made.header(0, shares), *made.chunks()], as_participant="alice")
            assert (await party.submit(made)).complete

    asyncio.run(scenario())


async def _break_off(party, made, sent):
    """Send a header and `sent` bytes, wait until the party has them on disk, then break the connection."""
    call = party.intake(made.participant).Upload(timeout=20)
    await call.write(made.header(0))
    for request in made.chunks(stop=sent):
        await call.write(request)
    await party.until_file("alice-0.words", sent)
    call.cancel()


def test_broken_upload_goes_on_where_it_stopped(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            await _break_off(party, made, 3 * 1024)
            committed = (await party.status(made)).committed
            assert not (await party.status(made)).complete
            reply = await party.upload([made.header(0), *made.chunks(start=committed)], as_participant="alice")
            return committed, reply, party.share_files()["alice-0.words"] == made.heavy_bytes

    committed, reply, same = asyncio.run(scenario())
    assert committed == 3 * 1024
    assert (reply.complete, same) == (True, True)


def test_upload_that_begins_again_is_told_what_is_there(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            await _break_off(party, made, 3 * 1024)
            await party.status(made)  # ends the broken stream
            told = await party.submit(made)
            again = await party.status(made)
            reply = await party.upload([made.header(0), *made.chunks(start=again.committed)], as_participant="alice")
            return told, again, reply, party.share_files()["alice-0.words"] == made.heavy_bytes

    told, again, reply, same = asyncio.run(scenario())
    assert (told.committed, told.complete) == (again.committed, again.complete) == (3 * 1024, False)
    assert (reply.complete, same) == (True, True)


def test_broken_upload_goes_on_after_a_restart_of_the_party(start_party, spec, submission):
    async def scenario():
        made = submission()
        async with start_party() as party:
            await party.open(spec)
            await _break_off(party, made, 5 * 1024)
            await party.status(made)
        async with start_party() as party:
            committed = (await party.status(made)).committed
            reply = await party.upload([made.header(0), *made.chunks(start=committed)], as_participant="alice")
            return committed, reply, party.share_files()["alice-0.words"] == made.heavy_bytes

    committed, reply, same = asyncio.run(scenario())
    assert committed == 5 * 1024
    assert (reply.complete, same) == (True, True)


def test_first_part_is_hashed_again_on_resuming(start_party, spec, submission, refused):
    """Somebody changed the bytes on the party's disk between the two streams: the commitment tells."""

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            await _break_off(party, made, 2048)
            await party.status(made)
            (path,) = (party.config.data / "rounds").rglob("*.words")
            path.write_bytes(b"\xff" * 2048)
            async with refused(INVALID, "commitment"):
                await party.upload([made.header(0), *made.chunks(start=2048)], as_participant="alice")

    asyncio.run(scenario())


@pytest.mark.parametrize("asks_first", [True, False])
def test_second_stream_takes_the_upload_over_from_one_that_hangs(start_party, spec, submission, refused, asks_first):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission()
            call = party.intake("alice").Upload(timeout=20)
            await call.write(made.header(0))
            for request in made.chunks(stop=2048):
                await call.write(request)
            await party.until_file("alice-0.words", 2048)
            committed = (await party.status(made)).committed if asks_first else 2048
            second = party.intake("alice").Upload(timeout=20)
            await second.write(made.header(0))
            await second.write(made.chunks(start=committed)[0])
            await party.until_file("alice-0.words", 3072)
            async with refused(CONFLICT, "taken over"):  # before the second stream has ended
                await call.write(_chunk(2048, b"\0" * 1024))
                await call.done_writing()
                await call
            for request in made.chunks(start=3072):
                await second.write(request)
            await second.done_writing()
            return made, await second, party.share_files()["alice-0.words"]

    made, reply, words = asyncio.run(scenario())
    assert reply.complete
    assert words == made.heavy_bytes


def test_status_of_another_participants_upload_tells_nothing(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission("alice")
            await party.submit(made)
            return await party.status(made, as_participant="mallory")

    reply = asyncio.run(scenario())
    assert (reply.committed, reply.complete) == (0, False)


@pytest.mark.parametrize(("digest", "number"), [(b"short", 1), (b"\1" * 32, 0), (b"\1" * 32, 1 << 63)])
def test_status_of_what_is_no_round_is_refused(start_party, spec, refused, digest, number):
    async def scenario():
        async with start_party() as party, refused(INVALID):
            await party.intake("alice").UploadStatus(
                party_pb2.UploadStatusRequest(task_digest=digest, round=number), timeout=20
            )

    asyncio.run(scenario())


def test_sealed_round_takes_no_more_uploads_but_repeats_what_it_answered(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = [submission("alice"), submission("bob", slot=1)]
            first = [await party.submit(s) for s in made]
            late = submission("carol", slot=3)
            call = party.intake("carol").Upload(timeout=20)  # in the middle of its upload while the round is sealed
            await call.write(late.header(0))
            await call.write(late.chunks()[0])
            await party.until_file("carol-0.words", 1024)
            await party.seal(spec, made)
            async with refused(WRONG_STATE, "no uploads any more"):
                await call.write(late.chunks()[1])
                await call.done_writing()
                await call
            async with refused(WRONG_STATE, "SEALED"):
                await party.submit(late)
            assert [await party.submit(s) for s in made] == first  # the answer was lost: say it again
            assert (await party.status(made[0])).complete

    asyncio.run(scenario())


def test_upload_of_many_chunks_is_taken_whole(start_party, submission):
    """Several commits of the offset, chunks of the largest size and a last odd one."""
    spec = TaskSpec("large", 2_500_001, 1.0, max_participants=4)

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission(task=spec)
            requests = [made.header(0), *made.chunks(size=DEFAULT_LIMITS.max_chunk_bytes)]
            reply = await party.upload(requests, as_participant="alice")
            return reply, np.array_equal(
                np.frombuffer(party.share_files()["alice-0.words"], "<i8"), made.sharing.heavy_words
            )

    reply, same = asyncio.run(scenario())
    assert (reply.complete, reply.committed, same) == (True, spec.length * 8, True)
