"""What is measured: how many participants, how long their updates, under which rule; and the updates themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from triskele.ids import ParticipantId, TaskName
from triskele.task import Decisions, RingChoice, RuleOption, TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.rules import with_ring

CLIP_NORM: Final = 1.0
WAIT_SECONDS: Final = 1800.0
_STRIDE: Final = 7919  # coordinates by which one participant's noise is turned against the next one's
_MALICIOUS: Final = 5  # one of so many sends the opposite of what it should

Row = NDArray[np.float32]


def rule_options(rule: str, participants: int) -> dict[str, RuleOption]:
    """The options of `rule`, stages joined by "+": a fifth of the participants is expected to be malicious."""
    names = set(rule.split("+"))
    options: dict[str, RuleOption] = {}
    if names & {"multi-krum", "krum", "dnc", "nnm"}:
        options["num_malicious_nodes"] = participants // _MALICIOUS
    if "multi-krum" in names:
        options["num_nodes_to_select"] = participants * 3 // 5
    return options


@dataclass(frozen=True)
class Scene:
    """One secure round and its plaintext twin.

    `ring` is what the task file would ask for; `link_delay` the seconds that a frame between parties is held back.
    """

    participants: int
    dimension: int
    rule: str
    decisions: Decisions = "public"
    ring: RingChoice = "auto"
    link_delay: float = 0.0

    @property
    def task_name(self) -> TaskName:
        """The task's name: several scenes may share a federation."""
        return TaskName(f"bench-{self.participants}-{self.dimension}")

    def task(self) -> ScheduledTask:
        """The task, of one round that is sealed as soon as everybody has uploaded; raises InvalidTask."""
        needs_root = "fltrust" in self.rule.split("+")
        spec = TaskSpec(
            self.task_name,
            self.dimension,
            CLIP_NORM,
            rule=tuple(self.rule.split("+")),
            rule_options=rule_options(self.rule, self.participants),
            root=ParticipantId(participant_name(0)) if needs_root else None,
            decisions=self.decisions,
            max_participants=max(2, self.participants),
        )
        return ScheduledTask(
            with_ring(spec, self.ring),
            Schedule(rounds=1, quorum=self.participants, deadline_seconds=WAIT_SECONDS, grace_seconds=0.0),
        )


def participant_name(index: int) -> str:
    """How `triskele provision --participants` calls participant `index`."""
    return f"p{index:02d}"


class Updates:
    """The updates of all participants, each made when it is sent, from two vectors: a direction and noise.

    An honest one is the direction plus the noise, turned by so many coordinates that no two noises coincide; one in
    five is the opposite. float32 [dimension], of norm `CLIP_NORM` but for rounding.
    """

    def __init__(self, dimension: int) -> None:
        rng = np.random.default_rng(0)
        scale = np.float32(CLIP_NORM / np.sqrt(2 * dimension))
        self._direction = rng.standard_normal(dimension, dtype=np.float32) * scale
        self._noise = rng.standard_normal(dimension, dtype=np.float32) * scale

    def row(self, index: int) -> Row:
        """The update of participant `index`; participant 0, which is the root where there is one, is honest."""
        turn = index * _STRIDE % len(self._noise)
        row = np.empty_like(self._noise)
        np.add(self._direction[turn:], self._noise[: len(row) - turn], out=row[turn:])
        np.add(self._direction[:turn], self._noise[len(row) - turn :], out=row[:turn])
        return np.negative(row, out=row) if index % _MALICIOUS == _MALICIOUS - 1 else row

    def likeness(self, aggregate: NDArray[np.floating]) -> float:
        """The cosine of an aggregate and the honest direction: near 1 in a round that went right, whatever its rule."""
        norms = float(np.linalg.norm(aggregate)) * float(np.linalg.norm(self._direction))
        return float(self._direction @ aggregate.astype(np.float32)) / norms if norms else 0.0


@dataclass(frozen=True)
class RoundTimes:
    """Unix seconds at which a participant's upload was complete and its aggregate was there, by participant."""

    started: float
    uploaded: tuple[float, ...]
    done: tuple[float, ...]
    client_cpu_seconds: float
    client_peak_megabytes: float
    likeness: float  # of the aggregate; see `Updates.likeness`

    @property
    def wall(self) -> float:
        """Seconds from the start to the last aggregate."""
        return max(self.done) - self.started

    @property
    def upload(self) -> float:
        """Seconds from the start to the end of the last upload."""
        return max(self.uploaded) - self.started
