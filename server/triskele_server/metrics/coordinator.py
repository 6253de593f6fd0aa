"""What the coordinator counts besides its calls: rounds, cohorts, decisions that were opened."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from triskele.ids import PARTIES
from triskele.task import TaskSpec
from triskele_server.coordinator.rounds import RoundRecord
from triskele_server.metrics.round_clock import RoundClock
from triskele_server.round_state import RoundState

_COHORTS: Final = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000)

ROUNDS: Final = RoundClock("triskele_coordinator")
ROUNDS_FAILED: Final = Counter(
    "triskele_coordinator_rounds_failed_total", "Rounds that ended without a result, by reason", ["reason"]
)
COHORT: Final = Histogram(
    "triskele_coordinator_cohort_participants",
    "Participants of a round that came as far as a stage",
    ["stage"],
    buckets=_COHORTS,
)
REFUSED: Final = Counter(
    "triskele_coordinator_submissions_refused_total", "Submissions that did not enter a round's filter", ["reason"]
)
POISONING: Final = Gauge(
    "triskele_coordinator_poisoning_ratio",
    "Share of the last released round's submissions that were invalid or not accepted, from opened values",
    ["task"],
)
EPSILON_SPENT: Final = Gauge(
    "triskele_coordinator_privacy_epsilon_spent",
    "Epsilon that the task's rounds have spent at the task's delta; only of tasks whose noise carries a guarantee",
    ["task"],
)
ATTEMPTS: Final = Counter("triskele_coordinator_attempts_total", "Attempts at rounds' computations", ["kind"])
PARTY_REACHABLE: Final = Gauge(
    "triskele_coordinator_party_reachable",
    "1 if the party answered the last call of a task's runner, else 0",
    ["party"],
)
LOG_ENTRIES: Final = Gauge("triskele_coordinator_log_entries", "Certificates in the append-only log")
LOG_COSIGNED: Final = Gauge(
    "triskele_coordinator_log_cosigned_entries",
    "Entries of the log that the party has cosigned, as far as this process has seen",
    ["party"],
)
TASKS_RUNNING: Final = Gauge("triskele_coordinator_tasks_running", "Tasks that have rounds left to run")

STAGES: Final = ("enrolled", "uploaded", "valid", "accepted")
OTHER: Final = "other"
"""Reasons come over the wire from the parties: one that is not known here counts as this."""
FAILURES: Final = frozenset(
    (
        *("attempts_exhausted", "no_progress", "not_enough_submissions", "out_of_step", "outcome_invalid"),
        *("outcomes_differ", "output_not_served", "party_broke_protocol", "party_refused", "party_unreachable"),
        *("ended_by_coordinator", "internal_error", "party_fault", "root_missing", "rule_failed", "shares_lost"),
        *("store_damaged", "too_few_accepted", "too_few_submissions", "privacy_budget_spent"),
    )
)
REFUSALS: Final = frozenset(
    ("failed_validity_check", "incomplete_upload", "manifests_differ", "not_enrolled", "wrong_slot")
)

for _party in PARTIES:
    LOG_COSIGNED.labels(str(_party))
for _reason in (*sorted(FAILURES), OTHER):
    ROUNDS_FAILED.labels(_reason)
for _reason in (*sorted(REFUSALS), OTHER):
    REFUSED.labels(_reason)
for _stage in STAGES:
    COHORT.labels(_stage)
for _kind in ("first", "repeated"):
    ATTEMPTS.labels(_kind)
for _party in PARTIES:
    PARTY_REACHABLE.labels(str(_party))


def count_state(record: RoundRecord, spec: TaskSpec) -> None:
    """Count the state that a round has come to, and what follows from it; only values that the round opened."""
    ROUNDS.enter(record.id, record.state)
    if record.state in (RoundState.SEALED, RoundState.EXPIRED):
        COHORT.labels("enrolled").observe(len(record.enrolled))
        COHORT.labels("uploaded").observe(record.uploaded)
    if record.state is RoundState.RELEASED:
        _count_decisions(record, spec)
    if record.ended:
        for refusal in record.refused:
            REFUSED.labels(refusal.reason if refusal.reason in REFUSALS else OTHER).inc()
    if record.blame is not None:
        ROUNDS_FAILED.labels(record.blame.reason if record.blame.reason in FAILURES else OTHER).inc()


def _count_decisions(record: RoundRecord, spec: TaskSpec) -> None:
    """The root's update is a yardstick, neither averaged nor judged: it does not count."""
    root = record.enrolled.get(spec.root) if spec.root is not None else None
    judged = {s.slot for s in record.sealed} - {root}
    invalid = judged & {r.slot for r in record.refused}
    COHORT.labels("valid").observe(len(judged) - len(invalid))
    if spec.decisions != "public":
        return
    accepted = judged.intersection(record.accepted)
    COHORT.labels("accepted").observe(len(accepted))
    if judged:
        POISONING.labels(spec.name).set(1 - len(accepted) / len(judged))
