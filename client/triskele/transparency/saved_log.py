"""A log as a file: one envelope a line, in the log's order, and in the last line its cosigned checkpoint.

Whoever has the file needs nobody else to audit it, and can compare it with what another was shown, line by line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from triskele.connection import Connections, RetryPolicy, typed_errors
from triskele.errors import ConfigurationError, PartyFault
from triskele.ids import PARTIES
from triskele.limits import DEFAULT_LIMITS
from triskele.transparency.checkpoint import MAX_NOTE_BYTES
from triskele_proto.v1 import coordinator_pb2

MAX_LOG_BYTES: Final = 1 << 32  # of all envelopes of one log that we take into memory
_MAX_LINE: Final = DEFAULT_LIMITS.max_message_bytes
_FETCH_SECONDS: Final = 600.0  # of one attempt; the next goes on where it ended


@dataclass(frozen=True)
class SavedLog:
    """Everything that a coordinator shows of its log, unchecked: `audit` checks it."""

    envelopes: tuple[bytes, ...]
    checkpoint: bytes  # signed note

    def write(self, path: Path) -> None:
        """Write the file; raises ConfigurationError if that cannot be done."""
        last = json.dumps({"checkpoint": self.checkpoint.decode("utf-8", "replace")}, ensure_ascii=False)
        partial = path.with_name(f"{path.name}.part")
        try:
            with partial.open("wb") as file:
                for envelope in self.envelopes:
                    file.write(envelope.replace(b"\n", b" ") + b"\n")  # canonical ones are one line anyway
                file.write(last.encode() + b"\n")
            partial.replace(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def read(cls, path: Path) -> SavedLog:
        """Read the file; raises ConfigurationError if it cannot be read, PartyFault if it is no saved log."""
        try:
            if path.stat().st_size > MAX_LOG_BYTES:
                raise ConfigurationError(f"{path}: is over the limit of {MAX_LOG_BYTES} bytes")
            content = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
        return cls.from_bytes(content)

    @classmethod
    def from_bytes(cls, content: bytes) -> SavedLog:
        """Decode; raises PartyFault unless the last line is a checkpoint and no line is over a message's limit."""
        *envelopes, last, end = [b"", *content.split(b"\n")]
        if end or any(len(line) > _MAX_LINE for line in (*envelopes, last)):
            raise PartyFault("the saved log does not end with a whole line, or holds one that is too long")
        try:
            (name, note), *more = json.loads(last).items()
            if name != "checkpoint" or more:
                raise ValueError
            return cls(tuple(envelopes[1:]), note.encode())
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise PartyFault("the saved log does not end with its cosigned checkpoint: it was cut off") from None


def fetch_log(
    connections: Connections,
    *,
    cosignatures: int = len(PARTIES),
    retries: RetryPolicy,
    progress: Callable[[int], None] = lambda _: None,
) -> SavedLog:
    """The coordinator's whole log, under the newest checkpoint that so many parties have cosigned.

    A broken transfer goes on where it broke. `progress` hears how many entries there are. Raises NotFound while the log
    is empty, PartyFault if the coordinator's answer makes no sense.
    """
    envelopes: list[bytes] = []
    size = 0

    def attempt() -> SavedLog:
        nonlocal size
        request = coordinator_pb2.FetchLogRequest(from_index=len(envelopes), cosignatures=cosignatures)
        with typed_errors("coordinator"):
            for piece in connections.coordinator().FetchLog(request, timeout=_FETCH_SECONDS):
                if piece.WhichOneof("part") == "checkpoint":
                    return _whole(envelopes, piece)
                if piece.entry.index != len(envelopes):
                    raise PartyFault(f"the coordinator sent entry {piece.entry.index} of its log out of order")
                envelope = piece.entry.envelope
                size += len(envelope)
                if size > MAX_LOG_BYTES:
                    raise PartyFault(f"the coordinator's log is over the limit of {MAX_LOG_BYTES} bytes")
                envelopes.append(envelope)
                progress(len(envelopes))
        raise PartyFault("the coordinator sent a log without its checkpoint")

    return retries.call(attempt)


def _whole(envelopes: list[bytes], last: Any) -> SavedLog:
    note: bytes = last.checkpoint
    if len(note) > MAX_NOTE_BYTES:
        raise PartyFault(f"the coordinator sent a checkpoint of {len(note)} bytes: it has at most {MAX_NOTE_BYTES}")
    return SavedLog(tuple(envelopes), note)
