"""When a round is sealed, with which submissions, and when it is given up: decisions without I/O or clock.

`tally` says what the three parties hold; `decide` says what to do now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from triskele.ids import PARTIES, ParticipantId, PartyIndex, Slot
from triskele_server.coordinator.rounds import COORDINATOR, Blame, Refusal, RoundRecord, Submission

INCOMPLETE_UPLOAD = "incomplete_upload"  # enrolled, but not complete at all three parties when the round was sealed
MANIFESTS_DIFFER = "manifests_differ"  # complete at all three parties, but not the same submission
WRONG_SLOT = "wrong_slot"  # uploaded for another slot than the one it was admitted to
NOT_ENROLLED = "not_enrolled"  # uploaded without admission
NOT_ENOUGH_SUBMISSIONS = "not_enough_submissions"
PARTY_UNREACHABLE = "party_unreachable"


@dataclass(frozen=True)
class Tally:
    """What could be sealed now: `ready` by slot, and who would be left out and why."""

    ready: tuple[Submission, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class KeepOpen:
    """Nothing to do before `until` (Unix seconds) unless another upload completes."""

    quorum_since: float | None
    until: float


@dataclass(frozen=True)
class Seal:
    """Fix the input set: `tally.ready`."""

    tally: Tally


@dataclass(frozen=True)
class Expire:
    """End the round: too few came."""

    blame: Blame
    tally: Tally


@dataclass(frozen=True)
class GiveUp:
    """End the round as FAILED."""

    blame: Blame


Decision = KeepOpen | Seal | Expire | GiveUp


def party_name(party: int) -> str:
    """How a party is named in a blame."""
    return f"party:{party}"


def tally(enrolled: Mapping[ParticipantId, Slot], complete: Sequence[Collection[Submission]]) -> Tally:
    """The submissions that all three parties hold alike, and the rest with reasons.

    `complete` are the reports of parties 0, 1, 2. Only an enrolled participant's submission in its own slot counts: the
    parties do not know the admissions. Without admission a submission is named only if all three parties hold it.
    """
    held = [{s.participant: s for s in report} for report in complete]
    everywhere = set(held[0]).intersection(*held[1:])
    ready: list[Submission] = []
    refused: list[Refusal] = []
    for participant, slot in enrolled.items():
        if participant not in everywhere:
            refused.append(Refusal(slot, participant, INCOMPLETE_UPLOAD))
            continue
        copies = {report[participant] for report in held}
        if any(copy.slot != slot for copy in copies):
            refused.append(Refusal(slot, participant, WRONG_SLOT))
        elif len(copies) > 1:
            refused.append(Refusal(slot, participant, MANIFESTS_DIFFER))
        else:
            ready.extend(copies)
    refused += [Refusal(held[0][p].slot, p, NOT_ENROLLED) for p in everywhere - enrolled.keys()]
    return Tally(tuple(sorted(ready)), tuple(sorted(refused)))


def decide(record: RoundRecord, counted: Tally, now: float) -> Decision:
    """What to do with an OPEN round at `now`, given what all three parties hold.

    Sealed once quorum is reached and either every place is filled or the grace has passed; at the deadline with at
    least the minimum cohort; else expired.
    """
    terms, ready = record.terms, len(counted.ready)
    reached = ready >= terms.quorum
    since = (now if record.quorum_since is None else record.quorum_since) if reached else None
    if since is not None and (ready >= terms.max_participants or now >= since + terms.grace_seconds):
        return Seal(counted)
    if now >= record.deadline:
        if ready >= terms.min_accepted:
            return Seal(counted)
        detail = (
            f"{ready} of {len(record.enrolled)} enrolled participants had completed their upload at all three parties "
            f"by the deadline; the task needs at least {terms.min_accepted}. Let more participants take part or raise "
            "deadline_seconds"
        )
        return Expire(Blame(NOT_ENOUGH_SUBMISSIONS, COORDINATOR, detail), counted)
    until = record.deadline if since is None else min(record.deadline, since + terms.grace_seconds)
    return KeepOpen(since, until)


def decide_without(record: RoundRecord, silent: Collection[PartyIndex], now: float, patience: float) -> Decision:
    """What to do with an OPEN round at `now` while the parties `silent` do not answer.

    What they hold is unknown, so the round is neither sealed nor expired; `patience` seconds after the deadline it is
    given up.
    """
    until = record.deadline + patience
    if now < until:
        return KeepOpen(record.quorum_since, until)
    who = ",".join(party_name(p) for p in PARTIES if p in silent)
    detail = f"did not answer from the deadline on for {patience:g} s; start it, or mend the network to it"
    return GiveUp(Blame(PARTY_UNREACHABLE, who, detail))
