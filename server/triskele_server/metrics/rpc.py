"""Calls that a process serves and makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from prometheus_client import Counter, Gauge, Histogram

from triskele.errors import REASONS

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)

RPC_STARTED: Final = Counter("triskele_grpc_server_started_total", "RPCs begun", ["method"])
RPC_HANDLED: Final = Counter("triskele_grpc_server_handled_total", "RPCs ended, by gRPC status", ["method", "code"])
RPC_SECONDS: Final = Histogram(
    "triskele_grpc_server_handling_seconds", "Duration of RPCs in seconds", ["method"], buckets=_SECONDS
)
RPC_RECEIVED: Final = Counter("triskele_grpc_server_received_bytes_total", "Bytes of requests, as messages", ["method"])
RPC_SENT: Final = Counter("triskele_grpc_server_sent_bytes_total", "Bytes of replies, as messages", ["method"])
RPC_RUNNING: Final = Gauge("triskele_grpc_server_in_progress", "RPCs under way now", ["method"])
REFUSALS: Final = Counter("triskele_refusals_total", "Calls refused, by reason (triskele.errors.REASONS)", ["reason"])
CALLS_STARTED: Final = Counter(
    "triskele_grpc_client_started_total", "RPCs that this server began at a party", ["method", "party"]
)
CALLS_HANDLED: Final = Counter(
    "triskele_grpc_client_handled_total", "RPCs at a party that ended, by gRPC status", ["method", "party", "code"]
)
CALLS_SECONDS: Final = Histogram(
    "triskele_grpc_client_handling_seconds",
    "Duration of RPCs at a party in seconds",
    ["method", "party"],
    buckets=_SECONDS,
)
CALLS_SENT: Final = Counter(
    "triskele_grpc_client_sent_bytes_total", "Bytes of requests to a party, as messages", ["method", "party"]
)
CALLS_RECEIVED: Final = Counter(
    "triskele_grpc_client_received_bytes_total", "Bytes of a party's replies, as messages", ["method", "party"]
)
DENY_LIST_ENTRIES: Final = Gauge("triskele_deny_list_entries", "Members and certificates that are refused")
DENY_LIST_PROBLEMS: Final = Gauge("triskele_deny_list_problems", "Lines of the deny list that cannot be used now")

for _reason in REASONS.values():
    REFUSALS.labels(_reason.label)


def sized(
    method: str, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]
) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """A handler's deserializer and serializer that count the bytes of each message."""
    return _decoding(RPC_RECEIVED.labels(method), decode), _encoding(RPC_SENT.labels(method), encode)


def sized_call(
    method: str, party: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """A call's serializer and deserializer that count the bytes of each message."""
    sent, received = CALLS_SENT.labels(method, party), CALLS_RECEIVED.labels(method, party)
    return _encoding(sent, encode), _decoding(received, decode)


def _decoding(received: Counter, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        received.inc(len(data))
        return decode(data)

    return decoded


def _encoding(sent: Counter, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def encoded(message: Any) -> bytes:
        data = encode(message)
        sent.inc(len(data))
        return data

    return encoded


class OutgoingCall:
    """One call to a party, counted when it begins and once when it ends."""

    def __init__(self, method: str, party: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._labels = method, party
        self._clock, self._started = clock, clock()
        CALLS_STARTED.labels(*self._labels).inc()

    def ended(self, code: grpc.StatusCode) -> None:
        """The call has this status."""
        CALLS_HANDLED.labels(*self._labels, code.name).inc()
        CALLS_SECONDS.labels(*self._labels).observe(self._clock() - self._started)


@contextmanager
def outgoing(method: str, party: str) -> Iterator[None]:
    """Around a call that is awaited or read to its end; a gRPC error inside tells its status."""
    call, code = OutgoingCall(method, party), grpc.StatusCode.CANCELLED
    try:
        yield
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        code = error.code()
        raise
    finally:
        call.ended(code)
