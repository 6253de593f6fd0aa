"""Connections of a participant: mutual TLS, the server's name pinned to its role, and retries of what may be repeated.

Each channel is told which member of the federation must answer (`grpc.ssl_target_name_override`), so an address that
the coordinator hands out can never lead to anybody but the party it is said to be.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc
import grpc.experimental
from tenacity import Retrying, retry_if_exception_type, wait_exponential_jitter

from triskele.call_metadata import MetadataInterceptor
from triskele.config import MemberConfig
from triskele.errors import Unavailable, WrongState, from_rpc_error
from triskele.identity import Identity
from triskele.ids import PartyIndex
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele_proto.v1 import coordinator_pb2_grpc, party_pb2_grpc

T = TypeVar("T")

_CLOSED = "this participant is closed; open it again with Participant.from_config"


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on when somebody cannot be reached. Times in seconds; only Unavailable is ever retried."""

    attempts: int = 8  # of one call, or of one upload without progress
    total: float = 90.0  # of one call or upload without progress
    first_wait: float = 0.2
    longest_wait: float = 10.0
    jitter: float = 1.0
    outage_attempts: int = 100  # of a wait for rounds while the coordinator is away: about a quarter of an hour
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)  # between two attempts
    reconnecting: Callable[[], AbstractContextManager[None]] = field(  # what the sleep after a failure happens in
        default=nullcontext, repr=False, compare=False
    )

    def call(self, action: Callable[[], T]) -> T:
        """What `action` returns, repeated while it raises Unavailable; then that Unavailable."""
        return self._repeated(action, self.attempts, self.total)

    def outlast(self, action: Callable[[], T], seconds: float | None = None) -> T:
        """As `call`, but patient enough for a server's restart.

        Bounded by attempts and by the caller's own `seconds` only: an action that waits for news may well run for
        days before it breaks, and must be repeated then.
        """
        return self._repeated(action, self.outage_attempts, seconds)

    def _repeated(self, action: Callable[[], T], attempts: int, seconds: float | None) -> T:
        """Exponential back-off with jitter; the last wait is cut short so that one attempt falls on the limit."""
        give_up_at = math.inf if seconds is None else time.monotonic() + seconds
        backoff = wait_exponential_jitter(multiplier=self.first_wait, max=self.longest_wait, jitter=self.jitter)
        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable),
            stop=lambda state: state.attempt_number >= attempts or time.monotonic() >= give_up_at,
            wait=lambda state: max(0.0, min(backoff(state), give_up_at - time.monotonic())),
            sleep=self._pause,
            reraise=True,
        )
        return retrying(action)

    def _pause(self, seconds: float) -> None:
        with self.reconnecting():
            self.sleep(seconds)


DEFAULT_RETRIES = RetryPolicy()


@contextmanager
def typed_errors(peer: str) -> Iterator[None]:
    """Turn a failed call to `peer` (a readable name such as "party 1") into its typed error."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error
    except ValueError as error:  # grpc's answer to a call on a channel that another thread has closed
        if "closed" not in str(error).lower():
            raise
        raise WrongState(_CLOSED) from error


class Connections:
    """One participant's channels, opened when first needed and closed together. Safe to use from several threads.

    credentials: asked before every call; when it gives another object, as after a renewal, channels are opened anew.
    """

    def __init__(
        self,
        config: MemberConfig,
        credentials: Callable[[], grpc.ChannelCredentials],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._config = config
        self._limits = limits
        self._credentials = credentials
        self._used: grpc.ChannelCredentials | None = None  # by the channels
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._replaced: list[grpc.Channel] = []  # calls of other threads may be under way on them
        self._branches: weakref.WeakSet[Connections] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def federation(self) -> str:
        """The name of the federation."""
        return self._config.federation

    def branch(self) -> Connections:
        """Connections that can be closed alone, and are closed with these."""
        branch = Connections(self._config, self._credentials, self._limits)
        with self._lock:
            self._branches.add(branch)
            if self._closed.is_set():
                raise WrongState(_CLOSED)
        return branch

    def sleep(self, seconds: float) -> None:
        """Wait; raises WrongState as soon as the connections are closed."""
        if self._closed.wait(seconds):
            raise WrongState(_CLOSED)

    @contextmanager
    def reconnecting(self) -> Iterator[None]:
        """Inside the block, connections that were lost are made anew.

        gRPC's blocking calls do the input and output of a process themselves, and a call on a lost connection fails at
        once. Where everybody only pauses between such calls, no handshake goes on: gRPC itself looks every five
        seconds, and then gives the handshake up that has taken too long. Who listens to a channel's state has a
        thread of gRPC's at work on it.
        """
        with self._lock:
            channels = list(self._channels.values())
            for channel in channels:
                channel.subscribe(_not_needed)
        try:
            yield
        finally:
            for channel in channels:
                channel.unsubscribe(_not_needed)

    def patient(self, retries: RetryPolicy) -> RetryPolicy:
        """The same policy, with pauses that end when these are closed, and in which lost connections come back."""
        return replace(retries, sleep=self.sleep, reconnecting=self.reconnecting)

    def coordinator(self) -> Any:
        """gRPC's client object for the coordinator."""
        server = Identity(self._config.federation, "coordinator", "main")
        client: Any = coordinator_pb2_grpc.CoordinatorStub  # generated without types
        return client(_Unregistered(self._channel(server, self._config.coordinator)))

    def party(self, index: PartyIndex, address: str) -> Any:
        """The same for party `index`, expected at `address`."""
        client: Any = party_pb2_grpc.PartyStub
        return client(_Unregistered(self._channel(Identity(self._config.federation, "party", str(index)), address)))

    def close(self) -> None:
        """Close every channel and branch; calls and waits that are under way in other threads end with an error."""
        with self._lock:
            self._closed.set()
            channels, branches = [*self._replaced, *self._channels.values()], list(self._branches)
            self._replaced.clear()
            self._channels.clear()
        for branch in branches:
            branch.close()
        for channel in channels:
            channel.close()

    def _channel(self, server: Identity, address: str) -> grpc.Channel:
        key = (server.host, address)
        with self._lock:
            if self._closed.is_set():
                raise WrongState(_CLOSED)
            credentials = self._credentials()
            if credentials is not self._used:
                self._replaced += self._channels.values()
                self._channels.clear()
                self._used = credentials
            if key not in self._channels:
                channel = grpc.secure_channel(address, credentials, options=channel_options(server, self._limits))
                self._channels[key] = grpc.intercept_channel(channel, MetadataInterceptor())
            return self._channels[key]


class _Unregistered:
    """A channel as generated code uses it, whose methods are not registered with gRPC's core beforehand.

    With interceptors gRPC registers a method at every call, by what it calls "not thread-safe": where another thread
    closes the channel meanwhile (a cancelled `async_submit`, `Participant.close`), the process may end by a
    segmentation fault. A call that is not registered finds a closed channel closed.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        """`unary_unary`, `unary_stream`, `stream_unary`."""
        make = getattr(self._channel, kind)

        def unregistered(method: str, *, _registered_method: bool = False, **serializers: Any) -> Any:
            return make(method, **serializers)

        return unregistered


def _not_needed(_: grpc.ChannelConnectivity) -> None:
    """Nobody asks for a channel's state; see `Connections.reconnecting`."""


def channel_options(server: Identity, limits: Limits) -> list[tuple[str, str | int]]:
    """The options of a participant's channel, on which only `server` can answer."""
    return [
        ("grpc.ssl_target_name_override", server.host),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC inflates before it looks at the size
        ("grpc.keepalive_time_ms", 30_000),  # a server that vanished is noticed while a stream is open
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),  # grpc's own goes up to two minutes:
        ("grpc.max_reconnect_backoff_ms", 5_000),  # a restarted server would not be found again in time
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),  # who reads a stream waits for it itself,
        # instead of looking ten times a second at what another thread of gRPC's has read
    ]
