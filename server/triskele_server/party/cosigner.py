"""A party cosigns the coordinator's log: one log, under one name, that only ever grows.

It remembers the last checkpoint that it cosigned, on disk before the signature leaves the house. With that the
coordinator can neither take back an entry nor show different logs to different people, unless all parties whose
cosignatures are demanded help it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from triskele.errors import ConfigurationError, Conflict, InvalidCall, PartyFault, Unavailable
from triskele.transparency.checkpoint import Checkpoint, Cosignature, cosign, origin
from triskele.transparency.merkle import check_consistency

FILE: Final = "cosigned"  # in the party's data folder: the body of the last checkpoint
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class OtherSize:
    """The coordinator's proof does not begin at what this party cosigned last: ask again with one from `size` on."""

    size: int


class Cosigner:
    """Cosigns in the name of one party. Safe for threads. `clock` gives Unix seconds."""

    def __init__(
        self, data: Path, federation: str, key: Ed25519PrivateKey, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = data / FILE
        self._origin = origin(federation)
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._last = read_cosigned(self._path)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Of the cosignatures."""
        return self._key.public_key()

    def cosign(self, body: bytes, old_size: int, proof: Sequence[bytes]) -> Cosignature | OtherSize:
        """Cosign the checkpoint in `body`, given the proof that it continues the last one; the same may be asked again.

        Raises InvalidCall for what is no checkpoint, Conflict for one that does not continue the last: another log's,
        a shorter log, or one whose earlier entries are others.
        """
        try:
            asked = Checkpoint.from_body(body)
        except PartyFault as error:
            raise InvalidCall(f"cosign: {error}") from None
        with self._lock:
            last = self._last
            if asked.origin != self._origin:
                raise Conflict(f"this party cosigns the log {self._origin}, not {asked.origin}")
            if last is not None:
                if asked.size > last.size and old_size != last.size:
                    return OtherSize(last.size)
                _check_continues(asked, last, proof)
            if asked != last:
                self._remember(asked)
            return cosign(asked, self._key, int(self._clock()))

    def _remember(self, checkpoint: Checkpoint) -> None:
        partial = self._path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                file.write(checkpoint.body())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
            descriptor = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Unavailable(f"this party cannot write down what it cosigns ({error.strerror}): try again") from error
        self._last = checkpoint


def _check_continues(asked: Checkpoint, last: Checkpoint, proof: Sequence[bytes]) -> None:
    """Raise Conflict unless the log that is `asked` for is the `last` one, or has grown from it."""
    if asked == last:  # again: the answer was lost
        return
    if asked.size < last.size:
        why = f"has {asked.size} entries, but this party cosigned {last.size} before"
    else:
        try:
            check_consistency(last.size, asked.size, proof, last.root, asked.root)
        except PartyFault as error:
            why = f"does not continue what this party cosigned: {error}"
        else:
            return
    _log.error("log_not_cosigned", size=asked.size, cosigned=last.size, why=why)
    raise Conflict(
        f"the log {why}. Its coordinator's database was put back to an earlier day, or it shows different logs to "
        "different people: see docs/runbooks.md, TriskeleLogNotCosigned"
    )


def read_cosigned(path: Path) -> Checkpoint | None:
    """The checkpoint that a party cosigned last, None before the first; raises ConfigurationError."""
    try:
        return Checkpoint.from_body(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, PartyFault) as error:
        raise ConfigurationError(
            f"{path}: is not the checkpoint that this party cosigned last ({error}). Restore the file from the latest "
            "backup; without one, put there the first three lines of the newest checkpoint that an auditor trusts"
        ) from error
