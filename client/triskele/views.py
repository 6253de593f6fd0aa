"""What the coordinator shows of tasks and rounds, as values; the messages themselves stop here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from triskele.errors import InvalidTask, PartyFault
from triskele.ids import RoundNumber, TaskDigest
from triskele.task import TaskSpec
from triskele_proto.v1 import coordinator_pb2

ENDED: Final = frozenset({"RELEASED", "FAILED", "EXPIRED"})
STATES: Final = frozenset({"OPEN", "SEALED", "CHECKED", "FILTERED", "COMBINED"}) | ENDED


@dataclass(frozen=True)
class TaskView:
    """A task and how far it has come; `spec.digest` is the SHA-256 of the canonical bytes that the coordinator sent."""

    spec: TaskSpec
    rounds: int
    current_round: int
    finished: bool

    @property
    def name(self) -> str:
        """The task's name."""
        return self.spec.name

    @classmethod
    def from_proto(cls, message: coordinator_pb2.TaskView) -> TaskView:
        """Decode and check; raises InvalidTask for a task that cannot be run safely, or under another name."""
        spec = TaskSpec.from_canonical(message.task)
        if spec.name != message.name:
            raise InvalidTask(f"the coordinator shows task {spec.name!r} under the name {message.name[:80]!r}")
        return cls(spec, message.rounds, message.current_round, message.finished)


@dataclass(frozen=True)
class Blame:
    """Why a round ended without a result, and by whose doing ("coordinator", "party:1", "participant:alice")."""

    reason: str
    who: str
    detail: str


@dataclass(frozen=True)
class Refusal:
    """A submission that is not in the aggregate, and the reason code."""

    slot: int
    participant: str
    reason: str


@dataclass(frozen=True)
class RoundView:
    """One round as the coordinator shows it.

    `uploaded` counts submissions complete at all three parties; `deadline` is in Unix seconds; `accepted_slots` is
    empty unless decisions are public; `participants` lists the sealed set by slot.
    """

    task: TaskDigest = field(repr=False)
    round: RoundNumber
    state: str
    enrolled: int = 0
    uploaded: int = 0
    quorum: int = 0
    deadline: float = 0.0
    blame: Blame | None = None
    refused: tuple[Refusal, ...] = ()
    accepted_slots: tuple[int, ...] = ()
    decisions_public: bool = False
    participants: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise PartyFault(
                f"the coordinator shows an unknown state {self.state[:40]!r}; is it newer than this client?"
            )
        if self.round < 1 or not math.isfinite(self.deadline):
            raise PartyFault("the coordinator shows a round with an impossible number or deadline")

    @property
    def ended(self) -> bool:
        """Whether nothing can change the round any more."""
        return self.state in ENDED

    def accepted(self, slot: int) -> bool | None:
        """Whether the submission in `slot` is in the aggregate; None while undecided, and where it stays hidden."""
        if any(refusal.slot == slot for refusal in self.refused):
            return False
        if not self.decisions_public or self.state != "RELEASED":
            return None
        return slot in self.accepted_slots

    def to_json(self) -> dict[str, Any]:
        """Plain values for one JSON line."""
        return {**asdict(self), "task": self.task.hex()}

    @classmethod
    def from_proto(cls, message: coordinator_pb2.RoundView, task: TaskDigest) -> RoundView:
        """Decode and check; raises PartyFault if the coordinator shows a round of another task."""
        if message.task_digest != task:
            raise PartyFault("the coordinator shows a round of another task")
        blame = message.blame
        return cls(
            task,
            RoundNumber(message.round),
            message.state,
            message.enrolled,
            message.uploaded,
            message.quorum,
            message.deadline,
            Blame(blame.reason, blame.who, blame.detail) if message.HasField("blame") else None,
            tuple(Refusal(refusal.slot, refusal.participant, refusal.reason) for refusal in message.refused),
            tuple(message.accepted_slots),
            message.decisions_public,
            tuple(message.participants),
            tuple(message.openings),
        )
