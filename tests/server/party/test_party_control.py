"""What the coordinator may ask of a party: open, seal, run, fetch, end; what the party refuses; restarts in between."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time

import grpc
import numpy as np
import pytest
import structlog

from triskele.errors import PartyFault, PeerLost, RoundFailed
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_proto.v1 import control_pb2
from triskele_server.config import PolicyTable
from triskele_server.party import control
from triskele_server.party.store import PartyStore
from triskele_server.privacy import epsilon
from triskele_server.round_state import RoundState

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONFLICT = grpc.StatusCode.ALREADY_EXISTS
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
FORBIDDEN = grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def _filled(party, spec, submission, number=1):
    """An open round with the complete uploads of Alice and Bob."""
    await party.open(spec, number)
    made = [submission("alice", number=number, task=spec), submission("bob", slot=1, number=number, task=spec)]
    for one in made:
        await party.submit(one)
    return made


async def _sealed(party, spec, submission):
    made = await _filled(party, spec, submission)
    await party.seal(spec, made)
    return made


def test_whole_life_of_a_round(start_party, spec, submission):
    async def scenario():
        async with start_party(2) as party:
            opened = await party.open(spec)
            made = await _filled(party, spec, submission)
            sealed = await party.seal(spec, made)
            await party.run(spec)
            combined = await party.until(spec, "COMBINED")
            before = set(party.share_files())
            output = await party.output(spec)
            released = await party.end(spec, "RELEASED")
            return party, made, [opened, sealed, combined, released], output, before

    party, made, replies, output, before = asyncio.run(scenario())
    assert [r.state for r in replies] == ["OPEN", "SEALED", "COMBINED", "RELEASED"]
    assert b"".join(c.data for c in output) == np.arange(spec.dimension, dtype="<i8").tobytes()
    assert [c.offset for c in output] == [0]
    (job,) = party.runner.jobs
    assert (job.task, job.round, job.attempt) == (spec.canonical(), 1, 1)
    assert [(s.slot, s.participant, s.manifest_digest) for s in job.submissions] == [
        (i, m.participant, m.manifest.digest) for i, m in enumerate(made)
    ]
    assert [[(h.index, h.seed, h.path.name) for h in s.shares] for s in job.submissions] == [
        [(2, True, "alice-2.seed"), (0, False, "alice-0.words")],
        [(2, True, "bob-2.seed"), (0, True, "bob-0.seed")],
    ]
    outcome = replies[2].outcome
    assert (outcome.weight_total, list(outcome.accepted_slots), list(outcome.openings)) == (2, [0, 1], ["y[3]"])
    assert before == {"alice-2.seed", "alice-0.words", "bob-2.seed", "bob-0.seed", "output-1.bin"}
    assert party.share_files() == {}
    assert replies[3].outcome == outcome


def test_phases_are_seen_while_the_computation_runs(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            await party.run(spec)
            await party.runner.started.wait()
            during = await party.round_status(spec)
            again = await party.run(spec)
            party.runner.go_on.set()
            await party.until(spec, "COMBINED")
            after = await party.run(spec)
            return during, again, after, len(party.runner.jobs)

    during, again, after, jobs = asyncio.run(scenario())
    assert (during.state, again.state, after.state, jobs) == ("CHECKED", "CHECKED", "COMBINED", 1)


def test_round_is_not_combined_before_its_outcome_is_stored(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.end.clear()
            await party.run(spec)
            await party.runner.written.wait()
            during = await party.round_status(spec)
            async with refused(WRONG_STATE):
                await party.output(spec)
            party.runner.end.set()
            return during, await party.until(spec, "COMBINED")

    during, after = asyncio.run(scenario())
    assert (during.state, during.HasField("outcome")) == ("FILTERED", False)
    assert after.outcome.weight_total == 2


def test_large_output_comes_in_chunks_in_order(start_party, submission):
    spec = TaskSpec("large", 200_000, 1.0, max_participants=4)

    async def scenario():
        async with start_party() as party:
            made = [submission("alice", task=spec), submission("bob", task=spec, slot=1)]
            await party.open(spec)
            for one in made:
                await party.submit(one)
            await party.seal(spec, made)
            await party.run(spec)
            await party.until(spec, "COMBINED")
            return await party.output(spec)

    output = asyncio.run(scenario())
    assert [c.offset for c in output] == [0, 1 << 19, 1 << 20, 3 << 19]
    assert b"".join(c.data for c in output) == np.arange(spec.dimension, dtype="<i8").tobytes()


def test_opening_again_changes_nothing(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            return await party.open(spec), await party.open(spec, 2)

    again, other = asyncio.run(scenario())
    assert (again.state, len(again.complete)) == ("SEALED", 2)
    assert (other.state, len(other.complete)) == ("OPEN", 0)


@pytest.mark.parametrize(
    "task", [b"", b"{}", b"[1]", b"\xff", b"{" * 100_000], ids=["empty", "no task", "list", "no text", "nested"]
)
def test_bytes_that_are_no_task_are_refused(start_party, refused, task):
    async def scenario():
        async with start_party() as party, refused(INVALID):
            await party.control.OpenRound(control_pb2.OpenRoundRequest(task=task, round=1), timeout=20)

    asyncio.run(scenario())


def test_task_that_is_not_canonical_is_refused(start_party, spec, refused):
    async def scenario():
        async with start_party() as party, refused(INVALID, "canonical"):
            task = spec.canonical() + b" "
            await party.control.OpenRound(control_pb2.OpenRoundRequest(task=task, round=1), timeout=20)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "policy",
    [
        {"min_accepted": 3},
        {"rules": ("multi-krum",)},
        {"decisions": ("hidden",)},
        {"releases": ("public",)},
        {"max_dimension": 999},
        {"max_participants": 15},
    ],
    ids=lambda policy: next(iter(policy)),
)
def test_task_outside_the_partys_policy_is_refused_with_the_reason(start_party, spec, refused, policy):
    async def scenario():
        async with start_party(policy=PolicyTable(**policy)) as party:
            async with refused(FORBIDDEN, next(iter(policy)), "policy"):
                await party.open(spec)
            async with refused(NOT_FOUND):
                await party.round_status(spec)

    asyncio.run(scenario())


def test_rule_that_does_not_exist_is_refused_even_if_the_policy_names_it(start_party, spec, refused):
    async def scenario():
        async with start_party(policy=PolicyTable(rules=("flame", "best-of-all"))) as party:
            async with refused(INVALID, "best-of-all"):
                await party.open(dataclasses.replace(spec, rule=("best-of-all",)))
            assert (await party.open(spec)).state == "OPEN"

    asyncio.run(scenario())


async def _asked(party, spec, **seen):
    seen = {"state": "OPEN", "enough": 2, "wait_ms": 60_000, **seen}
    request = control_pb2.RoundRequest(task_digest=spec.digest, round=1, seen=control_pb2.Seen(**seen))
    return await party.control.RoundStatus(request, timeout=20)


def test_coordinator_that_waits_is_answered_when_enough_uploads_are_there(start_party, spec, submission, monkeypatch):
    monkeypatch.setattr(control, "NEWS_SECONDS", 60.0)

    async def scenario():
        async with start_party() as party, asyncio.timeout(30):
            await party.open(spec)
            waiting = asyncio.create_task(_asked(party, spec))
            await party.submit(submission("alice", task=spec))
            await asyncio.sleep(0.2)
            assert not waiting.done(), "one is not enough"
            await party.submit(submission("bob", slot=1, task=spec))
            assert len((await waiting).complete) == 2
            assert len((await _asked(party, spec)).complete) == 2  # at once

    asyncio.run(scenario())


def test_coordinator_that_waits_is_told_of_each_phase_and_of_the_end_of_an_attempt(
    start_party, spec, submission, monkeypatch
):
    monkeypatch.setattr(control, "NEWS_SECONDS", 60.0)

    async def scenario():
        async with start_party() as party, asyncio.timeout(30):
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            party.runner.error = PeerLost("party 1 is gone")
            await party.run(spec)
            assert (await _asked(party, spec, state="SEALED", attempt=0)).attempt == 1  # is not so any more
            await party.runner.started.wait()
            assert (await _asked(party, spec, state="SEALED", attempt=1, running=True)).state == "CHECKED"
            waiting = asyncio.create_task(_asked(party, spec, state="CHECKED", attempt=1, running=True))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            party.runner.go_on.set()
            lost = await waiting
            assert (lost.state, lost.running, lost.setback) == ("SEALED", False, "party 1 is gone")

    asyncio.run(scenario())


def test_attempt_that_ends_while_the_store_is_read_is_not_told_as_lost(start_party, spec, submission, monkeypatch):
    read = PartyStore.uploads

    async def scenario():
        async with start_party() as party, asyncio.timeout(30):
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            await party.run(spec)
            await party.runner.started.wait()
            loop, ended = asyncio.get_running_loop(), threading.Event()

            def slowly(store, key):  # the round's row has been read: the attempt ends, and then the rest is read
                if not ended.is_set():
                    loop.call_soon_threadsafe(party.runner.go_on.set)
                    until = time.monotonic() + 10
                    while store.round(key).state is not RoundState.COMBINED and time.monotonic() < until:
                        time.sleep(0.01)
                    time.sleep(0.1)  # for the attempt's own end
                    ended.set()
                return read(store, key)

            monkeypatch.setattr(PartyStore, "uploads", slowly)
            told = await party.round_status(spec)
            assert told.running or told.state == "COMBINED", "nothing to begin anew"
            assert (await party.round_status(spec)).state == "COMBINED"

    asyncio.run(scenario())


def test_coordinator_without_news_is_answered_in_a_while(start_party, spec, refused):
    async def scenario():
        async with start_party() as party, asyncio.timeout(30):
            await party.open(spec)
            assert (await _asked(party, spec, wait_ms=100)).state == "OPEN"
            async with refused(INVALID, "round's state"):
                await _asked(party, spec, state="ASLEEP")
            async with refused(NOT_FOUND):
                await _asked(party, dataclasses.replace(spec, clip_norm=3.0))

    asyncio.run(scenario())


def test_other_coordinator_of_the_federation_cannot_drive_the_party(start_party, spec, refused):
    async def scenario():
        async with start_party(coordinator="second") as party:  # the test's certificate is of coordinator "main"
            request = control_pb2.RoundRequest(task_digest=spec.digest, round=1)
            async with refused(FORBIDDEN, "'main'"):
                await party.control.RoundStatus(request, timeout=20)
            async with refused(FORBIDDEN, "'main'"):
                await party.run(spec)
            async with refused(FORBIDDEN):
                await party.open(spec)
            async with refused(FORBIDDEN):
                await party.seal(spec, [])
            async with refused(FORBIDDEN):
                await party.output(spec)
            async with refused(FORBIDDEN):
                await party.end(spec, "FAILED")

    asyncio.run(scenario())


def test_unknown_round_is_not_found_by_every_call(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            two = [submission("alice"), submission("bob", slot=1)]
            calls = (
                lambda: party.round_status(spec),
                lambda: party.seal(spec, two),
                lambda: party.run(spec),
                lambda: party.output(spec),
                lambda: party.end(spec, "FAILED"),
                lambda: party.status(two[0]),
                lambda: party.submit(two[0]),
            )
            for call in calls:
                async with refused(NOT_FOUND, "never opened"):
                    await call()

    asyncio.run(scenario())


def test_sealing_is_refused_below_the_tasks_and_the_partys_minimum(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            for few in ([], made[:1]):
                async with refused(WRONG_STATE, "minimum cohort of 2"):
                    await party.seal(spec, few)
        async with start_party(policy=PolicyTable(min_accepted=3)) as party:  # the operator raised it meanwhile
            async with refused(WRONG_STATE, "minimum cohort of 3"):
                await party.seal(spec, made)
            assert (await party.round_status(spec)).state == "OPEN"

    asyncio.run(scenario())


def _wrong_sets():
    def listed(s, **changes):
        return dataclasses.replace(s, manifest=dataclasses.replace(s.manifest, **changes))

    return {
        "missing": (lambda made, other: [*made, other], WRONG_STATE, "carol"),
        "other manifest": (lambda made, other: [made[0], listed(made[1], length=3)], WRONG_STATE, "bob"),
        "other slot": (lambda made, other: [made[0], listed(made[1], slot=4)], WRONG_STATE, "bob"),
        "slot twice": (lambda made, other: [made[0], listed(made[0], participant="carol")], INVALID, "twice"),
        "participant twice": (lambda made, other: [made[0], made[0]], INVALID, "twice"),
    }


@pytest.mark.parametrize("name", _wrong_sets())
def test_set_that_is_not_complete_here_is_not_sealed(start_party, spec, submission, refused, name):
    build, status, word = _wrong_sets()[name]

    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            async with refused(status, word):
                await party.seal(spec, build(made, submission("carol", slot=2)))
            assert (await party.round_status(spec)).state == "OPEN"
            assert (await party.seal(spec, made)).state == "SEALED"

    asyncio.run(scenario())


def test_half_uploaded_submission_is_not_sealed(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            half = submission("carol", slot=3)
            async with refused(INVALID, "truncated"):
                await party.upload([half.header(0), *half.chunks(stop=4096)], as_participant="carol")
            async with refused(WRONG_STATE, "carol"):
                await party.seal(spec, [*made, half])

    asyncio.run(scenario())


def test_sealing_again_with_the_same_set_is_idempotent_and_with_another_a_conflict(
    start_party, spec, submission, refused
):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            third = submission("carol", slot=2)
            await party.submit(third)
            first = await party.seal(spec, made)
            assert await party.seal(spec, made[::-1]) == first
            for other in ([*made, third], [made[0], third]):
                async with refused(CONFLICT, "another input set"):
                    await party.seal(spec, other)
            await party.run(spec)
            await party.until(spec, "COMBINED")
            return party.runner.jobs

    (job,) = asyncio.run(scenario())
    assert [s.participant for s in job.submissions] == ["alice", "bob"]


def test_steps_out_of_order_are_refused(start_party, spec, submission, refused):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            async with refused(WRONG_STATE, "OPEN"):
                await party.run(spec)
            async with refused(WRONG_STATE, "OPEN"):
                await party.output(spec)
            async with refused(WRONG_STATE):
                await party.end(spec, "RELEASED")
            await party.seal(spec, made)
            async with refused(WRONG_STATE, "SEALED"):
                await party.output(spec)
            async with refused(WRONG_STATE):
                await party.end(spec, "RELEASED")
            for state in ("OPEN", "SEALED", "released", ""):
                async with refused(INVALID):
                    await party.end(spec, state)
            assert len(party.share_files()) == 4  # nothing of this deleted a share

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (RoundFailed("too_few_accepted", "party:1", "1 of 2"), ("too_few_accepted", "party:1", "1 of 2")),
        (PartyFault("frame out of order", 2), ("party_fault", "party:2", "frame out of order")),
        (PartyFault("nobody knows"), ("party_fault", "party:0", "nobody knows")),
    ],
)
def test_failed_computation_ends_the_round_with_the_blame_and_deletes_the_shares(
    start_party, spec, submission, *, refused, error, blame
):
    async def scenario():
        async with start_party() as party:
            party.runner.error = error
            await _sealed(party, spec, submission)
            await party.run(spec)
            status = await party.until(spec, "FAILED")
            await party.until_no_files()  # before the coordinator ends the round: the party does it by itself
            async with refused(WRONG_STATE):
                await party.output(spec)
            return status, await party.end(spec, "FAILED")

    status, ended = asyncio.run(scenario())
    assert (status.blame.reason, status.blame.who, status.blame.detail) == blame
    assert ended == status  # who failed first keeps the blame


@pytest.mark.parametrize("fault", ["exception", "wrong digest"])
def test_internal_error_of_a_computation_is_a_reference_only(start_party, spec, submission, fault):
    async def scenario():
        async with start_party() as party:
            if fault == "exception":
                party.runner.error = ValueError("CANARY words [1, 2, 3]")
            else:
                party.runner.digest = b"\0" * 32
            await _sealed(party, spec, submission)
            with structlog.testing.capture_logs() as events:
                await party.run(spec)
                status = await party.until(spec, "FAILED")
            return status, events

    status, events = asyncio.run(scenario())
    assert (status.blame.reason, status.blame.who) == ("internal_error", "party:0")
    assert "CANARY" not in str(status) + repr(events)
    (line,) = [e for e in events if e["event"] == "round_internal_error"]
    assert line["reference"] in status.blame.detail


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED"])
def test_ending_an_open_round_deletes_its_shares_and_stays_as_it_ended(start_party, spec, submission, refused, state):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            assert len(party.share_files()) == 4
            first = await party.end(spec, state)
            assert party.share_files() == {}
            assert [await party.end(spec, s) for s in ("FAILED", "EXPIRED")] == [first] * 2
            async with refused(grpc.StatusCode.ALREADY_EXISTS, state):
                await party.end(spec, "RELEASED")
            assert await party.open(spec) == first
            async with refused(WRONG_STATE):
                await party.submit(submission("carol", slot=2))
            assert (await party.submit(made[0])).complete  # a repeated upload is answered, and stores nothing
            assert party.share_files() == {}
            return first

    first = asyncio.run(scenario())
    assert (first.state, first.blame.who) == (state, "coordinator")


def test_ending_a_round_stops_its_computation_and_leaves_no_file(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            await party.run(spec)
            await party.runner.started.wait()
            ended = await party.end(spec, "FAILED")
            assert party.runner.cancelled
            party.runner.go_on.set()
            return ended, await party.round_status(spec), party.share_files()

    ended, later, files = asyncio.run(scenario())
    assert ended.state == "FAILED"
    assert later == ended
    assert files == {}


@pytest.mark.parametrize("state", ["OPEN", "SEALED", "COMBINED"])
def test_round_survives_a_restart_and_goes_on(start_party, spec, submission, state):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            if state != "OPEN":
                await party.seal(spec, made)
            if state == "COMBINED":
                await party.run(spec)
                await party.until(spec, "COMBINED")
            before = await party.round_status(spec)
        async with start_party() as party:
            assert await party.round_status(spec) == before
            await party.seal(spec, made)
            await party.run(spec)
            combined = await party.until(spec, "COMBINED")
            output = await party.output(spec)
            return before, combined, output, (await party.end(spec, "RELEASED")).state

    before, combined, output, ended = asyncio.run(scenario())
    assert before.state == state
    assert combined.outcome.weight_total == 2
    assert len(output[0].data) == 8 * spec.dimension
    assert ended == "RELEASED"


def test_round_whose_computation_was_interrupted_by_a_restart_goes_on_in_the_next_attempt(
    start_party, spec, submission
):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            running = await party.run(spec)
            await party.runner.started.wait()
        async with start_party() as party:
            status = await party.round_status(spec)
            same_again = await party.run(spec, attempt=1)
            assert party.runner.jobs == []
            await party.run(spec, attempt=2)
            await party.until(spec, "COMBINED")
            return running, status, same_again, party.runner.jobs

    running, status, same_again, jobs = asyncio.run(scenario())
    assert (running.attempt, running.running) == (1, True)
    assert (status.state, status.attempt, status.running) == ("SEALED", 1, False)
    assert same_again == status
    assert [job.attempt for job in jobs] == [2]


def test_a_lost_attempt_leaves_the_round_sealed_and_says_why(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.error = PeerLost("the stream with party 2 ended")
            await party.run(spec)
            async with asyncio.timeout(20):
                while not (status := await party.round_status(spec)).setback:  # noqa: ASYNC110  a party pushes nothing
                    await asyncio.sleep(0.01)
            files = party.share_files()
            party.runner.error = None
            await party.run(spec, attempt=2)
            return status, files, await party.until(spec, "COMBINED")

    status, files, combined = asyncio.run(scenario())
    assert (status.state, status.running, status.setback) == ("SEALED", False, "the stream with party 2 ended")
    assert files
    assert combined.attempt == 2


def test_a_new_attempt_gives_up_the_one_that_still_runs(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            party.runner.go_on.clear()
            await party.run(spec)
            await party.runner.started.wait()
            status = await party.run(spec, attempt=3)
            assert party.runner.cancelled
            party.runner.go_on.set()
            await party.until(spec, "COMBINED")
            return status, [job.attempt for job in party.runner.jobs]

    status, attempts = asyncio.run(scenario())
    assert (status.attempt, status.running) == (3, True)
    assert attempts == [1, 3]


@pytest.mark.parametrize("attempt", [0, 17])
def test_attempts_out_of_range_are_refused(start_party, spec, submission, refused, attempt):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            async with refused(INVALID if attempt == 0 else WRONG_STATE, "attempt"):
                await party.run(spec, attempt=attempt)

    asyncio.run(scenario())


def test_sealed_round_whose_files_are_lost_fails_at_the_restart(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _sealed(party, spec, submission)
            next((party.config.data / "rounds").rglob("bob-1.words")).unlink()
        async with start_party() as party:
            return await party.round_status(spec), party.share_files()

    status, files = asyncio.run(scenario())
    assert (status.state, status.blame.reason) == ("FAILED", "shares_lost")
    assert files == {}


def test_open_rounds_upload_whose_file_is_lost_can_be_sent_again(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            made = await _filled(party, spec, submission)
            next((party.config.data / "rounds").rglob("alice-0.words")).unlink()
        async with start_party() as party:
            status = await party.round_status(spec)
            assert [c.participant for c in status.complete] == ["bob"]
            assert not (await party.status(made[0])).complete
            assert (await party.submit(made[0])).complete
            return await party.seal(spec, made)

    assert asyncio.run(scenario()).state == "SEALED"


def test_what_a_crash_left_of_an_ended_round_is_deleted_at_the_restart(start_party, spec, submission):
    async def scenario():
        async with start_party() as party:
            await _filled(party, spec, submission)
            await party.end(spec, "EXPIRED")
            left = party.config.data / "rounds" / spec.digest.hex() / "1"
            left.mkdir(parents=True)
            (left / "alice-0.words").write_bytes(b"\1" * 8000)
            unknown = party.config.data / "rounds" / ("0" * 64) / "7"
            unknown.mkdir(parents=True)
            (unknown / "alice-1.seed").write_bytes(b"\1" * 16)
        async with start_party() as party:
            return party.share_files()

    assert asyncio.run(scenario()) == {}


PRIVATE = TaskSpec("private", 3, 1.0, rule="mean", privacy=Privacy(1.0, 1e-5, 8.0))


def _with_budget_for(rounds: int) -> TaskSpec:
    budget = (epsilon(PRIVATE.privacy, rounds) + epsilon(PRIVATE.privacy, rounds + 1)) / 2
    return dataclasses.replace(PRIVATE, privacy=dataclasses.replace(PRIVATE.privacy, budget_epsilon=budget))


async def _ran(party, spec, submission, number):
    await party.seal(spec, await _filled(party, spec, submission, number), number)
    await party.run(spec, number)


def test_round_over_the_privacy_budget_ends_before_anybody_uploads_also_after_a_restart(start_party, submission):
    spec = _with_budget_for(2)

    async def scenario():
        async with start_party() as party:
            await _ran(party, spec, submission, 1)
            await party.until(spec, "COMBINED")
            await party.end(spec, "RELEASED")
            party.runner.error = PartyFault("broken in the middle")  # may have been opened: it counts
            await _ran(party, spec, submission, 2)
            await party.until(spec, "FAILED", number=2)
        async with start_party() as party:
            refused = await party.open(spec, 3)
            again = await party.open(spec, 3)
            return refused, again, await party.open(dataclasses.replace(spec, name="another"))

    refused, again, another = asyncio.run(scenario())
    assert refused == again
    assert (refused.state, refused.blame.reason, refused.blame.who) == ("FAILED", "privacy_budget_spent", "party:0")
    assert "2 rounds" in refused.blame.detail
    assert another.state == "OPEN"


def test_round_that_ended_before_anything_was_opened_costs_nothing(start_party, submission):
    spec = _with_budget_for(1)

    async def scenario():
        async with start_party() as party:
            await party.open(spec, 1)
            await party.end(spec, "EXPIRED", 1)  # nobody came
            party.runner.error = RoundFailed("too_few_accepted", "cohort", "")
            await _ran(party, spec, submission, 2)
            await party.until(spec, "FAILED", number=2)
            party.runner.error = None
            await _ran(party, spec, submission, 3)
            await party.until(spec, "COMBINED", number=3)
            return await party.open(spec, 4)

    assert asyncio.run(scenario()).blame.reason == "privacy_budget_spent"


def test_rounds_opened_side_by_side_do_not_share_one_rounds_budget(start_party, submission):
    """A coordinator that opens many rounds before it runs the first one gets no more of them than one that waits."""
    spec = _with_budget_for(1)

    async def scenario():
        async with start_party() as party:
            for number in (1, 2):
                made = await _filled(party, spec, submission, number)
                await party.seal(spec, made, number)
            party.runner.go_on.clear()
            await party.run(spec, 1)
            second = await party.run(spec, 2)
            party.runner.go_on.set()
            first = await party.until(spec, "COMBINED")
            again = await party.run(spec, 1, attempt=2)  # of the round that is paid for
            return first, second, again, len(party.runner.jobs)

    first, second, again, jobs = asyncio.run(scenario())
    assert (first.state, again.state, jobs) == ("COMBINED", "COMBINED", 2)
    assert (second.state, second.blame.reason) == ("FAILED", "privacy_budget_spent")


def test_a_coordinators_word_that_a_round_failed_early_gives_no_budget_back(start_party, submission):
    spec = _with_budget_for(1)

    async def scenario():
        async with start_party() as party:
            party.runner.go_on.clear()
            await _ran(party, spec, submission, 1)
            await party.end(spec, "FAILED", 1)
            return await party.open(spec, 2)

    assert asyncio.run(scenario()).blame.reason == "privacy_budget_spent"
