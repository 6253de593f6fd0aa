"""The version of the messages between members: every call carries its number, and a server refuses one it cannot serve.

It changes when processes of two versions could misunderstand each other, which is rarer than releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import grpc

PROTOCOL: Final = 1
"""What this version speaks, and the only one that it serves."""

KEY: Final = "triskele-protocol"  # of the metadata: of a call, and of a refusal in return
_UNMARKED: Final = 1  # calls carry the number since protocol 1

Metadata = Iterable[tuple[str, str | bytes]] | None


def own_protocol() -> tuple[str, str]:
    """What this version adds to the metadata of every call."""
    return KEY, str(PROTOCOL)


def told_protocol(metadata: Metadata) -> str | None:
    """The number that the metadata carry, as it is written there."""
    return next((str(value) for key, value in metadata or () if key == KEY), None)


def refusal(metadata: Metadata) -> str | None:
    """Why a server of this version does not serve a call with these metadata, and whom to upgrade; None if it does."""
    told = told_protocol(metadata)
    if told is not None and not (told.isascii() and told.isdigit() and len(told) < 10):
        return f"the call's {KEY} is no number"
    theirs = _UNMARKED if told is None else int(told)
    if theirs == PROTOCOL:
        return None
    older = "this server" if theirs > PROTOCOL else "the caller"
    return f"the caller speaks protocol {theirs}, this server {PROTOCOL}: upgrade {older}"


class ProtocolInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]  # generic in the type hints only
):
    """Adds the number to every call of a blocking channel."""

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
    return _Details(**fields)._replace(metadata=(*(details.metadata or ()), own_protocol()))
