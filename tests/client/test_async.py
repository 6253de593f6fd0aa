"""The asyncio half of the client: the same results, an event loop that goes on, and cancellation that really ends."""

import asyncio
import contextlib
import threading
import time

import grpc
import numpy as np
import pytest

from triskele import Conflict, NotFound, Participant, Unavailable, WrongState
from triskele.connection import RetryPolicy
from triskele.errors import RoundFailed
from triskele.limits import Limits

from .certificates import write_participant

PATIENT = RetryPolicy(attempts=8, total=90.0, first_wait=30.0, longest_wait=60.0)  # its waits are longer than a test


def update(seed=0):
    return (np.random.default_rng(seed).normal(size=1500) / 40).astype(np.float32)


def async_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("triskele-async", "triskele-upload"))]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what is waited for happens in other threads
            await asyncio.sleep(0.01)


def mute(federation, index=0):
    """Make a party take a stream and never answer; the event returned lets it go."""
    release = threading.Event()
    party = federation.parties[index]
    begin = party._begin

    def hold(header, identity):
        party.held = True
        release.wait(30)
        return begin(header, identity)

    party.held = False
    party._begin = hold
    return release


def test_two_participants_in_one_event_loop_get_the_mean(federation, join):
    federation.coordinator.show(1, "OPEN")

    uploaded = asyncio.Semaphore(0)
    one_at_a_time = asyncio.Lock()  # the toy parties remember one upload's salts

    async def take_part(name, seed):
        async with join(name) as me:
            async with one_at_a_time:
                submitted = await me.async_submit("faces", update(seed))
            uploaded.release()
            return await submitted.async_result()

    async def run():
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            both = [group.create_task(take_part(name, seed)) for seed, name in enumerate(["alice", "bob"])]
            await uploaded.acquire()
            await uploaded.acquire()
            federation.coordinator.release(1, federation.sum_of_uploads(), 2)
        return [one.result() for one in both]

    for result in asyncio.run(run()):
        assert result.dtype == np.float32
        assert np.abs(result - (update(0) + update(1)) / 2).max() < 4.0 * 2.0**-20


def test_rounds_come_one_by_one_and_end_with_the_task(federation, join):
    coordinator = federation.coordinator
    coordinator.show(1, "OPEN")

    async def run():
        numbers = []
        async with join() as me:
            async for round_ in me.async_rounds("faces"):
                numbers.append(round_.number)
                await round_.async_submit(update())
                coordinator.release(round_.number, federation.sum_of_uploads(), 1)
                if round_.number == 1:
                    for party in federation.parties:
                        party.uploads.clear()
                    coordinator.show(2, "OPEN")
                else:
                    coordinator.finish()
            with pytest.raises(NotFound, match="finished"):
                await me.async_submit("faces", update())
        return numbers

    assert asyncio.run(run()) == [1, 2]


def test_aggregate_is_for_those_too_who_took_no_part(federation, join):
    federation.coordinator.show(1, "OPEN")
    join("alice").round("faces", 1).submit(update())
    federation.coordinator.release(1, federation.sum_of_uploads(), 1)

    async def run():
        async with join("bob") as me:
            return await me.round("faces", 1).async_aggregate(like={"w": np.zeros((30, 50), np.float32)})

    result = asyncio.run(run())["w"]
    assert np.abs(result.ravel() - update()).max() < 4.0 * 2.0**-20
    flat = join("bob").round("faces", 1).aggregate()
    assert flat.dtype == np.float64
    assert np.array_equal(flat.astype(np.float32), result.ravel())


def test_errors_are_those_of_the_blocking_calls(federation, join):
    federation.coordinator.show(1, "OPEN")

    async def run():
        async with join() as me:
            await me.async_submit("faces", update(0))
            with pytest.raises(Conflict):
                await me.async_submit("faces", update(1))
            federation.coordinator.show(1, "EXPIRED")
            with pytest.raises(RoundFailed):
                await me.round("faces", 1).async_aggregate()

    asyncio.run(run())


def test_progress_is_called_in_the_event_loop(federation, join):
    federation.coordinator.show(1, "OPEN")
    seen = []

    async def run():
        async with join() as me:
            await me.async_submit("faces", update(), progress=lambda p: seen.append((threading.get_ident(), p)))
        return threading.get_ident()

    loop_thread = asyncio.run(run())
    assert {thread for thread, _ in seen} == {loop_thread}
    assert sorted(p.party for _, p in seen if p.complete) == [0, 1, 2]


def test_event_loop_goes_on_while_an_update_is_encoded(federation, join, spec):
    federation.coordinator.show(1, "OPEN")
    release = mute(federation)
    ticks = []

    async def run():
        async with join() as me:
            submission = asyncio.create_task(me.async_submit("faces", update()))
            await until(lambda: federation.parties[0].held)
            started = time.monotonic()
            for _ in range(20):
                await asyncio.sleep(0.005)
                ticks.append(time.monotonic() - started)
            assert not submission.done()
            release.set()
            await submission

    asyncio.run(run())
    assert len(ticks) == 20
    assert ticks[-1] < 2.0


def test_cancelled_upload_ends_its_calls_and_threads_and_can_be_repeated(federation, join):
    federation.coordinator.show(1, "OPEN")
    release = mute(federation)

    async def run():
        async with join() as me:
            submission = asyncio.create_task(me.async_submit("faces", update()))
            await until(lambda: federation.parties[0].held)
            started = time.monotonic()
            submission.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submission
            assert time.monotonic() - started < 5.0
            assert async_threads() == []
            release.set()
            await me.async_submit("faces", update())

    asyncio.run(run())
    assert federation.parties[0].uploads["spiffe://demo/participant/alice"].complete


def test_timeout_ends_a_wait_for_rounds_that_never_come(join):
    async def first_round(me):
        async with asyncio.timeout(0.3):
            return await anext(me.async_rounds("faces"))

    async def run():
        async with join() as me:
            with pytest.raises(TimeoutError):
                await first_round(me)
            assert async_threads() == []

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 5.0


def test_cancellation_ends_the_pause_between_two_attempts(federation, authority, tmp_path):
    config = write_participant(tmp_path / "alice", authority, "alice", federation.address)
    federation.coordinator.show(1, "OPEN")
    federation.parties[0].breaks = [0] * 9

    async def run():
        async with Participant.from_config(config, limits=Limits(chunk_bytes=1024), retries=PATIENT) as me:
            submission = asyncio.create_task(me.async_submit("faces", update()))
            await until(lambda: federation.parties[0].streams == 1)
            await asyncio.sleep(0.3)  # into the pause of 30 s
            submission.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submission
            assert async_threads() == []

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 10.0


def test_second_cancellation_does_not_leave_the_thread_behind(federation, join):
    federation.coordinator.show(1, "OPEN")
    release = mute(federation)

    async def run():
        async with join() as me:
            submission = asyncio.create_task(me.async_submit("faces", update()))
            await until(lambda: federation.parties[0].held)
            submission.cancel()
            await asyncio.sleep(0)
            submission.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submission
            assert async_threads() == []

    asyncio.run(run())
    release.set()


def test_no_call_is_registered_with_a_channel_that_another_thread_may_close(federation, join, monkeypatch):
    """gRPC's core is not thread-safe there: a participant that was closed meanwhile ended by a segmentation fault."""
    registered = []
    inner = grpc._channel.Channel._get_registered_call_handle
    monkeypatch.setattr(
        grpc._channel.Channel,
        "_get_registered_call_handle",
        lambda self, method: registered.append(method) or inner(self, method),
    )
    federation.coordinator.show(1, "OPEN")
    with join() as me:
        next(me.rounds("faces")).submit(update())
        federation.coordinator.release(1, federation.sum_of_uploads(), 1)
        me.round("faces", 1).aggregate()
    assert registered == []


def test_cancelling_one_operation_leaves_the_others_of_the_participant_alone(federation, join):
    federation.coordinator.show(1, "OPEN")

    async def run():
        async with join() as me:
            waiting = asyncio.create_task(me.round("faces", 1).async_aggregate())
            second = asyncio.create_task(me.round("faces", 1).async_aggregate())
            await until(lambda: federation.coordinator.watches >= 4)
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
            await me.async_submit("faces", update())
            federation.coordinator.release(1, federation.sum_of_uploads(), 1)
            return await waiting

    assert np.abs(asyncio.run(run()) - update()).max() < 4.0 * 2.0**-20


def test_closing_the_participant_ends_what_others_wait_for(federation, join):
    federation.coordinator.show(1, "OPEN")

    async def run():
        me = join()
        waiting = asyncio.create_task(me.round("faces", 1).async_aggregate())
        await until(lambda: federation.coordinator.watches >= 2)
        me.close()
        with pytest.raises((WrongState, Unavailable)):
            await waiting
        with pytest.raises(WrongState, match="closed"):
            await me.async_submit("faces", update())
        assert async_threads() == []

    asyncio.run(run())


def test_closing_ends_the_pause_of_a_blocking_call_in_another_thread(federation, authority, tmp_path):
    config = write_participant(tmp_path / "alice", authority, "alice", federation.address)
    federation.coordinator.show(1, "OPEN")
    federation.parties[0].breaks = [0] * 9
    me = Participant.from_config(config, limits=Limits(chunk_bytes=1024), retries=PATIENT)
    errors = []

    def submit():
        try:
            me.round("faces", 1).submit(update())
        except (WrongState, Unavailable) as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    while federation.parties[0].streams == 0:
        time.sleep(0.01)
    time.sleep(0.3)
    me.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(WrongState, match="closed"):
        me.tasks()
