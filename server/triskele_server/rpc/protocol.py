"""The protocol's number, put on every call of an asynchronous channel and checked on every call that is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from triskele import protocol
from triskele.call_metadata import call_metadata
from triskele.errors import IncompatibleVersion

_ANY_PROTOCOL: Final = "/triskele.v1.Info/"  # tells its protocol to whoever asks: `triskele preflight` compares


@asynccontextmanager
async def same_protocol(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """The layer that refuses a caller of another protocol, and says so in a way that the caller's errors know."""
    if not method.startswith(_ANY_PROTOCOL) and (why := protocol.refusal(context.invocation_metadata())):
        context.set_trailing_metadata((protocol.own_protocol(),))
        raise IncompatibleVersion(why)
    yield


def _marked(details: Any) -> Any:
    metadata = details.metadata or grpc.aio.Metadata()
    return details._replace(metadata=grpc.aio.Metadata(*metadata, *call_metadata()))


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(_marked(details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(_marked(details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(_marked(details), requests)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(_marked(details), requests)


def marking() -> list[Any]:
    """One interceptor for each kind of call: gRPC takes an object for one kind only."""
    return [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
