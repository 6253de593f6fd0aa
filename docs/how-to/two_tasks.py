import asyncio

import numpy as np

from triskele import Participant


async def take_part(me: Participant, task: str, dimension: int) -> None:
    async for round in me.async_rounds(task):
        update = np.full(dimension, 0.1)  # your training
        async with asyncio.timeout(300):
            submitted = await round.async_submit(update)
            aggregate = await submitted.async_result()
        print(task, round.number, aggregate.shape)


async def main() -> None:
    async with Participant.from_config("participant.toml") as me, asyncio.TaskGroup() as tasks:
        tasks.create_task(take_part(me, "faces", 40))
        tasks.create_task(take_part(me, "voices", 60))


asyncio.run(main())
