"""Right around each handler: requests that do not decode are our error, and uploads that stand still are ended."""

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


def checked_requests(limits: ServerLimits) -> Callable[[str, Any], Any]:
    """What makes a method's handler one that is given decoded requests only, in time, and whose bytes are counted."""

    def checked(method: str, handler: Any) -> Any:
        idle = limits.upload_idle_seconds if method in UPLOADS else None
        guarded = _guarded(handler.request_deserializer)
        decode, encode = metrics.sized(method, guarded, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_of_one(handler.unary_unary), decode, encode)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_of_one_streaming(handler.unary_stream), decode, encode)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(_of_many(handler.stream_unary, idle), decode, encode)
        return grpc.stream_stream_rpc_method_handler(_of_many_streaming(handler.stream_stream), decode, encode)

    return checked


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
