"""What every call carries beside its message: the protocol's number, and its place in a trace if it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from triskele import protocol
from triskele.tracing import TRACES


def call_metadata() -> tuple[tuple[str, str], ...]:
    """For the call that is about to be made here."""
    return protocol.own_protocol(), *TRACES.metadata()


class MetadataInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
):
    """Adds it to every call of a blocking channel."""

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """As gRPC calls it."""
        return continuation(_marked(client_call_details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """The same."""
        return continuation(_marked(client_call_details), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """The same."""
        return continuation(_marked(client_call_details), request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """The same."""
        return continuation(_marked(client_call_details), request_iterator)


class _Details(NamedTuple):
    """gRPC's client call details: it reads these fields, and has no class of its own."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


def _marked(details: Any) -> _Details:
    fields: dict[str, Any] = {name: getattr(details, name, None) for name in _Details._fields}
    return _Details(**fields)._replace(metadata=(*(details.metadata or ()), *call_metadata()))
