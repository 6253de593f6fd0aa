"""What an attempt at a round leaves for the next one, so that no round ever opens two different aggregates.

Two aggregates of one input set would differ by a small multiple of single updates: rounding inside MPC moves a secret
coefficient by one last place from attempt to attempt. So the decision, the coefficients that step 9 combines, is
written down by every party before the aggregate is opened, and becomes final once all three have it. From then on a
party computes with it or not at all. The coin of an input set, and what the parties commit to before it, are the same
in every attempt, too.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from triskele.errors import PartyFault
from triskele.ids import PARTIES
from triskele_server.at_rest import ShareVault, StoreDamaged
from triskele_server.mpc.session import Session

_COIN_BYTES = 32


@dataclass(frozen=True)
class Decision:
    """What the filter of attempt `attempt` decided. Pairs are this party's two shares of a secret word.

    valid: indices of the valid submissions. rows: of these without the root, those that take part. weights: a public
    integer or a pair of shares for each; reference: a pair for the reference row, if it takes part.
    """

    attempt: int
    valid: tuple[int, ...]
    rows: tuple[int, ...]
    public: bool
    weights: tuple[tuple[int, int], ...] = field(repr=False)  # (weight, 0) if public
    reference: tuple[int, int] | None = field(repr=False)
    weight_total: int
    fraction_bits: int
    accepted: tuple[int, ...] | None
    opened: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of what was opened on the way
    clip_count: int | None = None  # the value that was opened, under an adaptive bound

    def to_json(self) -> bytes:
        """As it is written down."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Decision:
        """The inverse of `to_json`; raises StoreDamaged for anything else."""
        try:
            content = _DECISION.validate_json(data, strict=True)
        except ValueError:  # from None: its text quotes the file
            raise _damaged("decision") from None
        if content.to_json() != data:
            raise _damaged("decision")
        return content


_DECISION = TypeAdapter(Decision)


class Checkpoints(Protocol):
    """Where a party keeps them. Every method returns once what it did would survive a power cut."""

    def commitments(self) -> bytes | None:
        """What parties 0, 1, 2 committed to before an earlier toss, 32 bytes each."""

    def keep_commitments(self, commitments: bytes) -> None:
        """Remember them."""

    def coin(self) -> bytes | None:
        """The coin that an earlier attempt tossed."""

    def keep_coin(self, coin: bytes) -> None:
        """Remember it."""

    def decision(self) -> tuple[Decision, bool] | None:
        """The decision of an earlier attempt, and whether it is final."""

    def keep_decision(self, decision: Decision) -> None:
        """Write it down, not final yet."""

    def make_final(self) -> None:
        """All three parties have it: from now on it is this decision or none."""

    def discard_decision(self) -> None:
        """Forget a decision that is not final."""


class MemoryCheckpoints:
    """For rounds that end with their process."""

    def __init__(self) -> None:
        self._commitments: bytes | None = None
        self._coin: bytes | None = None
        self._decision: Decision | None = None
        self._final = False

    def commitments(self) -> bytes | None:
        """See Checkpoints."""
        return self._commitments

    def keep_commitments(self, commitments: bytes) -> None:
        """See Checkpoints."""
        self._commitments = commitments

    def coin(self) -> bytes | None:
        """See Checkpoints."""
        return self._coin

    def keep_coin(self, coin: bytes) -> None:
        """See Checkpoints."""
        self._coin = coin

    def decision(self) -> tuple[Decision, bool] | None:
        """See Checkpoints."""
        return None if self._decision is None else (self._decision, self._final)

    def keep_decision(self, decision: Decision) -> None:
        """See Checkpoints."""
        self._decision, self._final = decision, False

    def make_final(self) -> None:
        """See Checkpoints."""
        self._final = True

    def discard_decision(self) -> None:
        """See Checkpoints."""
        self._decision = None


@dataclass(frozen=True)
class FileCheckpoints:
    """Files in the round's folder, which are deleted with its shares."""

    folder: Path
    vault: ShareVault | None = None

    def commitments(self) -> bytes | None:
        """See Checkpoints."""
        return self._digests("commitments", len(PARTIES))

    def keep_commitments(self, commitments: bytes) -> None:
        """See Checkpoints."""
        self._write("commitments", "commitments", commitments)

    def coin(self) -> bytes | None:
        """See Checkpoints."""
        return self._digests("coin", 1)

    def keep_coin(self, coin: bytes) -> None:
        """See Checkpoints."""
        self._write("coin", "coin", coin)

    def decision(self) -> tuple[Decision, bool] | None:
        """See Checkpoints."""
        for name, final in (("decision.final", True), ("decision.json", False)):
            path = self.folder / name
            if path.exists():
                return Decision.from_json(self._read("decision", path)), final
        return None

    def keep_decision(self, decision: Decision) -> None:
        """See Checkpoints."""
        self._write("decision.json", "decision", decision.to_json())

    def make_final(self) -> None:
        """See Checkpoints."""
        if not (self.folder / "decision.final").exists():
            (self.folder / "decision.json").rename(self.folder / "decision.final")
            self._sync()

    def discard_decision(self) -> None:
        """See Checkpoints."""
        (self.folder / "decision.json").unlink(missing_ok=True)
        self._sync()

    def _digests(self, name: str, count: int) -> bytes | None:
        path = self.folder / name
        if not path.exists():
            return None
        data = self._read(name, path)
        if len(data) != count * _COIN_BYTES:
            raise _damaged(name)
        return data

    def _read(self, what: str, path: Path) -> bytes:
        data = path.read_bytes()
        return data if self.vault is None else self.vault.open(self._place(what), data)

    def _place(self, what: str) -> bytes:
        return f"triskele/v1/checkpoint/{self.folder.parent.name}/{self.folder.name}/{what}".encode()

    def _write(self, name: str, what: str, content: bytes) -> None:
        data = content if self.vault is None else self.vault.seal(self._place(what), content)
        partial = self.folder / f"{name}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / name)
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damaged(what: str) -> StoreDamaged:
    return StoreDamaged(f"this party's {what} of an earlier attempt is damaged on its disk; nothing more is opened")


def same_commitments(checkpoints: Checkpoints, commitments: Sequence[bytes]) -> None:
    """Remember what the parties commit to; raises PartyFault if one of them committed to something else before.

    A party that has seen the others' parts of the coin could otherwise fail the attempt and look for a part of its own
    that gives a coin it likes. Honest parts are the same in every attempt.
    """
    earlier = checkpoints.commitments()
    if earlier is None:
        checkpoints.keep_commitments(b"".join(commitments))
        return
    for party in PARTIES:
        if not hmac.compare_digest(earlier[party * _COIN_BYTES : (party + 1) * _COIN_BYTES], commitments[party]):
            raise PartyFault(
                f"party {party} committed to another part of the coin than in an earlier attempt at the same input; "
                "the round ends, nothing is opened",
                party,
            )


def same_coin(checkpoints: Checkpoints, coin: bytes, party: int) -> None:
    """Remember the coin; raises PartyFault if an earlier attempt at the same input set tossed another."""
    earlier = checkpoints.coin()
    if earlier is None:
        checkpoints.keep_coin(coin)
    elif not hmac.compare_digest(earlier, coin):
        raise PartyFault(
            f"party {party} remembers another coin of this input set: a party has changed its part of it between "
            "attempts; the round ends, nothing is opened"
        )


def resumed(session: Session, checkpoints: Checkpoints) -> Decision | None:
    """The decision of an earlier attempt if all three parties have it, else None: then all decide anew.

    A decision that is taken up is final: what it gives is opened next.

    Raises PartyFault if a decision is final at one party and missing at another: it may have been opened.
    """
    found = checkpoints.decision()
    number, final = (0, False) if found is None else (found[0].attempt + 1, found[1])
    mine = number.to_bytes(4, "big") + bytes([final])
    theirs = session.broadcast("checkpoint/have", mine, len(mine))
    if found is not None and all(answer[:4] == mine[:4] for answer in theirs):
        checkpoints.make_final()
        return found[0]
    if any(answer[4] for answer in theirs):
        missing = [party for party, answer in enumerate(theirs) if not answer[4]]
        raise PartyFault(
            f"parties {missing} no longer have the decision of this round, which is final at another party; the round "
            "ends: its aggregate may have been opened and is not opened a second time",
            missing[0] if len(missing) == 1 else None,
        )
    checkpoints.discard_decision()
    return None


def settle(session: Session, checkpoints: Checkpoints, decision: Decision) -> None:
    """Write the decision down at all three parties, and only then make it final."""
    checkpoints.keep_decision(decision)
    session.broadcast("checkpoint/saved", decision.attempt.to_bytes(4, "big"), 4)
    checkpoints.make_final()
