"""The coordinator's driver against three parties over real gRPC and TLS."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_parties import (
    PACE,
    SPEC,
    STEP_SECONDS,
    TERMS,
    WORDS,
    FakeRound,
    Federation,
    federation,
    manifest,
    without_grace,
)

from triskele.ids import ParticipantId, RoundNumber, Slot
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.rounds import Blame, Refusal, RoundId, Submission
from triskele_server.coordinator.store import Store
from triskele_server.metrics import coordinator as metrics
from triskele_server.privacy import epsilon
from triskele_server.round_state import RoundState

FIRST = RoundId(SPEC.digest, RoundNumber(1))
Scenario = Callable[[Federation], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def play(members: Path, tmp_path: Path) -> Play:
    """Plays a scenario on a fresh federation."""

    def run(scenario: Scenario) -> None:
        async def with_federation() -> None:
            async with federation(members, tmp_path) as it:
                await scenario(it)

        asyncio.run(with_federation())

    return run


def stored_words(it: Federation, number: int = 1) -> bytes:
    result = it.store.result(RoundId(SPEC.digest, RoundNumber(number)))
    return (it.data / "results" / result.file).read_bytes()


def test_rounds_run_from_open_to_released_one_after_the_other(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        for party in it.parties:
            party.refused = [types_pb2.RefusedSubmission(slot=1, participant="bob", reason="norm_too_large")]
        async with it.running(rounds=2, terms=without_grace()) as runner:
            for number in (1, 2):
                await it.take_part("alice", "bob", number=number)
                record = await it.until_state(RoundState.RELEASED, number)
                assert record.sealed == (
                    Submission(Slot(0), ParticipantId("alice"), manifest("alice")),
                    Submission(Slot(1), ParticipantId("bob"), manifest("bob")),
                )
                assert record.refused == (Refusal(Slot(1), ParticipantId("bob"), "norm_too_large"),)
                assert record.accepted == (0, 1)
                assert record.openings == ("valid[2]", "aggregate[1000]")
                assert stored_words(it, number) == WORDS
            await asyncio.wait_for(runner, 20)
        assert it.store.result(FIRST).digest == hashlib.sha256(WORDS).digest()
        assert it.store.result(FIRST).weight_total == 2
        assert it.ended_as(1) == it.ended_as(2) == ["RELEASED"] * 3
        assert it.store.unclosed(SPEC.digest) == []
        assert len(it.store.rounds(SPEC.digest)) == 2

    play(scenario)


def test_round_is_sealed_when_the_grace_after_the_quorum_is_over(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running():
            await it.take_part("alice", "bob")
            it.enrol("carol")
            it.upload("carol", 2, parties=(0, 2))
            assert (await it.until(lambda r: r.uploaded == 2)).quorum_since == it.clock.now
            it.clock.now += TERMS.grace_seconds - 0.1
            await it.polled()
            assert it.store.round(FIRST).state is RoundState.OPEN
            it.clock.now += 0.2
            record = await it.until_state(RoundState.RELEASED)
        assert [s.participant for s in record.sealed] == ["alice", "bob"]
        assert record.refused == (Refusal(Slot(2), ParticipantId("carol"), "incomplete_upload"),)

    play(scenario)


def test_parties_that_waited_for_news_once_are_not_asked_without_a_pause_ever_after(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        pace = replace(PACE, poll_seconds=0.1, slowest_poll_seconds=0.1, news_seconds=0.2)
        async with it.running(pace=pace):
            await it.polled(times=1)
            it.parties[0].waits = 0.3
            await it.polled(times=2)
            before = it.parties[0].calls.count("status")
            await asyncio.sleep(1.0)
            assert it.parties[0].calls.count("status") - before <= 11

    play(scenario)


def test_full_round_is_sealed_without_waiting(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running():
            await it.take_part("alice", "bob", "carol")
            assert len((await it.until_state(RoundState.RELEASED)).sealed) == 3

    play(scenario)


def test_deadline_seals_what_is_complete_if_it_is_enough(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=replace(TERMS, quorum=3)):
            await it.take_part("alice", "bob")
            await it.until(lambda r: r.uploaded == 2)
            it.clock.now += TERMS.deadline_seconds
            assert len((await it.until_state(RoundState.RELEASED)).sealed) == 2

    play(scenario)


def test_deadline_expires_a_round_with_too_few_and_the_next_one_opens(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(rounds=2, terms=without_grace()):
            await it.take_part("alice")
            await it.until(lambda r: r.uploaded == 1)
            it.clock.now += TERMS.deadline_seconds
            record = await it.until_state(RoundState.EXPIRED)
            assert record.blame is not None
            assert (record.blame.reason, record.blame.who) == ("not_enough_submissions", "coordinator")
            await it.take_part("alice", "bob", number=2)
            await it.until_state(RoundState.RELEASED, 2)
        assert it.ended_as(1) == ["EXPIRED"] * 3
        assert all("run" in party.calls for party in it.parties)

    play(scenario)


def test_failure_of_one_party_ends_the_round_everywhere_and_the_next_one_opens(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[1].blame = types_pb2.Blame(reason="label_mismatch", who="party:2", detail="expected mul/3")
        async with it.running(rounds=2, terms=without_grace()):
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
            assert record.blame is not None
            assert (record.blame.reason, record.blame.who) == ("label_mismatch", "party:2")
            await it.until_state(RoundState.OPEN, 2)
        assert it.ended_as() == ["FAILED"] * 3

    play(scenario)


@pytest.mark.parametrize(
    ("attribute", "value", "field"),
    [
        ("digest", b"\1" * 32, "output_digest"),
        ("weight_total", 3, "weight_total"),
        ("refused", [types_pb2.RefusedSubmission(slot=0, participant="alice", reason="norm")], "refused"),
    ],
)
def test_party_with_another_outcome_is_named_and_nothing_is_released(
    play: Play, attribute: str, value: object, field: str
) -> None:
    async def scenario(it: Federation) -> None:
        setattr(it.parties[2], attribute, value)
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("outcomes_differ", "party:2")
        assert field in record.blame.detail
        assert not any("fetch" in party.calls for party in it.parties)

    play(scenario)


def test_submission_that_differs_between_parties_is_left_out_and_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace()):
            await it.until_state(RoundState.OPEN)
            it.enrol("alice", "bob", "carol")
            it.upload("bob", 1, parties=(0, 1))
            it.upload("bob", 1, parties=(2,), what="another manifest")
            it.upload("alice", 0)
            it.upload("carol", 2)
            record = await it.until_state(RoundState.RELEASED)
        assert [s.slot for s in record.sealed] == [0, 2]
        assert Refusal(Slot(1), ParticipantId("bob"), "manifests_differ") in record.refused

    play(scenario)


def test_words_with_a_wrong_digest_are_taken_from_the_next_party(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[0].words = WORDS[:-1] + b"\xff"
        it.parties[1].words = WORDS + b"\0"
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            await it.until_state(RoundState.RELEASED)
        assert [party.calls.count("fetch") for party in it.parties] == [1, 1, 1]
        assert stored_words(it) == WORDS
        assert len(list((it.data / "results").iterdir())) == 1

    play(scenario)


def test_round_fails_if_no_party_has_the_words_that_all_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        for party in it.parties:
            party.words = WORDS[8:]
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("output_not_served", "party:0,party:1,party:2")
        assert list((it.data / "results").iterdir()) == []

    play(scenario)


def test_coordinator_restarted_in_open_goes_on_with_the_same_round(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace()):
            await it.take_part("alice")
            before = await it.until(lambda r: r.uploaded == 1)
        it.store.close()
        it.store, it.changes = Store(f"sqlite:///{it.data / 'coordinator.db'}"), RoundChanges()
        async with it.running(terms=without_grace()):
            assert it.enrol("alice", "bob") == [0, 1]
            it.upload("bob", 1)
            record = await it.until_state(RoundState.RELEASED)
        assert record.enrolled == {"alice": 0, "bob": 1}
        assert record.opened_at == before.opened_at
        assert [s.participant for s in record.sealed] == ["alice", "bob"]
        assert len(it.store.rounds(SPEC.digest)) == 1

    play(scenario)


@pytest.mark.parametrize("state", [RoundState.SEALED, RoundState.CHECKED, RoundState.FILTERED])
def test_coordinator_restarted_after_the_sealing_keeps_the_sealed_set(play: Play, state: RoundState) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[1].stuck_in = state
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            before = await it.until_state(state)
        it.upload("carol", 2)
        it.parties[1].stuck_in = None
        async with it.running(terms=without_grace()):
            after = await it.until_state(RoundState.RELEASED)
        assert after.sealed == before.sealed
        assert stored_words(it) == WORDS

    play(scenario)


def test_end_of_a_round_is_told_after_a_restart_to_the_party_that_missed_it(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace()):
            it.parties[1].stuck_in = RoundState.CHECKED
            await it.take_part("alice", "bob")
            await it.until_state(RoundState.CHECKED)
            await it.stop(2)
            it.parties[1].stuck_in, it.parties[1].blame = None, types_pb2.Blame(reason="broken", who="party:1")
            await it.until_state(RoundState.FAILED)
        assert it.ended_as()[2] == ""
        await it.start(2)
        async with it.running(terms=without_grace()) as runner:
            await asyncio.wait_for(runner, 20)
        assert it.ended_as() == ["FAILED"] * 3

    play(scenario)


def test_round_opens_when_the_last_party_is_up_and_survives_its_absence(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        await it.stop(1)
        async with it.running(terms=without_grace()):
            await it.parties[2].until_called("open")
            assert it.store.rounds(SPEC.digest) == []
            await it.start(1)
            await it.take_part("alice")
            await it.until(lambda r: r.uploaded == 1)
            await it.stop(1)
            it.enrol("bob")
            it.upload("bob", 1)
            it.clock.now += TERMS.deadline_seconds + 1  # past the deadline: what party 1 holds is not known
            await it.polled(party=2)
            assert it.store.round(FIRST).state is RoundState.OPEN
            await it.start(1)
            record = await it.until_state(RoundState.RELEASED)
        assert [s.participant for s in record.sealed] == ["alice", "bob"]

    play(scenario)


def test_party_that_stays_away_after_the_deadline_is_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running():
            await it.take_part("alice", "bob")
            await it.stop(1)
            it.clock.now += TERMS.deadline_seconds + PACE.stall_seconds
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("party_unreachable", "party:1")

    play(scenario)


def test_party_that_lost_the_round_gets_it_opened_again(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace()):
            await it.take_part("alice")
            await it.until(lambda r: r.uploaded == 1)
            it.parties[2].rounds.clear()
            await it.until(lambda r: r.uploaded == 0)
            it.upload("alice", 0, parties=(2,))
            it.enrol("bob")
            it.upload("bob", 1)
            await it.until_state(RoundState.RELEASED)

    play(scenario)


def test_party_restarted_while_it_computed_makes_another_attempt_of_all_three(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[1].stuck_in = RoundState.SEALED
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            await it.parties[1].until_called("run")
            await it.stop(1)
            it.parties[1].rounds[1].running, it.parties[1].stuck_in = False, None
            await it.polled(party=0)
            await it.start(1)
            await it.until_state(RoundState.RELEASED)
        assert [party.calls.count("run") for party in it.parties] == [2, 2, 2]
        assert {party.rounds[1].attempt for party in it.parties} == {2}

    play(scenario)


def test_attempts_are_bounded_and_the_setback_is_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace(), pace=replace(PACE, attempts=3)):
            it.parties[2].stuck_in = RoundState.CHECKED
            it.parties[2].loses_attempts = "the stream with party 0 ended"
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("attempts_exhausted", "parties")
        assert "3 attempts" in record.blame.detail
        assert "the stream with party 0 ended" in record.blame.detail
        assert it.parties[0].calls.count("run") == 3

    play(scenario)


def test_party_that_makes_no_progress_is_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[0].stuck_in = RoundState.CHECKED
        async with it.running(terms=without_grace(), pace=replace(PACE, stall_seconds=0.3)):
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("no_progress", "party:0")

    play(scenario)


def test_party_that_vanishes_while_computing_is_named(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[0].stuck_in = RoundState.CHECKED
        async with it.running(terms=without_grace(), pace=replace(PACE, stall_seconds=0.5)):
            await it.take_part("alice", "bob")
            await it.until_state(RoundState.CHECKED)
            await it.stop(0)
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("party_unreachable", "party:0")

    play(scenario)


def test_round_that_a_partys_policy_refuses_fails_and_is_used_up(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[2].policy_refuses = True
        async with it.running(rounds=2) as runner:
            await asyncio.wait_for(runner, 20)
        for record in it.store.rounds(SPEC.digest):
            assert record.state is RoundState.FAILED
            assert record.blame is not None
            assert (record.blame.reason, record.blame.who) == ("party_refused", "party:2")
            assert "policy" in record.blame.detail
        assert len(it.store.rounds(SPEC.digest)) == 2

    play(scenario)


def test_party_that_seals_on_its_own_ends_the_round(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running():
            await it.take_part("alice")
            it.parties[1].rounds[1].state = RoundState.SEALED
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("out_of_step", "party:1")

    play(scenario)


def test_answer_that_makes_no_sense_ends_the_round_and_names_the_party(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[1].weight_total = 0
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            record = await it.until_state(RoundState.FAILED)
        assert record.blame is not None
        assert (record.blame.reason, record.blame.who) == ("party_broke_protocol", "party:1")

    play(scenario)


def with_budget_for(rounds: int) -> TaskSpec:
    privacy = Privacy(1.0, 1e-5, 8.0)
    budget = (epsilon(privacy, rounds) + epsilon(privacy, rounds + 1)) / 2
    return replace(SPEC, rule="mean", privacy=replace(privacy, budget_epsilon=budget))


def test_round_over_the_privacy_budget_is_refused_before_the_parties_hear_of_it_and_ends_the_task(play: Play) -> None:
    spec = with_budget_for(1)

    async def scenario(it: Federation) -> None:
        it.spec = spec
        async with it.running(rounds=5, spec=spec, terms=without_grace()) as runner:
            await it.take_part("alice", "bob")
            await asyncio.wait_for(runner, STEP_SECONDS)
        first, second = it.store.rounds(spec.digest)
        assert (first.state, second.state) == (RoundState.RELEASED, RoundState.FAILED)
        assert second.blame == Blame("privacy_budget_spent", "coordinator", second.blame.detail)
        assert second.enrolled == {}
        assert [party.calls.count("open") for party in it.parties] == [1, 1, 1]
        spent = metrics.EPSILON_SPENT.labels("faces")._value.get()
        assert spent == pytest.approx(epsilon(spec.privacy, 1))

    play(scenario)


def test_a_partys_own_count_of_spent_rounds_ends_the_round_and_the_task(play: Play) -> None:
    """The coordinator has lost its database, or pretends to: the parties have not."""
    spec = with_budget_for(3)

    async def scenario(it: Federation) -> None:
        it.spec = spec
        it.parties[1].rounds[1] = FakeRound(RoundState.FAILED)
        it.parties[1].blame = types_pb2.Blame(reason="privacy_budget_spent", who="party:1", detail="3 rounds")
        async with it.running(rounds=5, spec=spec) as runner:
            await asyncio.wait_for(runner, STEP_SECONDS)
        (record,) = it.store.rounds(spec.digest)
        assert (record.state, record.blame.reason, record.blame.who) == (
            RoundState.FAILED,
            "privacy_budget_spent",
            "party:1",
        )

    play(scenario)
