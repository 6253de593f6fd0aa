"""What happens around every RPC: errors to statuses, one log line with metrics, access, traces; outermost first.

Each layer is an async context manager around the call, so that one wrapper serves the four kinds of gRPC handlers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import structlog

from triskele.errors import REASONS, ConfigurationError, Forbidden, Reason, TriskeleError
from triskele.identity import Identity
from triskele.tracing import TRACES, RoundTrace
from triskele_server.logs import describe, forget_locals
from triskele_server.metrics import rpc as metrics
from triskele_server.rpc.access import check_access
from triskele_server.rpc.deny_list import DenyList

Context = grpc.aio.ServicerContext[Any, Any]
Layer = Callable[[str, Context], AbstractAsyncContextManager[None]]

_log = structlog.get_logger(__name__)


_caller: ContextVar[tuple[Context, Identity] | None] = ContextVar("caller", default=None)  # of the RPC under way


def caller(context: Context) -> Identity:
    """Who calls, from the one SPIFFE id in the client's certificate; raises Forbidden if there is not exactly one."""
    known = _caller.get()
    if known is None or known[0] is not context:  # gRPC makes the whole certificate anew whenever it is asked
        known = context, _identity(context)
        _caller.set(known)
    return known[1]


def _identity(context: Context) -> Identity:
    ids = list(context.auth_context().get("peer_spiffe_id", ()))
    if len(ids) != 1:
        raise Forbidden("the client's certificate carries no single SPIFFE id: use one that the federation issued")
    try:
        return Identity.parse(ids[0].decode("utf-8", "replace"))
    except ConfigurationError as error:
        raise Forbidden(f"{error}: use a certificate that the federation issued") from error


def reason_of(error: TriskeleError) -> Reason:
    """The status and label of an error: its own class's, or the nearest base's that stands in the table."""
    for kind in type(error).__mro__:
        if kind in REASONS:
            return REASONS[kind]
    return Reason(grpc.StatusCode.INTERNAL, "internal")


@asynccontextmanager
async def errors_to_statuses(method: str, context: Context) -> AsyncIterator[None]:
    """Our errors leave with their text and status; anything else is INTERNAL with a reference into the log."""
    try:
        yield
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except TriskeleError as error:
        forget_locals(error)
        await context.abort(reason_of(error).status, str(error))
    except Exception as error:  # noqa: BLE001  the last barrier: no text of an unknown exception may reach a peer
        reference = secrets.token_hex(8)
        _log.error("rpc_internal_error", method=method, reference=reference, **describe(error))
        forget_locals(error)
        await context.abort(
            grpc.StatusCode.INTERNAL, f"internal error of this server, reference {reference}: give it to its operator"
        )


_POLLED = frozenset(("/triskele.v1.PartyControl/RoundStatus",))  # many a second: an answer is not worth a line


@asynccontextmanager
async def observed(method: str, context: Context) -> AsyncIterator[None]:
    """Metrics and one log line per RPC, with the caller bound to every other line that the call writes."""
    started = time.monotonic()
    code, reason = grpc.StatusCode.OK, ""
    metrics.RPC_STARTED.labels(method).inc()
    metrics.RPC_RUNNING.labels(method).inc()
    structlog.contextvars.bind_contextvars(rpc=method)  # each RPC runs in a context of its own: nothing to unbind
    try:
        yield
        code = _status_code(context.code(), grpc.StatusCode.OK)
    except TriskeleError as error:
        code, reason = reason_of(error)
        raise
    except grpc.aio.AbortError:
        code = _status_code(context.code(), grpc.StatusCode.UNKNOWN)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except Exception:  # only counted here; the outermost layer makes it opaque
        code, reason = grpc.StatusCode.INTERNAL, "internal"
        raise
    finally:
        seconds = time.monotonic() - started
        metrics.RPC_RUNNING.labels(method).dec()
        metrics.RPC_HANDLED.labels(method, code.name).inc()
        metrics.RPC_SECONDS.labels(method).observe(seconds)
        if reason:
            metrics.REFUSALS.labels(reason).inc()
        polled = method in _POLLED and code is grpc.StatusCode.OK
        (_log.debug if polled else _log.info)("rpc", code=code.name, reason=reason, seconds=round(seconds, 6))


def access_for(federation: str, deny_list: DenyList) -> Layer:
    """The layer that lets only callers through whom the table allows this method and the deny list does not name."""

    @asynccontextmanager
    async def access(method: str, context: Context) -> AsyncIterator[None]:
        identity = caller(context)
        structlog.contextvars.bind_contextvars(caller=identity.uri)
        check_access(identity, method, federation)
        deny_list.check_pem(identity, next(iter(context.auth_context()["x509_pem_cert"])))
        yield

    return access


@asynccontextmanager
async def traced(method: str, context: Context) -> AsyncIterator[None]:
    """A span for a call that turns out to be about a round."""
    if method in _POLLED:
        yield
        return
    with TRACES.serving(method, context.invocation_metadata()):
        yield


def about(task: bytes, number: int) -> None:
    """Handlers tell which round the call is about: its log lines name it, and a trace has its place in the round's."""
    structlog.contextvars.bind_contextvars(task=task[:8].hex(), round=number)
    TRACES.about(RoundTrace(task, number))


class Layers(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the type hints only
    """Puts layers around every handler, whatever its kind, the first one outermost. A method is wrapped only once.

    `requests` is put right around the handler itself, as it changes what comes in; see `triskele_server.rpc.requests`.
    """

    def __init__(self, layers: Sequence[Layer], requests: Callable[[str, Any], Any]) -> None:
        self._layers = tuple(layers)
        self._requests = requests
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The wrapped handler; None (unknown method) stays None and becomes UNIMPLEMENTED."""
        method = str(handler_call_details.method)
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)  # Any: the type hints do not know a handler's fields
            if handler is None:
                return None
            self._wrapped[method] = self._around(method, self._requests(method, handler))
        return self._wrapped[method]

    def _around(self, method: str, handler: Any) -> Any:
        if handler.response_streaming:
            inner = handler.stream_stream or handler.unary_stream
            make = grpc.stream_stream_rpc_method_handler
            if handler.unary_stream:
                make = grpc.unary_stream_rpc_method_handler
            wrapped: Any = self._stream(inner, method)
        else:
            inner = handler.stream_unary or handler.unary_unary
            make = grpc.stream_unary_rpc_method_handler
            if handler.unary_unary:
                make = grpc.unary_unary_rpc_method_handler
            wrapped = self._single(inner, method)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(self, inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            async with AsyncExitStack() as entered:
                for layer in self._layers:
                    await entered.enter_async_context(layer(method, context))
                return await inner(request, context)

        return handle

    def _stream(
        self, inner: Callable[..., AsyncGenerator[Any, None]], method: str
    ) -> Callable[..., AsyncIterator[Any]]:
        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            async with AsyncExitStack() as entered:
                for layer in self._layers:
                    await entered.enter_async_context(layer(method, context))
                async with aclosing(inner(request, context)) as replies:
                    async for reply in replies:
                        yield reply

        return handle


def _status_code(value: Any, default: grpc.StatusCode) -> grpc.StatusCode:
    """grpc.aio keeps a status as enum, as integer, or as 0 while none was set."""
    if isinstance(value, grpc.StatusCode):
        return value
    return next((code for code in grpc.StatusCode if value and code.value[0] == value), default)
