"""Ports for probes, in plain text because kubelet and Prometheus present no certificate: grpc health and /metrics.

They tell whether the process is ready and its counters, nothing about a round's content.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import start_http_server

from triskele.errors import ConfigurationError
from triskele_server.logs import describe
from triskele_server.metrics.exposition import EXPOSED

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_log = structlog.get_logger(__name__)

_PROBES_AT_ONCE = 64
_SECONDS = 10.0  # that a client of the metrics port may stand still, and a handshake of the health port take
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1 << 12),  # bytes; a health check's request is empty
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_allowed_incoming_connections", 4 * _PROBES_AT_ONCE),
    ("grpc.server_handshake_timeout_ms", round(1000 * _SECONDS)),
]
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Probes:
    """The running probe ports of a process; `health_port` and `metrics_port` are None where switched off."""

    health_port: int | None
    metrics_port: int | None
    _servicer: Any = field(repr=False)
    _server: grpc.aio.Server | None = field(repr=False)
    _http: tuple[WSGIServer, threading.Thread] | None = field(repr=False)

    async def ready(self) -> None:
        """From now on the health check answers SERVING."""
        await self._servicer.set("", _SERVING)

    async def not_ready(self) -> None:
        """From now on the health check answers NOT_SERVING; called before a graceful stop."""
        await self._servicer.set("", _NOT_SERVING)

    async def stop(self) -> None:
        """Close both ports."""
        if self._server is not None:
            await self._server.stop(None)
        if self._http is not None:
            server, thread = self._http
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join()


async def start_probes(*, host: str, health_port: int | None, metrics_port: int | None) -> Probes:
    """Open the ports: 0 takes a free one, None or a negative number switches the port off.

    Health answers NOT_SERVING until `Probes.ready`. Raises ConfigurationError if a port cannot be had.
    """
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in its type hints
    await servicer.set("", _NOT_SERVING)  # HealthServicer starts as SERVING
    server, bound_health = None, None
    if health_port is not None and health_port >= 0:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_PROBES_AT_ONCE)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        try:
            bound_health = server.add_insecure_port(f"{host}:{health_port}")
        except RuntimeError as error:
            raise ConfigurationError(f"probes.health_port: cannot listen on {host}:{health_port}") from error
        await server.start()
    http, bound_metrics = None, None
    if metrics_port is not None and metrics_port >= 0:
        try:
            http = start_http_server(metrics_port, addr=host, registry=EXPOSED)
        except OSError as error:
            if server is not None:
                await server.stop(None)
            raise ConfigurationError(
                f"probes.metrics_port: cannot listen on {host}:{metrics_port} ({error.strerror})"
            ) from error
        bound_metrics = http[0].server_port
        http[0].RequestHandlerClass = _impatient(http[0].RequestHandlerClass)
        http[0].handle_error = _not_printed  # type: ignore[assignment]  # its own prints a traceback
    return Probes(bound_health, bound_metrics, servicer, server, http)


def _impatient(handler: Any) -> Any:
    """The request handler, with a time-out: each client of the metrics port costs a thread."""
    return type(handler.__name__, (handler,), {"timeout": _SECONDS})


def _not_printed(_request: Any, _address: Any) -> None:
    """A client of the metrics port broke off: nothing to act on."""
    error = sys.exception()
    _log.debug("metrics_client_broke_off", **({} if error is None else describe(error)))
