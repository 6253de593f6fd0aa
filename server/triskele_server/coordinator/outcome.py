"""The three parties' outcomes of a round must be equal: nothing is released on one party's word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from triskele.errors import RoundFailed
from triskele.ids import PartyIndex
from triskele_server.coordinator.rounds import Outcome, Submission
from triskele_server.coordinator.schedule import party_name

OUTCOMES_DIFFER = "outcomes_differ"
OUTCOME_INVALID = "outcome_invalid"


def agreed(outcomes: Sequence[Outcome], sealed: Sequence[Submission]) -> Outcome:
    """The outcome that parties 0, 1, 2 agree on; raises RoundFailed naming who differs and in what.

    It may speak of sealed submissions only.
    """
    standard, votes = Counter(outcomes).most_common(1)[0]
    if votes < len(outcomes):
        # With two against one the one is named; that the two are right is not proved, so nothing is released.
        odd = [PartyIndex(i) for i, o in enumerate(outcomes) if votes == 1 or o != standard]
        differing = [f.name for f in fields(Outcome) if len({getattr(o, f.name) for o in outcomes}) > 1]
        raise RoundFailed(OUTCOMES_DIFFER, ",".join(map(party_name, odd)), "differs in " + ", ".join(differing))
    places = {(s.slot, s.participant) for s in sealed}
    slots = {s.slot for s in sealed}
    if not set(standard.accepted) <= slots or not {(r.slot, r.participant) for r in standard.refused} <= places:
        raise RoundFailed(OUTCOME_INVALID, "party:0,party:1,party:2", "names submissions that were not sealed")
    return standard
