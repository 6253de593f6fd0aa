"""What the coordinator knows of a round: values without I/O, each valid by construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from triskele.errors import InvalidTask, PartyFault
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.manifest import ManifestDigest
from triskele.transparency.certificate import MAX_ENVELOPE_BYTES
from triskele_server.privacy import BUDGET_SPENT, NOTHING_OPENED
from triskele_server.round_state import RoundState, has_ended

COORDINATOR = "coordinator"
MAX_REASON = 64  # characters of a reason code that is passed on
MAX_TEXT = 500  # characters of another's text that is passed on


class RoundId(NamedTuple):
    """One round of one task."""

    task: TaskDigest
    number: RoundNumber


@dataclass(frozen=True, order=True)
class Submission:
    """A participant's upload as a party reports it, complete and checked there."""

    slot: Slot
    participant: ParticipantId
    manifest: ManifestDigest  # 32 bytes

    def __post_init__(self) -> None:
        if len(self.manifest) != 32:
            raise PartyFault(f"a manifest digest of {len(self.manifest)} bytes was reported; it has 32")


@dataclass(frozen=True, order=True)
class Refusal:
    """A submission that is not in the aggregate, with the reason code."""

    slot: Slot
    participant: ParticipantId
    reason: str


@dataclass(frozen=True)
class Blame:
    """Why a round ended without a result, and by whose doing ("coordinator", "party:1", "participant:alice")."""

    reason: str
    who: str
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", self.reason[:MAX_REASON])
        object.__setattr__(self, "who", self.who[:MAX_TEXT])
        object.__setattr__(self, "detail", self.detail[:MAX_TEXT])


@dataclass(frozen=True)
class Outcome:
    """What the MPC of a round gave, as one party reports it. Equal at all three or the round fails.

    The output is `dimension` little-endian 64-bit words; dividing them by `weight_total`, the sum of the weights, and
    by 2^coefficient_bits gives the mean.
    """

    output_digest: bytes  # SHA-256, 32 bytes
    weight_total: int
    coefficient_bits: int
    refused: tuple[Refusal, ...] = ()
    accepted: tuple[Slot, ...] = ()
    openings: tuple[str, ...] = ()
    attempt: int = 0  # which one gave it

    def __post_init__(self) -> None:
        if len(self.output_digest) != 32:
            raise PartyFault(f"an output digest of {len(self.output_digest)} bytes was reported; it has 32")
        if not 1 <= self.weight_total < 1 << 63:
            raise PartyFault(f"a total weight of {self.weight_total} was reported; it must be in 1 to 2^63 - 1")
        if not 0 <= self.coefficient_bits < 64:
            raise PartyFault(f"{self.coefficient_bits} coefficient bits were reported; there are 0 to 63")


@dataclass(frozen=True)
class Signed:
    """One party's signature of a round's certificate."""

    statement: bytes = field(repr=False)
    key_id: str
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key_id) != 64 or len(self.signature) != 64 or len(self.statement) > MAX_ENVELOPE_BYTES // 2:
            raise PartyFault("a signature, its key or what it signs is not of the right length")


@dataclass(frozen=True)
class PartyStatus:
    """One party's answer about a round."""

    state: RoundState
    complete: tuple[Submission, ...] = ()
    blame: Blame | None = None
    outcome: Outcome | None = None
    attempt: int = 0  # the latest that began there
    running: bool = False
    setback: str = ""  # why it was lost, if it was
    certificate: Signed | None = None  # once the round has ended there

    def __post_init__(self) -> None:
        if len({s.participant for s in self.complete}) != len(self.complete):
            raise PartyFault("the same participant was reported complete twice")


@dataclass(frozen=True)
class Terms:
    """When a round may be sealed. Times in seconds; `deadline` is counted from the opening."""

    quorum: int
    deadline_seconds: float
    grace_seconds: float
    min_accepted: int
    max_participants: int

    def __post_init__(self) -> None:
        if not self.min_accepted <= self.quorum <= self.max_participants:
            raise InvalidTask(
                f"quorum {self.quorum} is not in min_accepted {self.min_accepted} "
                f"to max_participants {self.max_participants}"
            )
        if not (math.isfinite(self.deadline_seconds) and self.deadline_seconds > 0):
            raise InvalidTask(f"deadline_seconds {self.deadline_seconds} is not a positive finite number")
        if not (math.isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise InvalidTask(f"grace_seconds {self.grace_seconds} is not a finite number from 0 on")


@dataclass(frozen=True)
class RoundRecord:
    """A round as the store holds it. Times are Unix seconds."""

    id: RoundId
    state: RoundState
    terms: Terms
    opened_at: float
    quorum_since: float | None = None  # since when at least `quorum` submissions are complete at all parties
    uploaded: int = 0  # submissions complete at all three parties
    closed: bool = False  # all three parties know that the round has ended and hold no shares of it
    enrolled: Mapping[ParticipantId, Slot] = field(default_factory=dict)
    sealed: tuple[Submission, ...] = ()
    refused: tuple[Refusal, ...] = ()
    accepted: tuple[Slot, ...] = ()
    openings: tuple[str, ...] = ()
    blame: Blame | None = None

    @property
    def deadline(self) -> float:
        """Unix seconds at which the round stops waiting for uploads."""
        return self.opened_at + self.terms.deadline_seconds

    @property
    def ended(self) -> bool:
        """Whether nothing can change the round any more."""
        return has_ended(self.state)

    @property
    def left_out(self) -> tuple[Refusal, ...]:
        """Who did not come into the input set: the rest of the refused the parties refused."""
        sealed = {submission.participant for submission in self.sealed}
        return tuple(refusal for refusal in self.refused if refusal.participant not in sealed)

    @property
    def may_have_opened(self) -> bool:
        """Whether something that depends on updates was opened, or may have been: the round counts as spent."""
        return bool(self.sealed) and (self.blame is None or self.blame.reason not in NOTHING_OPENED)

    @property
    def ends_task(self) -> bool:
        """Whether no further round of the task can be run: its privacy budget is spent."""
        return self.blame is not None and self.blame.reason == BUDGET_SPENT


class Admission(NamedTuple):
    """A participant's place in a round; `new` tells the first admission from a repeated one."""

    slot: Slot
    new: bool


@dataclass(frozen=True)
class StoredResult:
    """Where the words of a released round lie and what a participant needs to decode them."""

    digest: bytes
    weight_total: int
    coefficient_bits: int
    file: str  # name inside the results directory
