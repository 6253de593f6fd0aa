"""One round from a participant's side: submit an update, wait for what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triskele.coordinator import Coordinator
from triskele.credentials import Credentials
from triskele.errors import RoundFailed
from triskele.ids import PARTIES, ParticipantId, RoundNumber, Slot
from triskele.result import Aggregate
from triskele.structure import Structure, Update, flatten
from triskele.submission import encode_update, prepare
from triskele.task import TaskSpec
from triskele.upload import Progress, upload
from triskele.views import RoundView


@dataclass(frozen=True)
class Membership:
    """Who submits, with which key, through whom."""

    participant: ParticipantId
    credentials: Credentials
    coordinator: Coordinator


@dataclass(frozen=True)
class Round:
    """One round of a task, to which this participant may submit one update. `view` is as it stood at the start."""

    task: TaskSpec
    view: RoundView
    membership: Membership = field(repr=False)

    @property
    def number(self) -> RoundNumber:
        """The round's number, from 1."""
        return self.view.round

    def submit(
        self, update: Update, *, weight: int | None = None, clip: bool = True, progress: Progress | None = None
    ) -> SubmittedUpdate:
        """Enrol, encode, share and upload; returns when all three parties hold the submission.

        update: a float16, float32 or float64 array or tensor, a mapping of them by name (a torch state_dict), or the
        path of a .npz or .safetensors file; as many entries as the task's dimension. weight: number of examples,
        where the task is weighted. An update longer than the task's clip_norm is scaled down to it, or refused if
        `clip` is false. The caller may vanish afterwards; the round needs nothing more of it.

        Repeating the call with the same update is harmless, also in another process: it goes on with the same upload.
        Raises InvalidUpdate, Conflict if another update of this participant stands already, WrongState if the round
        takes no more uploads, Unavailable when somebody cannot be reached.
        """
        me, coordinator = self.membership, self.membership.coordinator
        key, certificate = me.credentials.signing_key, me.credentials.signing_certificate
        # (1) Everything that can be wrong with the update is found before anybody is asked for anything.
        vector, structure = flatten(update)
        structure.check_fits(self.task)
        encoded = encode_update(vector, self.task, self.number, weight=weight, clip=clip, key=key)
        # (2) Admission: the slot, and where the parties listen.
        enrolment = coordinator.enrol(self.task, self.number)
        # (3) Sharing and signing; the same bytes for the same update, so (4) may be a continuation.
        submission = prepare(encoded, slot=enrolment.slot, participant=me.participant, key=key, certificate=certificate)
        del encoded, vector  # as large as what is uploaded
        # (4) Upload to the three parties.
        upload(
            submission,
            [coordinator.connections.party(index, enrolment.party_addresses[index]) for index in PARTIES],
            limits=coordinator.limits,
            retries=coordinator.retries,
            progress=progress,
        )
        return SubmittedUpdate(self, enrolment.slot, structure)


class SubmittedUpdate:
    """An update that all three parties hold, and what becomes of it."""

    def __init__(self, round: Round, slot: Slot, structure: Structure) -> None:  # noqa: A002  the field's own word
        self.round = round
        self.slot = slot
        self._view = round.view
        self._structure = structure
        self._aggregate: Aggregate | None = None

    def __repr__(self) -> str:
        return f"SubmittedUpdate({self.round.task.name!r}, round={self.round.number}, slot={self.slot})"

    @property
    def view(self) -> RoundView:
        """The round as it was last seen; `result` brings it up to date."""
        return self._view

    @property
    def accepted(self) -> bool | None:
        """Whether this update is in the aggregate; None while undecided, and where decisions are hidden."""
        return self._view.accepted(self.slot)

    @property
    def weight_total(self) -> int | None:
        """The sum of the weights in the aggregate, None before `result` has returned."""
        return None if self._aggregate is None else self._aggregate.weight_total

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the release; the aggregate in the form of the submitted update (a path gives a dict of arrays).

        Raises RoundFailed with reason and who if the round ends without a result, TimeoutError after `timeout`
        seconds, PartyFault if the words do not have the announced digest, Unavailable when the coordinator stays away.
        """
        if self._aggregate is None:
            self._aggregate = self._await(timeout)
        return self._structure.restore(self._aggregate.mean)

    def _await(self, timeout: float | None) -> Aggregate:
        spec, coordinator = self.round.task, self.round.membership.coordinator
        if not self._view.ended:
            self._view = coordinator.wait_ended(spec, self.round.number, timeout)
        if self._view.state == "RELEASED":
            return coordinator.fetch_aggregate(spec, self.round.number)
        blame = self._view.blame
        if blame is None:
            raise RoundFailed(self._view.state.lower(), "coordinator", "no reason was given")
        raise RoundFailed(blame.reason, blame.who, blame.detail)
