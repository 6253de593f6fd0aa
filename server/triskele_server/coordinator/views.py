"""What participants and operators are shown of a round and of a result."""

from __future__ import annotations

from triskele.task import TaskSpec
from triskele_proto.v1 import coordinator_pb2, types_pb2
from triskele_server.coordinator.rounds import RoundRecord


def round_view(record: RoundRecord, spec: TaskSpec) -> coordinator_pb2.RoundView:
    """The public view. Who was accepted appears only if the task's decisions are public."""
    decisions_public = spec.decisions == "public"
    return coordinator_pb2.RoundView(
        task_digest=record.id.task,
        round=record.id.number,
        state=record.state,
        enrolled=len(record.enrolled),
        uploaded=record.uploaded,
        quorum=record.terms.quorum,
        deadline=record.deadline,
        blame=None
        if record.blame is None
        else types_pb2.Blame(reason=record.blame.reason, who=record.blame.who, detail=record.blame.detail),
        refused=[
            types_pb2.RefusedSubmission(slot=r.slot, participant=r.participant, reason=r.reason) for r in record.refused
        ],
        accepted_slots=record.accepted if decisions_public else (),
        decisions_public=decisions_public,
        participants=_by_slot(record),
        openings=record.openings,
    )


def _by_slot(record: RoundRecord) -> list[str]:
    """Entry i is who was sealed in slot i, empty for a slot that was left out; no entries before the sealing."""
    names = [""] * (max((s.slot for s in record.sealed), default=-1) + 1)
    for submission in record.sealed:
        names[submission.slot] = submission.participant
    return names
