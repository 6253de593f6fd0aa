"""No call without an end: what a call, a stream or an upload may take, and how long an upload may stand still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from triskele.errors import InvalidCall, TimedOut
from triskele_server.limits import ServerLimits
from triskele_server.rpc.interceptors import Context, Layer
from triskele_server.rpc.methods import STREAMS, UPLOADS


def within(limits: ServerLimits) -> Layer:
    """The layer that ends an RPC after its kind's limit; raises TimedOut, InvalidCall for a call without a deadline.

    A deadline of the caller's that comes earlier is gRPC's own business, one that comes later is cut short.
    """

    @asynccontextmanager
    async def layer(method: str, context: Context) -> AsyncIterator[None]:
        if method in STREAMS:
            seconds = limits.stream_seconds
        elif method in UPLOADS:
            seconds = limits.upload_seconds
        elif context.time_remaining() is None:
            raise InvalidCall(f"{method} was called without a deadline: set one, of {limits.call_seconds:g} s at most")
        else:
            seconds = limits.call_seconds
        try:
            async with asyncio.timeout(seconds) as timer:
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            raise TimedOut(f"{method} took longer than {seconds:g} s: call again to go on") from None

    return layer


async def paced(requests: AsyncIterator[Any], seconds: float) -> AsyncIterator[Any]:
    """The messages of a stream; raises TimedOut if the next one does not come within `seconds`."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                message = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TimedOut(f"nothing came for {seconds:g} s: begin another stream to go on") from None
        yield message
