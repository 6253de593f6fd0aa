"""What a party keeps of a released round for the next one: the previous aggregate, or an adaptive bound."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from triskele.task import TaskSpec
from triskele_server.at_rest import StoreDamaged
from triskele_server.party.release_files import read_bound, read_previous


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
    return {path.name: np.fromfile(path, "<i8") for path in (party.config.data / "previous").glob("*.words")}


def test_the_next_round_starts_from_the_released_aggregate(start_party, clipping, submission):
    """As it was released, under its mask, and with this party's keys of it."""

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
    assert between[second.previous.name].tolist() == np.arange(1000).tolist()
    read = read_previous(second.previous, clipping.digest, 1000, None)
    assert read.words.tolist() == np.arange(1000).tolist()
    assert (read.round, read.weight_total, read.coefficient_bits) == (1, 2, 0)
    assert read.keys == (b"\1" * 32, b"\2" * 32)


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


def _changed(path, content):
    path.write_bytes(content(path.read_bytes()))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".words", lambda data: data[:-8]),
        (".words", lambda data: bytes([data[0] ^ 1]) + data[1:]),
        (".json", lambda data: b"{}"),
        (".json", lambda data: data[:-1]),
        (".json", lambda data: data.replace(b'"weight_total"', b'"another_total"')),
        (".json", None),
    ],
)
def test_a_damaged_previous_aggregate_is_not_used(start_party, clipping, submission, suffix, content):
    async def scenario():
        async with start_party() as party:
            await _computed(party, clipping, submission)
            await party.end(clipping, "RELEASED")
            return party.config.data / "previous" / f"{clipping.digest.hex()}.words"

    path = asyncio.run(scenario())
    damaged = path.with_suffix(suffix)
    if content is None:
        damaged.unlink()
    else:
        _changed(damaged, content)
    with pytest.raises(StoreDamaged):
        read_previous(path, clipping.digest, 1000, None)


@pytest.fixture
def adapting() -> TaskSpec:
    options = {"bound": 0.5, "quantile": 0.5, "learning_rate": 0.2, "count_noise": 1.0}
    return TaskSpec("adapting", 1000, 1.0, rule="norm-clip", rule_options=options, max_participants=16)


def test_the_next_round_starts_from_the_released_rounds_bound_also_after_a_restart(start_party, adapting, submission):
    async def scenario():
        async with start_party() as party:
            party.runner.clip_bound = 1 << 38
            await _computed(party, adapting, submission)
            await party.end(adapting, "RELEASED")
            first = party.runner.jobs[0].clip_bound
        async with start_party() as party:
            party.runner.clip_bound = 1 << 37
            await _computed(party, adapting, submission, 2)
            await party.end(adapting, "FAILED", 2)
            party.runner.clip_bound = 1 << 36
            await _computed(party, adapting, submission, 3)
            read = [read_bound(job.clip_bound, adapting.digest) for job in party.runner.jobs]
            await party.end(adapting, "RELEASED", 3)
            return first, read, read_bound(party.runner.jobs[0].clip_bound, adapting.digest)

    first, read, last = asyncio.run(scenario())
    assert first is None
    assert read == [1 << 38, 1 << 38]
    assert last == 1 << 36


def test_a_bound_survives_a_restart_between_the_computation_and_the_release(start_party, adapting, submission):
    async def scenario():
        async with start_party() as party:
            party.runner.clip_bound = 1 << 38
            await _computed(party, adapting, submission)
        async with start_party() as party:
            await party.end(adapting, "RELEASED")
            await _computed(party, adapting, submission, 2)
            return read_bound(party.runner.jobs[0].clip_bound, adapting.digest)

    assert asyncio.run(scenario()) == 1 << 38


@pytest.mark.parametrize(
    "content",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b"274877906944", b"274877906945"),
        lambda data: data.replace(b'"round": 1', b'"round": 2'),
        lambda data: b"[]",
    ],
)
def test_a_damaged_bound_is_not_used(start_party, adapting, submission, content):
    async def scenario():
        async with start_party() as party:
            party.runner.clip_bound = 1 << 38
            await _computed(party, adapting, submission)
            await party.end(adapting, "RELEASED")
            return party.config.data / "previous" / f"{adapting.digest.hex()}.bound"

    path = asyncio.run(scenario())
    assert read_bound(path, adapting.digest) == 1 << 38
    _changed(path, content)
    with pytest.raises(StoreDamaged):
        read_bound(path, adapting.digest)
