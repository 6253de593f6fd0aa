"""gRPC servers: mutual TLS, interceptors in their order, binding, and a graceful end on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import grpc

from triskele.errors import ConfigurationError
from triskele_server.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from triskele_server.rpc.channel import message_options
from triskele_server.rpc.deadlines import within
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.interceptors import (
    Layers,
    access_for,
    caller,
    errors_to_statuses,
    observed,
    traced,
)
from triskele_server.rpc.protocol import same_protocol
from triskele_server.rpc.quotas import Quotas
from triskele_server.rpc.requests import checked_requests
from triskele_server.rpc.tls import TlsFiles

__all__ = ["STOP_SECONDS", "bind", "build_server", "caller", "interceptors", "stop_server", "until_stop_signal"]

STOP_SECONDS = 5.0  # running RPCs get this long to end after SIGTERM

# A connection keeps what it has taken to read into, and takes as much as once came without a pause, megabytes of an
# upload on a fast line, unless it is told. gRPC below 1.85 knows no such bound.
_READ_BUFFER_BYTES = 1 << 16


def build_server(tls: TlsFiles, federation: str, limits: ServerLimits = DEFAULT_SERVER_LIMITS) -> grpc.aio.Server:
    """A server whose every RPC is logged, counted, within `limits`, and allowed by the access table for `federation`.

    Add servicers, `bind`, then start. Raises ConfigurationError if a TLS file cannot be used.
    """
    tls.server_credentials()  # a file that cannot be read is told before anything listens
    return grpc.aio.server(
        interceptors=interceptors(federation, DenyList(tls.denied), limits),
        options=server_options(limits),
        maximum_concurrent_rpcs=limits.concurrent_rpcs,
    )


def server_options(limits: ServerLimits) -> list[tuple[str, int]]:
    """What gRPC itself limits. It ignores an option that it does not know: a test compares the names with its own."""
    return [
        *message_options(),
        ("grpc.so_reuseport", 0),  # a second process on the same port must fail, not share it silently
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_connection_seconds)),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.ping_seconds)),
        ("grpc.experimental.tcp_max_read_buffer_size", _READ_BUFFER_BYTES),
    ]


def interceptors(
    federation: str, deny_list: DenyList, limits: ServerLimits, clock: Callable[[], float] = time.monotonic
) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic in the type hints only
    """What stands around every RPC, outermost first; `clock` counts seconds for the quotas."""
    layers = (
        errors_to_statuses,
        observed,
        within(limits),
        Quotas(limits, clock).layer,
        same_protocol,
        access_for(federation, deny_list),
        traced,
    )
    return [Layers(layers, checked_requests(limits))]


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))


def bind(server: grpc.aio.Server, address: str, tls: TlsFiles) -> int:
    """Listen on `address` ("host:port", port 0 takes a free one) and return the port; raises ConfigurationError."""
    try:
        port = server.add_secure_port(address, tls.server_credentials())
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"cannot listen on {address}: the port is in use, the address is not this machine's, "
            f"or {tls.certificate} and {tls.key} do not belong together"
        ) from error
    if port == 0:
        raise ConfigurationError(f"cannot listen on {address}")
    return port


async def until_stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT. Call it on the main thread's event loop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def stop_server(server: grpc.aio.Server, *, seconds: float = STOP_SECONDS) -> None:
    """Take no new RPCs, let running ones end for `seconds`, then cancel them."""
    await server.stop(seconds)
