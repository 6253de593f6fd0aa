"""Participants of two tasks at once, against real processes: asyncio, threads, late join and leave."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from triskele import Participant
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

pytestmark = pytest.mark.timeout(240)

MEMBERS = 6
GRID = 4.0 / 2**20  # one unit of the encoding at clip_norm 4
SIZES = {"faces": 3000, "voices": 5000}


def task(name: str, dimension: int, *, rounds: int, quorum: int, **more: int) -> ScheduledTask:
    spec = TaskSpec(name, dimension, 4.0, rule="mean", max_participants=MEMBERS, **more)
    return ScheduledTask(spec, Schedule(rounds=rounds, quorum=quorum, deadline_seconds=200.0, grace_seconds=0.0))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    tasks = [
        *(task(name, size, rounds=2, quorum=MEMBERS) for name, size in SIZES.items()),
        task("changing", 1000, rounds=3, quorum=2),
        task("part", 500, rounds=2, quorum=2, model_dimension=2000),
    ]
    directory = tmp_path_factory.mktemp("several") / "federation"
    with LocalFederation.create(directory, participants=MEMBERS, tasks=tasks) as running:
        yield running


@pytest.fixture
def configs(federation) -> list:
    return list(federation.made.participants.values())


def rows(seed: int, dimension: int, count: int = MEMBERS) -> np.ndarray:
    """Rows on the encoding's grid, so that rounding is exact."""
    drawn = np.random.default_rng(seed).normal(1.0, 0.1, (count, dimension))
    drawn *= 2.0 / np.linalg.norm(drawn, axis=1, keepdims=True)
    return np.round(drawn / GRID) * GRID


async def take_part(me: Participant, name: str, i: int) -> dict[int, np.ndarray]:
    results = {}
    async for round_ in me.async_rounds(name):
        submitted = await round_.async_submit(rows(round_.number, SIZES[name])[i])
        results[round_.number] = await submitted.async_result()
    return results


def test_six_participants_take_part_in_two_tasks_at_once(configs) -> None:
    async def run() -> list[dict[int, np.ndarray]]:
        members = [Participant.from_config(path) for path in configs]
        try:
            async with asyncio.timeout(200):
                return await asyncio.gather(
                    *(take_part(me, name, i) for i, me in enumerate(members) for name in SIZES),
                )
        finally:
            for me in members:
                me.close()

    results = asyncio.run(run())
    assert len(results) == MEMBERS * len(SIZES)
    for place, found in enumerate(results):
        size = list(SIZES.values())[place % len(SIZES)]
        assert sorted(found) == [1, 2]
        for number, aggregate in found.items():
            np.testing.assert_allclose(aggregate, rows(number, size).mean(0), atol=1e-12)


def test_one_leaves_and_another_joins_late_and_catches_up(configs) -> None:
    sent = rows(9, 1000, 4)
    with Participant.from_config(configs[0]) as stays, Participant.from_config(configs[1]) as leaves:
        first = [next(member.rounds("changing")) for member in (stays, leaves)]
        assert [round_.number for round_ in first] == [1, 1]
        for round_, row in zip(first, sent[:2], strict=True):
            submitted = round_.submit(row)
        submitted.result(timeout=100)
    with Participant.from_config(configs[0]) as stays, Participant.from_config(configs[2]) as late:
        second = [next(member.rounds("changing")) for member in (stays, late)]
        assert [round_.number for round_ in second] == [2, 2]
        (missed,) = late.aggregates("changing")
        assert missed[0] == 1
        np.testing.assert_allclose(missed[1], sent[:2].mean(0), atol=1e-12)
        handles = [round_.submit(row) for round_, row in zip(second, sent[2:], strict=True)]
        for handle in handles:
            np.testing.assert_allclose(handle.result(timeout=100), sent[2:].mean(0), atol=1e-12)
        assert [number for number, _ in late.aggregates("changing")] == [1, 2]
        assert [number for number, _ in late.aggregates("changing", from_round=2)] == [2]


def test_a_task_of_a_part_of_the_model_moves_that_part_alone_each_round_another(configs) -> None:
    sent = rows(5, 2000, 2)
    moved = []
    with Participant.from_config(configs[0]) as one, Participant.from_config(configs[1]) as other:
        for number in (1, 2):
            rounds = [next(member.rounds("part")) for member in (one, other)]
            handles = [round_.submit(row) for round_, row in zip(rounds, sent, strict=True)]
            aggregate = handles[0].result(timeout=100)
            handles[1].result(timeout=100)
            assert [round_.number for round_ in rounds] == [number, number]
            positions = rounds[0].positions
            assert np.array_equal(np.flatnonzero(aggregate), positions)
            np.testing.assert_allclose(aggregate[positions], 4 * sent.mean(0)[positions], atol=1e-12)
            moved.append(positions)
    assert len(moved[0]) == 500
    assert (moved[0] == moved[1]).mean() < 0.5
