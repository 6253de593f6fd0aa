"""The append-only log of all ended rounds: one Merkle tree (RFC 9162) over the statements that the parties signed.

A leaf is the statement, without its signatures: it does not change when a third signature arrives. One log for all
tasks, in the order in which rounds were closed. What was appended once stays: the parties cosign a checkpoint only if
it continues the last one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from triskele.errors import Conflict, NotFound, PartyFault
from triskele.ids import PARTIES
from triskele.transparency import checkpoint
from triskele.transparency.checkpoint import Checkpoint
from triskele.transparency.merkle import Tree, leaf_hash
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store, StoredEntry

_AT_ONCE: Final = 16  # entries read in one transaction; each may have megabytes


@dataclass(frozen=True)
class LogProof:
    """That a round's statement is entry `index` of the log under a cosigned checkpoint, a signed note."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes


class Log:
    """The coordinator's log, in its store; the hashes of the tree are kept in memory too, 64 bytes an entry.

    For one process, as the store's claim wants it: so the checkpoints, and the entry that was asked for last, which
    all of a round's participants ask for, are read from the store only once. Appending and proving cost O(log n)
    hashes, appending a transaction.
    """

    def __init__(self, store: Store, federation: str) -> None:
        self._store = store
        self._origin = checkpoint.origin(federation)
        self._tree = Tree()
        self._checkpoints: dict[int, bytes | None] = {}  # by the cosignatures that are enough
        self._last_read: StoredEntry | None = None
        self.cosigning = asyncio.Lock()  # held while parties are asked: coordinator/cosigning.py
        self._catch_up()

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self._tree.size

    def append(self, id_: RoundId, envelope: bytes) -> int:
        """The index of the round's entry, new or not: the same statement always gives the same.

        An envelope with more signatures takes the place of one with fewer. Raises Conflict if the log has another
        statement about this round, PartyFault if this is no envelope.
        """
        statement, signatures = _opened(envelope)
        self._last_read = None
        entry = self._store.put_log_entry(id_, leaf_hash(statement), signatures, envelope)
        self._catch_up()
        if entry.leaf != leaf_hash(statement):
            raise Conflict(
                f"entry {entry.index} of the log is another statement about round {id_.number} of this task, and a log "
                "never changes: this coordinator's database was put back to an earlier day, or the parties have signed "
                "two statements"
            )
        return entry.index

    def entries(self, first: int, end: int) -> Iterator[StoredEntry]:
        """The entries from `first` to before `end`, read a few at a time."""
        for start in range(first, end, _AT_ONCE):
            yield from self._store.log_entries(start, min(start + _AT_ONCE, end))

    def entry(self, id_: RoundId) -> StoredEntry:
        """The entry of a round; raises NotFound."""
        if self._last_read is not None and self._last_read.id == id_:
            return self._last_read
        found = self._last_read = self._store.log_entry(id_)
        if found is None:
            raise NotFound(f"the log has no entry of round {id_.number} of this task: it has not ended, or not yet")
        return found

    def head(self) -> Checkpoint:
        """The log as it is now, cosigned or not; raises NotFound while it is empty."""
        return Checkpoint(self._origin, self.size, self._tree.root())

    def growth(self, old_size: int, size: int) -> list[bytes]:
        """The consistency proof between two sizes; raises NotFound."""
        return self._tree.consistency_proof(old_size, size)

    def cosigned(self, head: Checkpoint, lines: Sequence[str]) -> None:
        """Remember that so many parties have cosigned this checkpoint of ours."""
        try:
            self._store.put_checkpoint(head.size, len(lines), checkpoint.note(head, lines))
        finally:
            self._checkpoints.clear()  # also when it is not known whether it stands

    def checkpoint(self, cosignatures: int = len(PARTIES)) -> bytes | None:
        """The newest signed note with at least so many cosignatures."""
        if cosignatures not in self._checkpoints:
            self._checkpoints[cosignatures] = self._store.checkpoint(cosignatures)
        return self._checkpoints[cosignatures]

    def proof(self, index: int) -> LogProof:
        """That an entry is in the log: under the newest checkpoint of all three parties that has it, else the newest.

        Raises NotFound while no cosigned checkpoint has it.
        """
        for cosignatures in (len(PARTIES), 0):
            note = self.checkpoint(cosignatures)
            if note is not None and index < (size := checkpoint.unverified(note).size):
                return LogProof(index, tuple(self._tree.inclusion_proof(index, size)), note)
        raise NotFound(f"the parties have not cosigned the log up to entry {index} yet; try again")

    def _catch_up(self) -> None:
        """What the store has and the tree has not: of earlier days, or of an append whose answer was lost."""
        for leaf in self._store.log_leaves(self._tree.size):
            self._tree.append(leaf)


def _opened(envelope: bytes) -> tuple[bytes, int]:
    """The statement in a DSSE envelope, and how many have signed it."""
    try:
        content = json.loads(envelope)
        return base64.b64decode(content["payload"], validate=True), len(content["signatures"])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise PartyFault("what is to go into the log is no DSSE envelope") from None
