"""The innermost interceptor: requests that do not decode are our error, and uploads that stand still are ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from triskele.errors import InvalidCall
from triskele_server.limits import ServerLimits
from triskele_server.metrics import rpc as metrics
from triskele_server.rpc.deadlines import paced
from triskele_server.rpc.methods import UPLOADS


@dataclass(frozen=True)
class _Undecodable:
    """Stands for a request that is no message: gRPC would answer UNKNOWN with the exception's text by itself."""


class RequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    """Wraps the handlers themselves, below all layers; see `triskele_server.rpc.interceptors`."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler, given decoded requests only; None (unknown method) stays None and becomes UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        idle = self._limits.upload_idle_seconds if handler_call_details.method in UPLOADS else None
        method, guarded = str(handler_call_details.method), _guarded(handler.request_deserializer)
        decode, encode = metrics.sized(method, guarded, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_of_one(handler.unary_unary), decode, encode)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_of_one_streaming(handler.unary_stream), decode, encode)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(_of_many(handler.stream_unary, idle), decode, encode)
        return grpc.stream_stream_rpc_method_handler(_of_many_streaming(handler.stream_stream), decode, encode)


def _guarded(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def guarded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable()

    return guarded


def _decoded(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise InvalidCall("the request does not decode as its message")
    return request


async def _all_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)


def _of_one(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def handle(request: Any, context: Any) -> Any:
        return await inner(_decoded(request), context)

    return handle


def _of_one_streaming(inner: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        return inner(_decoded(request), context)

    return handle


def _of_many(inner: Callable[..., Awaitable[Any]], idle: float | None) -> Callable[..., Awaitable[Any]]:
    async def handle(requests: AsyncIterator[Any], context: Any) -> Any:
        given = _all_decoded(requests) if idle is None else _all_decoded(paced(requests, idle))
        return await inner(given, context)

    return handle


def _of_many_streaming(inner: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    def handle(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return inner(_all_decoded(requests), context)

    return handle
