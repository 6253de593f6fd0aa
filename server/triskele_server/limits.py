"""Limits of a server: what one caller, one round and all callers together may take. `[limits]` of its configuration.

Each is checked before memory, disk or a thread is taken. What all processes of a federation must have alike (sizes of
messages and chunks) is in `triskele.limits`. docs/limits.md lists both; a test compares it with the code.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from triskele.identity import Role

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class ServerLimits:
    """One server's limits; each field's text says its unit and what happens beyond it."""

    concurrent_rpcs: _Count = 8192
    """RPCs at a time, of all callers; the next is refused with RESOURCE_EXHAUSTED by gRPC itself."""

    streams_per_connection: _Count = 128
    """RPCs at a time on one connection (HTTP/2 MAX_CONCURRENT_STREAMS); a client holds the next one back."""

    connections: _Count = 8192
    """Connections at a time; further ones are closed in the handshake."""

    handshake_seconds: _Seconds = 20.0
    """Seconds for the TLS handshake; then the connection is closed."""

    idle_connection_seconds: _Seconds = 900.0
    """Seconds without an RPC after which a connection is closed; a client reconnects unseen."""

    metadata_bytes: _Count = 16384
    """Bytes of one RPC's headers; more is RESOURCE_EXHAUSTED."""

    ping_seconds: _Seconds = 5.0
    """Seconds at least between two keepalive pings of a client (ours: 20 or 30 s); more end its connection."""

    call_seconds: _Seconds = 60.0
    """Seconds that a call with one answer may take, whatever its deadline; then DEADLINE_EXCEEDED. Without a deadline
    it is refused with INVALID_ARGUMENT."""

    stream_seconds: _Seconds = 86400.0
    """Seconds that a stream of answers may take (a watch, a result, frames of a round); then DEADLINE_EXCEEDED."""

    upload_seconds: _Seconds = 900.0
    """Seconds that one upload stream may take; then DEADLINE_EXCEEDED, and the upload goes on in another stream."""

    upload_idle_seconds: _Seconds = 60.0
    """Seconds between two messages of an upload stream; then DEADLINE_EXCEEDED. 512 KiB take as long at 9 KB/s."""

    calls_per_minute: _Count = 1200
    """Calls of one participant, operator or reader a minute, by a token bucket; then RESOURCE_EXHAUSTED."""

    forwarder_calls_per_minute: _Count = 12000
    """The same of one forwarder, which calls for many participants."""

    calls_at_once: _Count = 64
    """Calls of one participant, operator or reader at a time, watches included; then RESOURCE_EXHAUSTED."""

    uploads_at_once: _Count = 16
    """Upload streams of one participant, or relays of one party, at a time; then RESOURCE_EXHAUSTED."""

    forwarder_uploads_at_once: _Count = 256
    """Calls and upload streams of one forwarder at a time; then RESOURCE_EXHAUSTED."""

    round_disk_bytes: _Count = 256 << 30
    """Bytes of shares of one round on a party's disk, counted when an upload begins; then RESOURCE_EXHAUSTED."""

    free_disk_bytes: _Count = 1 << 30
    """Bytes that stay free on a party's disk beside what has been promised to uploads; then RESOURCE_EXHAUSTED."""

    def per_minute(self, role: Role) -> int | None:
        """Calls a minute of one caller in this role; None: not limited, the federation's own servers."""
        return _of_role(role, self.calls_per_minute, self.forwarder_calls_per_minute)

    def at_once(self, role: Role, *, upload: bool) -> int | None:
        """Calls, or upload streams, of one caller in this role at a time; None: not limited."""
        if role == "party" and upload:
            return self.uploads_at_once
        return _of_role(role, self.uploads_at_once if upload else self.calls_at_once, self.forwarder_uploads_at_once)


def _of_role(role: Role, member: int, forwarder: int) -> int | None:
    if role in ("coordinator", "party"):
        return None
    return forwarder if role == "forwarder" else member


DEFAULT_SERVER_LIMITS: Final = ServerLimits()
