"""One round from a participant's side: submit an update, wait for what becomes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triskele.coordinates import Positions, positions
from triskele.coordinator import Coordinator
from triskele.credentials import Credentials
from triskele.errors import InvalidUpdate, RoundFailed
from triskele.ids import PARTIES, ParticipantId, RoundNumber, Slot
from triskele.in_thread import in_event_loop, in_thread
from triskele.manifest import ManifestDigest
from triskele.renewal import Renewed
from triskele.result import Aggregate
from triskele.structure import Structure, Update, flatten
from triskele.submission import encode_update, prepare
from triskele.task import TaskSpec
from triskele.tracing import TRACES, RoundTrace
from triskele.transparency.certificate import Certificate
from triskele.upload import Progress, upload
from triskele.views import RoundView


@dataclass(frozen=True)
class Membership:
    """Who submits, with which key, through whom."""

    participant: ParticipantId
    credentials: Renewed[Credentials]
    coordinator: Coordinator
    relay: bool = True  # the heavy share goes up once, and its first holder brings it to the second


@dataclass(frozen=True)
class _Contribution:
    """What a caller submits: see `Round.submit`."""

    update: Update = field(repr=False)
    weight: int | None
    clip: bool
    local_noise: float | None


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

    @property
    def positions(self) -> Positions:
        """The entries of the flat model that travel in this round, int64, ascending: all but in a partial task."""
        return positions(self.task, self.number)

    def submit(
        self,
        update: Update,
        *,
        weight: int | None = None,
        clip: bool = True,
        progress: Progress | None = None,
        local_noise: float | None = None,
    ) -> SubmittedUpdate:
        """Enrol, encode, share and upload; returns when all three parties hold the submission.

        update: a float16, float32 or float64 array or tensor, a mapping of them by name (a torch state_dict), or the
        path of a .npz or .safetensors file; as many entries as the task's model. weight: number of examples,
        where the task is weighted. An update longer than the task's clip_norm is scaled down to it, or refused if
        `clip` is false. The caller may vanish afterwards; the round needs nothing more of it. local_noise: standard
        deviation, in clip norms, of noise that is added to every entry before anybody holds a share of it; the sum is
        clipped again (docs/privacy.md).

        Repeating the call with the same update is harmless, also in another process: it goes on with the same upload.
        Raises InvalidUpdate, Conflict if another update of this participant stands already, WrongState if the round
        takes no more uploads, Unavailable when somebody cannot be reached.
        """
        given = _Contribution(update, weight, clip, local_noise)
        return self._submit(self.membership.coordinator, given, progress)

    def submit_cover(self, *, progress: Progress | None = None) -> SubmittedUpdate:
        """Take part without an update, unnoticed: weight 0, and otherwise what `submit` sends, step by step.

        No server can tell it from a real one, and the aggregate is what it would be without it. Raises InvalidUpdate
        if the task does not allow covers, and otherwise as `submit`.
        """
        return self._submit(self.membership.coordinator, self._cover(), progress)

    async def async_submit_cover(self, *, progress: Progress | None = None) -> SubmittedUpdate:
        """As `submit_cover`, for asyncio; see `async_submit`."""
        given, heard = self._cover(), None if progress is None else in_event_loop(progress)
        return await in_thread(self.membership.coordinator, lambda branch: self._submit(branch, given, heard))

    def _cover(self) -> _Contribution:
        if not self.task.covers:
            raise InvalidUpdate(f"task {self.task.name!r} does not allow covers: its file does not say covers = true")
        return _Contribution(np.zeros(self.task.entries), 0, clip=True, local_noise=None)

    async def async_submit(
        self,
        update: Update,
        *,
        weight: int | None = None,
        clip: bool = True,
        progress: Progress | None = None,
        local_noise: float | None = None,
    ) -> SubmittedUpdate:
        """As `submit`, for asyncio: the work is done in a thread of its own, `progress` is called in the event loop.

        Cancelling it (also by `asyncio.timeout`) ends calls and waits at once, a computation after the step it is
        in, and returns when the thread has ended. What the parties hold by then they keep: submitting the same
        update again goes on from there.
        """
        given = _Contribution(update, weight, clip, local_noise)
        heard = None if progress is None else in_event_loop(progress)
        return await in_thread(self.membership.coordinator, lambda branch: self._submit(branch, given, heard))

    def aggregate(self, like: Update | None = None, *, timeout: float | None = None) -> Any:
        """What the round gave, also for a participant that took no part in it; waits for the round's end.

        float64 [entries] in the task's flat order, or in the form of `like`, whose values do not matter; in a partial
        task zero but at `positions`. Raises as `SubmittedUpdate.result`.
        """
        return self._aggregate(self.membership.coordinator, like, timeout)

    async def async_aggregate(self, like: Update | None = None) -> Any:
        """As `aggregate`, for asyncio; bound it by `asyncio.timeout`."""
        return await in_thread(self.membership.coordinator, lambda branch: self._aggregate(branch, like, None))

    def save_certificate(self, folder: str | os.PathLike[str]) -> Certificate:
        """The certificate of this round, which has ended: checked, then written to a folder, which is made.

        certificate.json and proof.json, its place in the parties' log, can be checked anywhere without a network, and
        are what a model release refers to. Raises WrongState before the round's end, PartyFault saying what does not
        hold, Unavailable, ConfigurationError if the folder cannot be written.
        """
        coordinator = self.membership.coordinator
        logged = coordinator.fetch_certificate(self.task.digest, self.number)
        certificate = logged.verified(coordinator.trust.current())
        certificate.check_is_of(coordinator.connections.federation, self.task.digest, self.number)
        logged.write(Path(folder))
        return certificate

    def _submit(self, coordinator: Coordinator, given: _Contribution, progress: Progress | None) -> SubmittedUpdate:
        me = self.membership
        with TRACES.round("submit", RoundTrace(self.task.digest, self.number), participant=me.participant):
            return self._submitted(coordinator, given, progress)

    def _submitted(self, coordinator: Coordinator, given: _Contribution, progress: Progress | None) -> SubmittedUpdate:
        me = self.membership
        credentials = me.credentials.current()
        key, certificate = credentials.signing_key, credentials.signing_certificate
        # (1) Everything that can be wrong with the update is found before anybody is asked for anything.
        vector, structure = flatten(given.update)
        structure.check_fits(self.task)
        encoded = encode_update(
            vector,
            self.task,
            self.number,
            weight=given.weight,
            clip=given.clip,
            key=key,
            local_noise=given.local_noise,
        )
        # (2) Admission: the slot, and where the parties listen.
        enrolment = coordinator.enrol(self.task, self.number)
        # (3) Sharing and signing; the same bytes for the same update, so (4) may be a continuation.
        submission = prepare(
            encoded,
            slot=enrolment.slot,
            participant=me.participant,
            key=key,
            certificate=certificate,
            in_place=True,
        )
        del encoded, vector  # as large as what is uploaded
        # (4) Upload to the three parties.
        upload(
            submission,
            [coordinator.connections.party(index, enrolment.party_addresses[index]) for index in PARTIES],
            limits=coordinator.limits,
            retries=coordinator.retries,
            progress=progress,
            relay=me.relay,
            new=enrolment.new,
        )
        return SubmittedUpdate(self, enrolment.slot, submission.digest, structure)

    def _aggregate(self, coordinator: Coordinator, like: Update | None, timeout: float | None) -> Any:
        structure = None if like is None else flatten(like)[1]
        if structure is not None:
            structure.check_fits(self.task)
        view = self.view
        if not view.ended:
            view = coordinator.wait_ended(self.task, self.number, timeout)
        aggregate = _fetched(coordinator, self.task, view)
        return aggregate.mean if structure is None else structure.restore(aggregate.mean)


class SubmittedUpdate:
    """An update that all three parties hold, and what becomes of it."""

    def __init__(
        self,
        round: Round,  # noqa: A002  the field's own word
        slot: Slot,
        manifest: ManifestDigest,
        structure: Structure,
    ) -> None:
        self.round = round
        self.slot = slot
        self._manifest = manifest
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
        """Whether this update is in the aggregate; None while undecided, and where decisions are hidden.

        By the certificate, once `result` has checked it.
        """
        if self._aggregate is not None:
            return self._aggregate.certificate.accepted(self.slot)
        return self._view.accepted(self.slot)

    @property
    def certificate(self) -> Certificate | None:
        """The round's certificate, checked; None before `result` has returned."""
        return None if self._aggregate is None else self._aggregate.certificate

    @property
    def weight_total(self) -> int | None:
        """The sum of the weights in the aggregate, None before `result` has returned."""
        return None if self._aggregate is None else self._aggregate.weight_total

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the release; the aggregate in the form of the submitted update (a path gives a dict of arrays).

        Raises RoundFailed with reason and who if the round ends without a result, TimeoutError after `timeout`
        seconds, PartyFault if the certificate does not hold, is not of these words, or names another submission than
        this one, Unavailable when the coordinator stays away.
        """
        return self._result(self.round.membership.coordinator, timeout)

    async def async_result(self) -> Any:
        """As `result`, for asyncio; bound it by `asyncio.timeout`."""
        return await in_thread(self.round.membership.coordinator, lambda branch: self._result(branch, None))

    def _result(self, coordinator: Coordinator, timeout: float | None) -> Any:
        if self._aggregate is None:
            view = self._view
            self._view = view if view.ended else coordinator.wait_ended(self.round.task, view.round, timeout)
            aggregate = _fetched(coordinator, self.round.task, self._view)
            me = self.round.membership.participant
            aggregate.certificate.check_accounts_for(self.slot, me, self._manifest)
            self._aggregate = aggregate
        return self._structure.restore(self._aggregate.mean)


def _fetched(coordinator: Coordinator, task: TaskSpec, view: RoundView) -> Aggregate:
    """What an ended round gave; raises RoundFailed if it gave nothing."""
    if view.state == "RELEASED":
        with TRACES.round("fetch", RoundTrace(task.digest, view.round)):
            return coordinator.fetch_aggregate(task, view.round)
    if view.blame is None:
        raise RoundFailed(view.state.lower(), "coordinator", "no reason was given")
    raise RoundFailed(view.blame.reason, view.blame.who, view.blame.detail)
