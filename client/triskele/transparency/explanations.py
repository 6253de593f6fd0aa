"""Why a participant is not in an aggregate, or a round gave none, in an auditor's words: which check, which bound."""

from __future__ import annotations

from triskele.task import TaskSpec

_LEFT_OUT = {
    "incomplete_upload": "it was admitted, but its upload was not complete at all three parties when the input set was "
    "fixed",
    "manifests_differ": "the three parties held complete uploads of it that were not the same submission",
    "wrong_slot": "it uploaded for another slot than the one it was admitted to",
    "not_enrolled": "it uploaded without having been admitted to the round",
}
_ROUND = {
    "not_enough_submissions": "too few uploads were complete at all three parties by the deadline",
    "too_few_submissions": "fewer submissions than the task's min_accepted were there, or passed the validity check",
    "too_few_accepted": "after filtering, fewer submissions than the task's min_accepted would have carried the result",
    "root_missing": "the root participant, whose update the rule needs, sent no valid one",
    "privacy_budget_spent": "one more round would have spent more than the task's privacy budget",
    "party_unreachable": "a party could not be reached for too long",
    "no_progress": "the computation at the parties stood still for too long",
    "attempts_exhausted": "parties kept falling silent in the middle of the computation",
    "party_fault": "a party broke the protocol, and another one noticed",
    "outcomes_differ": "the three parties did not report the same outcome",
}


def explain(reason: str, task: TaskSpec) -> str:
    """A sentence for a reason code of a submission or of a round; the code itself where there is none."""
    if reason == "failed_validity_check":
        weight = f", its weight in 0 to {task.max_weight}" if task.weighted else ""
        return (
            "it failed the validity check, which every party computed on shares: an update must be no longer than the "
            f"task's clip_norm ({task.clip_norm:g}, with a tolerance of 10 %), without an entry that wraps{weight}. "
            "Which of these it broke, and by how much, was not opened"
        )
    return _LEFT_OUT.get(reason) or _ROUND.get(reason) or f"reason code {reason}"
