"""Connections of a participant: mutual TLS, the server's name pinned to its role, and retries of what may be repeated.

Each channel is told which member of the federation must answer (`grpc.ssl_target_name_override`), so an address that
the coordinator hands out can never lead to anybody but the party it is said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import stamina

from triskele.config import ParticipantConfig
from triskele.credentials import Credentials
from triskele.errors import Unavailable, WrongState, from_rpc_error
from triskele.identity import Identity
from triskele.ids import PartyIndex
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele_proto.v1 import coordinator_pb2_grpc, party_pb2_grpc

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on when somebody cannot be reached. Times in seconds; only Unavailable is ever retried."""

    attempts: int = 8  # of one call, or of one upload without progress
    total: float = 90.0  # of one call or upload without progress
    first_wait: float = 0.2
    longest_wait: float = 10.0
    jitter: float = 1.0
    outage_attempts: int = 100  # of a wait for rounds while the coordinator is away: about a quarter of an hour

    def call(self, action: Callable[[], T]) -> T:
        """What `action` returns, repeated while it raises Unavailable; then that Unavailable."""
        for attempt in self._context(self.attempts, self.total):
            with attempt:
                return action()
        raise Unavailable("no attempt was made")  # the policy allows none

    def outlast(self, action: Callable[[], T], seconds: float | None = None) -> T:
        """As `call`, but patient enough for a server's restart.

        Bounded by attempts and by the caller's own `seconds` only: an action that waits for news may well run for
        days before it breaks, and must be repeated then.
        """
        for attempt in self._context(self.outage_attempts, seconds):
            with attempt:
                return action()
        raise Unavailable("no attempt was made")

    def _context(self, attempts: int, total: float | None) -> Any:
        # The context form and not the decorator: stamina's hooks log a decorated function's arguments.
        return stamina.retry_context(
            on=Unavailable,
            attempts=attempts,
            timeout=total,
            wait_initial=self.first_wait,
            wait_max=self.longest_wait,
            wait_jitter=self.jitter,
        )


DEFAULT_RETRIES = RetryPolicy()


@contextmanager
def typed_errors(peer: str) -> Iterator[None]:
    """Turn a failed call to `peer` (a readable name such as "party 1") into its typed error."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error


class Connections:
    """One participant's channels, opened when first needed and closed together."""

    def __init__(self, config: ParticipantConfig, credentials: Credentials, limits: Limits = DEFAULT_LIMITS) -> None:
        self._config = config
        self._limits = limits
        self._credentials = grpc.ssl_channel_credentials(
            credentials.authority, credentials.key, credentials.certificate
        )
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._closed = False

    def coordinator(self) -> Any:
        """gRPC's client object for the coordinator."""
        server = Identity(self._config.federation, "coordinator", "main")
        client: Any = coordinator_pb2_grpc.CoordinatorStub  # generated without types
        return client(self._channel(server, self._config.coordinator))

    def party(self, index: PartyIndex, address: str) -> Any:
        """The same for party `index`, expected at `address`."""
        client: Any = party_pb2_grpc.PartyStub
        return client(self._channel(Identity(self._config.federation, "party", str(index)), address))

    def close(self) -> None:
        """Close every channel; calls in flight end as Unavailable."""
        self._closed = True
        while self._channels:
            self._channels.popitem()[1].close()

    def _channel(self, server: Identity, address: str) -> grpc.Channel:
        if self._closed:
            raise WrongState("this participant is closed; open it again with Participant.from_config")
        key = (server.host, address)
        if key not in self._channels:
            self._channels[key] = grpc.secure_channel(address, self._credentials, options=self._options(server))
        return self._channels[key]

    def _options(self, server: Identity) -> list[tuple[str, str | int]]:
        return [
            ("grpc.ssl_target_name_override", server.host),
            ("grpc.max_send_message_length", self._limits.max_message_bytes),
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.keepalive_time_ms", 30_000),  # a server that vanished is noticed while a stream is open
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 200),  # grpc's own goes up to two minutes:
            ("grpc.max_reconnect_backoff_ms", 5_000),  # a restarted server would not be found again in time
        ]
