"""The participant's side of the Coordinator service: every call typed, checked, and repeated where that is safe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from triskele.connection import Connections, RetryPolicy, typed_errors
from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import NotFound, PartyFault, Unavailable
from triskele.ids import PARTIES, RoundNumber, Slot, TaskDigest
from triskele.limits import Limits
from triskele.renewal import Renewed
from triskele.result import Aggregate, fetch_aggregate
from triskele.sharing import heavy_index
from triskele.task import TaskSpec
from triskele.transparency.logged_certificate import LoggedCertificate, fetch_certificate
from triskele.transparency.party_keys import PartyKeys
from triskele.views import RoundView, TaskView
from triskele.watch import RoundWatch
from triskele_proto.v1 import coordinator_pb2


@dataclass(frozen=True)
class Enrolment:
    """Admission to a round: the slot, and where parties 0, 1, 2 take shares."""

    slot: Slot
    party_addresses: tuple[str, ...]
    new: bool = False  # the coordinator says that it has admitted this participant just now


@dataclass(frozen=True)
class Coordinator:
    """The coordinator as one participant sees it. It is trusted for liveness only, so what it says is checked."""

    connections: Connections
    trust: Renewed[PartyKeys]
    limits: Limits
    retries: RetryPolicy

    def branch(self) -> Coordinator:
        """The same on connections of its own: closing those ends its calls and waits, and nobody else's."""
        connections = self.connections.branch()
        return replace(self, connections=connections, retries=connections.patient(self.retries))

    def tasks(self) -> list[TaskView]:
        """All tasks; raises InvalidTask if one of them could not be run safely."""
        reply = self._call("ListTasks", coordinator_pb2.ListTasksRequest())
        return [TaskView.from_proto(task) for task in reply.tasks]

    def task(self, name: str) -> TaskView:
        """The task called `name`; raises NotFound."""
        tasks = self.tasks()
        for view in tasks:
            if view.name == name:
                return view
        known = ", ".join(view.name for view in tasks) or "none"
        raise NotFound(f"the coordinator has no task {name!r}; it has: {known}")

    def rounds(self, spec: TaskSpec) -> list[RoundView]:
        """The task's rounds in order as they stand now; of a very long task the newest only."""
        reply = self._call("ListRounds", coordinator_pb2.ListRoundsRequest(task_digest=spec.digest))
        return sorted((RoundView.from_proto(view, spec.digest) for view in reply.rounds), key=lambda view: view.round)

    def round(self, task: TaskView, number: RoundNumber) -> RoundView:
        """One round as it stands now; raises NotFound."""
        if not 1 <= number <= task.current_round:
            raise NotFound(f"task {task.name!r} has no round {number} yet; the newest is {task.current_round}")
        try:
            # The first views of a watch, and not ListRounds: that leaves out the oldest rounds of a long task.
            with self.watch(task.spec, number, self.limits.rpc_seconds) as views:
                view = next((view for view in views if view.round == number), None)
        except TimeoutError as error:
            raise Unavailable(f"the coordinator does not show round {number} of task {task.name!r}") from error
        if view is None:
            raise NotFound(f"the coordinator does not know round {number} of task {task.name!r}")
        return view

    def watch(
        self, spec: TaskSpec, from_round: RoundNumber, timeout: float | None = None, *, states_only: bool = False
    ) -> RoundWatch:
        """The rounds from `from_round` on as they are, then one view per change; the caller closes it."""

        def is_finished() -> bool:
            # a task that the coordinator does not run any more is as finished as one that it calls so
            return not any(task.spec.digest == spec.digest and not task.finished for task in self.tasks())

        return RoundWatch(
            self.connections,
            spec.digest,
            from_round,
            retries=self.retries,
            is_finished=is_finished,
            timeout=timeout,
            states_only=states_only,
        )

    def wait_open(self, spec: TaskSpec, from_round: RoundNumber) -> RoundView | None:
        """The first open round from `from_round` on, waiting for it; None when the task is finished."""
        with self.watch(spec, from_round, states_only=True) as views:
            return next((view for view in views if view.state == "OPEN"), None)

    def wait_ended(self, spec: TaskSpec, number: RoundNumber, timeout: float | None) -> RoundView:
        """The view of a round once it has ended; raises TimeoutError after `timeout` seconds."""
        with self.watch(spec, number, timeout, states_only=True) as views:
            for view in views:
                if view.round == number and view.ended:
                    return view
        raise NotFound(f"task {spec.name!r} was finished without round {number}")

    def enrol(self, spec: TaskSpec, number: RoundNumber) -> Enrolment:
        """Admission to an open round; the same participant always gets the same. Raises WrongState."""
        reply = self._call("Enrol", coordinator_pb2.EnrolRequest(task_digest=spec.digest, round=number))
        return self._enrolment(reply, spec)

    def enrol_for(self, wish: EnrolmentWish, spec: TaskSpec) -> Enrolment:
        """The same for a participant whose signed wish is at hand; for forwarders."""
        request = coordinator_pb2.EnrolForRequest(
            task_digest=wish.task,
            round=wish.round,
            participant=wish.participant,
            signature=wish.signature,
            certificate=wish.certificate,
        )
        return self._enrolment(self._call("EnrolFor", request), spec)

    def _enrolment(self, reply: coordinator_pb2.EnrolReply, spec: TaskSpec) -> Enrolment:
        slot = Slot(reply.slot)
        if (
            slot >= spec.max_participants
            or reply.heavy != heavy_index(slot)
            or len(reply.party_addresses) != len(PARTIES)
        ):
            raise PartyFault(
                "the coordinator gave an enrolment with an impossible slot, heavy share or list of parties"
            )
        return Enrolment(slot, tuple(reply.party_addresses), reply.new)

    def fetch_aggregate(self, spec: TaskSpec, number: RoundNumber) -> Aggregate:
        """What a released round gave; raises as `result.fetch_aggregate`."""
        return fetch_aggregate(
            self.connections, spec, number, keys=self.trust.current(), limits=self.limits, retries=self.retries
        )

    def fetch_certificate(self, task: TaskDigest, number: RoundNumber) -> LoggedCertificate:
        """The certificate of an ended round, unchecked; raises as `logged_certificate.fetch_certificate`."""
        return fetch_certificate(self.connections, task, number, limits=self.limits, retries=self.retries)

    def _call(self, method: str, request: Any) -> Any:
        """A short call; each of them is idempotent, so it may be repeated."""

        def ask() -> Any:
            with typed_errors("coordinator"):
                return getattr(self.connections.coordinator(), method)(request, timeout=self.limits.rpc_seconds)

        return self.retries.call(ask)
