"""Uploads that stand still, break off or want too much: they hold no memory, and no disk beyond their round."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import grpc
import pytest

from triskele.errors import Busy
from triskele_server.limits import ServerLimits
from triskele_server.party.disk_room import DiskRoom
from triskele_server.party.intake import _Place
from triskele_server.party.upload import UploadSession

BUSY, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
SHARE = 1000 * 8  # bytes of the tests' heavy shares


async def stalled(party, made, *, chunks: int = 1) -> grpc.aio.StreamUnaryCall:
    """An upload stream that sends its header and some chunks, and then nothing."""
    call = party.intake(made.participant).Upload(timeout=20)
    await call.write(made.header(0))
    for request in made.chunks(size=1024)[:chunks]:
        await call.write(request)
    return call


def held_in_memory() -> list[object]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in (UploadSession, _Place)]


def test_upload_that_stands_still_is_ended_and_goes_on_in_another_stream(start_party, submission, spec, refused):
    async def scenario():
        async with start_party(limits=ServerLimits(upload_idle_seconds=0.3)) as party:
            await party.open(spec)
            made = submission()
            call = await stalled(party, made, chunks=2)
            async with refused(LATE, "nothing came for 0.3 s"):
                await call
            committed = (await party.status(made)).committed
            reply = await party.upload([made.header(0), *made.chunks(start=committed)], as_participant="alice")
            return committed, reply.complete

    assert asyncio.run(scenario()) == (2048, True)


def test_upload_that_sends_too_slowly_is_ended_at_its_total_time(start_party, submission, spec, refused):
    async def scenario():
        async with start_party(limits=ServerLimits(upload_idle_seconds=5, upload_seconds=0.5)) as party:
            await party.open(spec)
            made = submission()
            call = await stalled(party, made, chunks=0)
            with contextlib.suppress(asyncio.InvalidStateError):  # the stream has its answer
                for request in made.chunks(size=16):
                    await call.write(request)
                    await asyncio.sleep(0.1)
            async with refused(LATE, "took longer than 0.5 s"):
                await call

    asyncio.run(scenario())


def test_header_that_never_comes_is_not_waited_for(start_party, spec, refused):
    async def scenario():
        async with start_party(limits=ServerLimits(upload_idle_seconds=0.2)) as party:
            await party.open(spec)
            async with refused(LATE):
                await party.intake("alice").Upload(timeout=20)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "idle"])
def test_upload_that_broke_off_holds_no_memory(start_party, submission, spec, how):
    async def scenario():
        async with start_party(limits=ServerLimits(upload_idle_seconds=0.2)) as party:
            await party.open(spec)
            call = await stalled(party, submission())
            await party.until_file("alice-0.words", 1024)
            during = len(held_in_memory())
            if how == "cancelled":
                call.cancel()
            del call
            async with asyncio.timeout(10):
                while held_in_memory():  # noqa: ASYNC110  nothing tells when memory is given back
                    await asyncio.sleep(0.05)
            return during, party.share_files().keys()

    during, files = asyncio.run(scenario())
    assert during >= 2
    assert "alice-0.words" in files  # what was committed waits for its participant, or for the end of the round


def test_one_participants_streams_at_a_time_are_limited(start_party, submission, spec, refused):
    async def scenario():
        async with start_party(limits=ServerLimits(uploads_at_once=1)) as party:
            await party.open(spec)
            first = await stalled(party, submission())
            await party.until_file("alice-0.words", 1024)
            async with refused(BUSY, "1 uploads under way"):
                await party.submit(submission())
            await party.submit(submission("bob", slot=3))
            first.cancel()

    asyncio.run(scenario())


def test_disk_is_counted_when_an_upload_begins_and_is_free_again_after_the_round(
    start_party, submission, spec, refused
):
    """Declared, not written bytes: the first one has sent 1 KiB when the second one is refused."""

    async def scenario():
        async with start_party(limits=ServerLimits(round_disk_bytes=SHARE + 1000)) as party:
            await party.open(spec)
            half = await stalled(party, submission())
            await party.until_file("alice-0.words", 1024)
            async with refused(BUSY, "round_disk_bytes"):
                await party.submit(submission("bob", slot=3))
            assert not [name for name in party.share_files() if name.startswith("bob")]
            await party.submit(submission("carol", slot=2))  # two seeds at this party: no words
            half.cancel()
            await asyncio.sleep(0.1)
            async with refused(BUSY):  # broken off, and counted on
                await party.submit(submission("bob", slot=3))
            await party.end(spec, "FAILED")
            await party.until_no_files()
            await party.open(spec, 2)
            await party.submit(submission("bob", slot=3, number=2))

    asyncio.run(scenario())


def test_what_a_restart_finds_half_uploaded_is_counted_on(start_party, submission, spec, refused):
    limits = ServerLimits(round_disk_bytes=SHARE)

    async def scenario():
        async with start_party(limits=limits) as party:
            await party.open(spec)
            made = submission()
            call = await stalled(party, made)
            await party.until_file("alice-0.words", 1024)
            call.cancel()
        async with start_party(limits=limits) as party:
            async with refused(BUSY):
                await party.submit(submission("bob", slot=3))
            committed = (await party.status(made)).committed
            await party.upload([made.header(0), *made.chunks(start=committed)], as_participant="alice")

    asyncio.run(scenario())


def test_upload_that_would_fill_the_disk_is_refused_before_anything_is_written(start_party, submission, spec, refused):
    async def scenario():
        async with start_party(limits=ServerLimits(free_disk_bytes=1 << 60)) as party:
            await party.open(spec)
            async with refused(BUSY, "disk is full"):
                await party.submit(submission())
            return party.share_files()

    assert asyncio.run(scenario()) == {}


def test_room_leaves_what_was_promised_to_others():
    room = DiskRoom(Path(), ServerLimits(free_disk_bytes=100, round_disk_bytes=1000), lambda _: 600)
    room.check(300, of_round=0, promised=200)
    with pytest.raises(Busy, match="full"):
        room.check(301, of_round=0, promised=200)
    with pytest.raises(Busy, match="round_disk_bytes"):
        room.check(10, of_round=991, promised=0)
