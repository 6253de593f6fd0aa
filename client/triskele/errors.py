"""Every error of Triskele, by blame: what the caller can do about it decides the class.

    TriskeleError
    ├── ParticipantFault      the caller's data or configuration; mend it and send again
    │   ├── InvalidUpdate     NaN, Inf, wrong shape, wrong dtype, norm above the clip where clipping is forbidden
    │   ├── InvalidTask       a task that cannot be run safely, with the numbers
    │   ├── InvalidUpload     a manifest, share or chunk that fails a check
    │   ├── Conflict          another upload of this participant already stands
    │   ├── WrongState        the round is not in the state that this call needs
    │   ├── NotFound          no such task or round here
    │   ├── InvalidCall       a request that is no message, or a call without a deadline
    │   ├── Forbidden         the certificate's role may not do this
    │   └── ConfigurationError a file or setting that cannot be used
    ├── PartyFault            a party broke the protocol, with the party's index where it is known
    │   └── PeerLost          a party fell silent in the middle of a computation: this attempt is lost, not the round
    ├── IncompatibleVersion   two members run versions that do not understand each other: the text says which to upgrade
    ├── RoundFailed           the round ended without a result: reason and who
    ├── ModelRefused          a released model, or what its repository says of it, fails a check: it is not to be used
    └── Unavailable           retry: somebody cannot be reached just now
        ├── Busy              retry later: a limit of the server is reached
        └── TimedOut          retry: the server gave the call no more time

`REASONS` is the one table from class to gRPC status and metric label, of those that travel: a ModelRefused does not.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from triskele.protocol import told_protocol


class TriskeleError(Exception):
    """Base of all errors that Triskele raises on purpose. Texts never contain shares, seeds, keys or updates."""


class ParticipantFault(TriskeleError):
    """The caller's data or configuration is at fault."""


class InvalidUpdate(ParticipantFault):
    """The model update cannot be encoded."""


class InvalidTask(ParticipantFault):
    """The task cannot be run safely."""


class InvalidUpload(ParticipantFault):
    """A manifest, share or chunk fails a check."""


class Conflict(ParticipantFault):
    """Another upload of the same participant to the same round already stands."""


class WrongState(ParticipantFault):
    """The round is not in the state that this call needs."""


class NotFound(ParticipantFault):
    """No such task or round here."""


class InvalidCall(ParticipantFault):
    """A request that is no message, or a call without a deadline."""


class Forbidden(ParticipantFault):
    """The role in the caller's certificate may not do this."""


class ConfigurationError(ParticipantFault):
    """A file or setting cannot be used."""


class PartyFault(TriskeleError):
    """A party broke the protocol; `party` is its index where it is known."""

    def __init__(self, message: str, party: int | None = None) -> None:
        super().__init__(message)
        self.party = party


class PeerLost(PartyFault):
    """A party cannot be heard in the middle of a computation; another attempt may succeed."""


class IncompatibleVersion(TriskeleError):
    """Two members run versions of Triskele that do not understand each other; the text says which to upgrade."""


class RoundFailed(TriskeleError):
    """The round ended without a result."""

    def __init__(self, reason: str, who: str, detail: str = "") -> None:
        super().__init__(f"round ended: {reason} ({who})" + (f": {detail}" if detail else ""))
        self.reason = reason
        self.who = who
        self.detail = detail


class ModelRefused(TriskeleError):
    """A released model, or what its repository says of it, fails a check; `reason` says which. It is not to be used.

    rolled_back: older than what was seen before. expired: nobody has vouched for it recently; newer ones may be kept
    back. unsigned: not signed by enough of the trusted keys. altered: other bytes than were signed. too_large: more
    than was announced. malformed: cannot be read. broken_chain: versions do not follow from each other. rewritten:
    versions that were accepted before are told differently. uncertified: a round without a valid certificate in the
    parties' log. unknown_model: a file that is no released version.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unavailable(TriskeleError):
    """Somebody cannot be reached just now; the call may be repeated."""


class Busy(Unavailable):
    """A limit of the server is reached, for this caller or for all; the call may be repeated after a while."""


class TimedOut(Unavailable):
    """The server gave the call no more time; it may be repeated."""


class Reason(NamedTuple):
    """How an error class is shown on the wire and in metrics."""

    status: grpc.StatusCode
    label: str


REASONS: dict[type[TriskeleError], Reason] = {
    InvalidUpdate: Reason(grpc.StatusCode.INVALID_ARGUMENT, "invalid_update"),
    InvalidTask: Reason(grpc.StatusCode.INVALID_ARGUMENT, "invalid_task"),
    InvalidUpload: Reason(grpc.StatusCode.INVALID_ARGUMENT, "invalid_upload"),
    Conflict: Reason(grpc.StatusCode.ALREADY_EXISTS, "conflict"),
    WrongState: Reason(grpc.StatusCode.FAILED_PRECONDITION, "wrong_state"),
    NotFound: Reason(grpc.StatusCode.NOT_FOUND, "not_found"),
    InvalidCall: Reason(grpc.StatusCode.INVALID_ARGUMENT, "invalid_call"),
    Forbidden: Reason(grpc.StatusCode.PERMISSION_DENIED, "forbidden"),
    ConfigurationError: Reason(grpc.StatusCode.FAILED_PRECONDITION, "configuration"),
    PartyFault: Reason(grpc.StatusCode.ABORTED, "party_fault"),
    PeerLost: Reason(grpc.StatusCode.ABORTED, "peer_lost"),
    IncompatibleVersion: Reason(grpc.StatusCode.FAILED_PRECONDITION, "incompatible_version"),
    RoundFailed: Reason(grpc.StatusCode.ABORTED, "round_failed"),
    Unavailable: Reason(grpc.StatusCode.UNAVAILABLE, "unavailable"),
    Busy: Reason(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"),
    TimedOut: Reason(grpc.StatusCode.DEADLINE_EXCEEDED, "timed_out"),
}

_BY_STATUS: dict[grpc.StatusCode, type[TriskeleError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidUpload,
    grpc.StatusCode.OUT_OF_RANGE: InvalidUpload,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.UNAUTHENTICATED: Forbidden,
}


def from_rpc_error(error: grpc.RpcError, peer: str) -> TriskeleError:
    """The typed error for a failed call to `peer` (a readable name such as "party 1")."""
    status, details = error.code(), error.details() or ""
    kind = _BY_STATUS.get(status)
    if kind is Busy and "larger than max" in details:  # gRPC's own refusal of a message: it would be refused again
        kind = InvalidUpload
    if kind is WrongState and told_protocol(getattr(error, "trailing_metadata", tuple)()):
        kind = IncompatibleVersion
    if kind is not None:
        return kind(f"{peer}: {details}")
    return Unavailable(f"{peer} answered {status.name}: {details}")
