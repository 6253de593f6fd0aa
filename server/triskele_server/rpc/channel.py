"""Client channels: mutual TLS to one named member of the federation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from triskele.identity import Identity
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele_server.metrics.rpc import sized_call
from triskele_server.rpc.protocol import marking
from triskele_server.rpc.tls import TlsFiles

KEEPALIVE_MILLISECONDS = 20_000  # a peer that vanished without a FIN is noticed within this and the next
KEEPALIVE_TIMEOUT_MILLISECONDS = 10_000


def message_options(limits: Limits = DEFAULT_LIMITS) -> list[tuple[str, int]]:
    """Channel and server options that bound a message and keep idle connections checked."""
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC inflates a message before it looks at its size
        ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def open_channel(address: str, server: Identity, tls: TlsFiles) -> grpc.aio.Channel:
    """A channel to `address` on which only `server` can answer: its certificate must carry `server.host`.

    The caller closes it. Raises ConfigurationError if a TLS file cannot be read; nothing is sent before the first call.
    Bytes of calls to a party are counted.
    """
    options = [*message_options(), ("grpc.ssl_target_name_override", server.host)]
    channel = grpc.aio.secure_channel(address, tls.channel_credentials(), options=options, interceptors=marking())
    if server.role == "party":
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            setattr(channel, kind, _counted(getattr(channel, kind), server.name))  # gRPC has no hook for a call's bytes
    return channel


def _counted(make: Callable[..., Any], party: str) -> Callable[..., Any]:
    """What the generated clients make their methods with, counting bytes."""

    def made(method: str, request_serializer: Any = bytes, response_deserializer: Any = bytes, **more: Any) -> Any:
        encode, decode = sized_call(method, party, request_serializer, response_deserializer)
        return make(method, request_serializer=encode, response_deserializer=decode, **more)

    return made
