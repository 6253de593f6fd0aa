"""What a party keeps of a released round for a rule that starts from the previous aggregate."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from triskele.task import TaskSpec


@pytest.fixture
def clipping() -> TaskSpec:
    return TaskSpec("clipping", 1000, 1.0, rule="centered-clip", max_participants=16)


async def _computed(party, spec, submission, number: int = 1) -> None:
    await party.open(spec, number)
    made = [submission(name, slot=k, number=number, task=spec) for k, name in enumerate(("alice", "bob"))]
    for one in made:
        await party.submit(one)
    await party.seal(spec, made, number)
    await party.run(spec, number)
    await party.until(spec, "COMBINED", number=number)


def _kept(party) -> dict[str, np.ndarray]:
    return {path.name: np.fromfile(path, "<i8") for path in (party.config.data / "previous").iterdir()}


def test_the_next_round_starts_from_the_released_aggregate(start_party, clipping, submission):
    """In units of the clip norm / 2^20: the words divided by the sum of the weights, and rounded."""

    async def scenario():
        async with start_party() as party:
            await _computed(party, clipping, submission)
            before = _kept(party)
            await party.end(clipping, "RELEASED")
            between = _kept(party)
            await _computed(party, clipping, submission, 2)
            return before, between, party.runner.jobs

    before, between, (first, second) = asyncio.run(scenario())
    assert before == {}
    assert first.previous is None
    assert list(between) == [f"{clipping.digest.hex()}.words"]
    assert between[second.previous.name].tolist() == np.rint(np.arange(1000) / 2).tolist()


def test_a_round_that_is_not_released_leaves_the_earlier_aggregate(start_party, clipping, submission):
    async def scenario():
        async with start_party() as party:
            await _computed(party, clipping, submission)
            await party.end(clipping, "FAILED")
            never = _kept(party)
            await _computed(party, clipping, submission, 2)
            await party.end(clipping, "RELEASED", 2)
            released = _kept(party)
            await _computed(party, clipping, submission, 3)
            await party.end(clipping, "FAILED", 3)
            return never, released, _kept(party), party.runner.jobs

    never, released, later, jobs = asyncio.run(scenario())
    assert never == {}
    assert [job.previous is None for job in jobs] == [True, True, False]
    assert {name: words.tolist() for name, words in later.items()} == {
        name: words.tolist() for name, words in released.items()
    }


def test_it_survives_a_restart_and_belongs_to_one_task(start_party, clipping, submission):
    other = TaskSpec("clipping-too", 1000, 1.0, rule="centered-clip", max_participants=16)

    async def scenario():
        async with start_party() as party:
            await _computed(party, clipping, submission)
            await party.end(clipping, "RELEASED")
        async with start_party() as party:
            await _computed(party, other, submission)
            await _computed(party, clipping, submission, 2)
            return party.runner.jobs

    unrelated, next_round = asyncio.run(scenario())
    assert unrelated.previous is None
    assert next_round.previous.name == f"{clipping.digest.hex()}.words"


@pytest.mark.parametrize("rule", ["flame", "mean"])
def test_nothing_is_kept_for_a_rule_that_starts_anew(start_party, submission, rule):
    spec = TaskSpec("anew", 1000, 1.0, rule=rule, max_participants=16)

    async def scenario():
        async with start_party() as party:
            await _computed(party, spec, submission)
            await party.end(spec, "RELEASED")
            await _computed(party, spec, submission, 2)
            return _kept(party), party.runner.jobs

    kept, jobs = asyncio.run(scenario())
    assert kept == {}
    assert [job.previous for job in jobs] == [None, None]
