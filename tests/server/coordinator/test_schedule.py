"""When a round is sealed, with whom, and when it is given up: tables of cases, no clock, no network."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from triskele.errors import InvalidTask, PartyFault, RoundFailed
from triskele.ids import ParticipantId, PartyIndex, RoundNumber, Slot, TaskDigest
from triskele.manifest import ManifestDigest
from triskele_server.coordinator.outcome import agreed
from triskele_server.coordinator.rounds import (
    Outcome,
    PartyStatus,
    Refusal,
    RoundId,
    RoundRecord,
    Submission,
    Terms,
)
from triskele_server.coordinator.schedule import (
    Expire,
    GiveUp,
    KeepOpen,
    Seal,
    Tally,
    decide,
    decide_without,
    tally,
)
from triskele_server.round_state import RoundState

OPENED = 1000.0
TERMS = Terms(quorum=3, deadline_seconds=60.0, grace_seconds=5.0, min_accepted=2, max_participants=4)


def submission(slot: int, name: str = "", manifest: str = "") -> Submission:
    name = name or f"p{slot}"
    digest = ManifestDigest(hashlib.sha256((manifest or name).encode()).digest())
    return Submission(Slot(slot), ParticipantId(name), digest)


def refusal(slot: int, name: str, reason: str) -> Refusal:
    return Refusal(Slot(slot), ParticipantId(name), reason)


def record(terms: Terms = TERMS, quorum_since: float | None = None) -> RoundRecord:
    id_ = RoundId(TaskDigest(bytes(32)), RoundNumber(1))
    return RoundRecord(id_, RoundState.OPEN, terms, opened_at=OPENED, quorum_since=quorum_since)


def ready(count: int) -> Tally:
    return Tally(tuple(submission(i) for i in range(count)), ())


@pytest.mark.parametrize(
    ("complete", "quorum_since", "now", "expected"),
    [
        pytest.param(0, None, 1000, KeepOpen(None, 1060), id="nobody came yet"),
        pytest.param(2, None, 1059.9, KeepOpen(None, 1060), id="below quorum it waits for the deadline"),
        pytest.param(3, None, 1010, KeepOpen(1010, 1015), id="quorum starts the grace"),
        pytest.param(3, 1010, 1014.9, KeepOpen(1010, 1015), id="the grace counts from the quorum"),
        pytest.param(3, 1010, 1015, "seal", id="the grace is over"),
        pytest.param(4, 1010, 1011, "seal", id="every place is filled"),
        pytest.param(4, None, 1000, "seal", id="every place is filled at once"),
        pytest.param(
            2, 1010, 1014, KeepOpen(None, 1060), id="a party lost an upload: the quorum is not reached any more"
        ),
        pytest.param(3, None, 1058, KeepOpen(1058, 1060), id="the deadline cuts the grace short"),
        pytest.param(3, 1058, 1060, "seal", id="deadline with quorum"),
        pytest.param(2, None, 1060, "seal", id="deadline with the minimum cohort"),
        pytest.param(1, None, 1060, "expire", id="deadline with too few"),
        pytest.param(0, None, 5000, "expire", id="long after the deadline, after a restart"),
    ],
)
def test_decision(complete: int, quorum_since: float | None, now: float, expected: KeepOpen | str) -> None:
    counted = ready(complete)
    decision = decide(record(quorum_since=quorum_since), counted, now)
    if expected == "seal":
        assert decision == Seal(counted)
    elif expected == "expire":
        assert isinstance(decision, Expire)
        assert (decision.blame.reason, decision.blame.who) == ("not_enough_submissions", "coordinator")
    else:
        assert decision == expected


def test_no_grace_means_sealed_at_the_quorum() -> None:
    assert isinstance(decide(record(replace(TERMS, grace_seconds=0.0)), ready(3), OPENED), Seal)


def test_round_waits_for_a_silent_party_and_names_it_when_patience_is_over() -> None:
    waiting = record(quorum_since=1010)
    assert decide_without(waiting, [PartyIndex(1)], 1069.9, patience=10) == KeepOpen(1010, 1070)
    decision = decide_without(waiting, [PartyIndex(2), PartyIndex(0)], 1070, patience=10)
    assert isinstance(decision, GiveUp)
    assert (decision.blame.reason, decision.blame.who) == ("party_unreachable", "party:0,party:2")


ENROLLED = {ParticipantId("alice"): Slot(0), ParticipantId("bob"): Slot(1)}
ALICE, BOB = submission(0, "alice"), submission(1, "bob")


@pytest.mark.parametrize(
    ("complete", "expected_ready", "expected_refused"),
    [
        pytest.param([[ALICE, BOB]] * 3, [ALICE, BOB], [], id="both everywhere"),
        pytest.param(
            [[BOB, ALICE], [ALICE, BOB], [BOB, ALICE]], [ALICE, BOB], [], id="the parties' order does not matter"
        ),
        pytest.param(
            [[ALICE, BOB], [ALICE], [ALICE, BOB]],
            [ALICE],
            [refusal(1, "bob", "incomplete_upload")],
            id="complete at two parties only",
        ),
        pytest.param(
            [[ALICE, BOB], [ALICE, BOB], [ALICE, submission(1, "bob", "other")]],
            [ALICE],
            [refusal(1, "bob", "manifests_differ")],
            id="another manifest at one party",
        ),
        pytest.param(
            [[ALICE, submission(0, "bob")]] * 3,
            [ALICE],
            [refusal(1, "bob", "wrong_slot")],
            id="uploaded into somebody else's slot",
        ),
        pytest.param(
            [[ALICE, submission(7, "mallory")]] * 3,
            [ALICE],
            [refusal(1, "bob", "incomplete_upload"), refusal(7, "mallory", "not_enrolled")],
            id="uploaded without admission",
        ),
        pytest.param(
            [[ALICE, submission(7, "mallory")], [ALICE], [ALICE]],
            [ALICE],
            [refusal(1, "bob", "incomplete_upload")],
            id="one party alone cannot put a name on the list",
        ),
        pytest.param(
            [[], [], []],
            [],
            [refusal(0, "alice", "incomplete_upload"), refusal(1, "bob", "incomplete_upload")],
            id="none",
        ),
    ],
)
def test_tally(
    complete: list[list[Submission]], expected_ready: list[Submission], expected_refused: list[Refusal]
) -> None:
    assert tally(ENROLLED, complete) == Tally(tuple(expected_ready), tuple(expected_refused))


@pytest.mark.parametrize(
    "bad",
    [
        {"quorum": 1},
        {"quorum": 5},
        {"deadline_seconds": 0.0},
        {"deadline_seconds": float("inf")},
        {"grace_seconds": -1.0},
    ],
)
def test_terms_that_cannot_be_kept_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidTask, match=next(iter(bad))):
        replace(TERMS, **bad)


GOOD = Outcome(bytes(32), 2, 0, (refusal(1, "bob", "norm"),), (Slot(0),), ("valid[2]",))


def test_equal_outcomes_are_agreed() -> None:
    assert agreed([GOOD, GOOD, GOOD], [ALICE, BOB]) == GOOD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_digest", b"\1" * 32),
        ("weight_total", 3),
        ("coefficient_bits", 1),
        ("refused", ()),
        ("accepted", ()),
        ("openings", ("valid[2]", "scores[2]")),
    ],
)
@pytest.mark.parametrize("party", [0, 1, 2])
def test_party_whose_outcome_differs_in_anything_is_named(field: str, value: object, party: int) -> None:
    outcomes = [GOOD, GOOD, GOOD]
    outcomes[party] = replace(GOOD, **{field: value})
    with pytest.raises(RoundFailed) as caught:
        agreed(outcomes, [ALICE, BOB])
    assert (caught.value.reason, caught.value.who) == ("outcomes_differ", f"party:{party}")
    assert field in caught.value.detail


def test_three_different_outcomes_name_all_parties() -> None:
    with pytest.raises(RoundFailed) as caught:
        agreed([replace(GOOD, weight_total=w) for w in (1, 2, 3)], [ALICE, BOB])
    assert caught.value.who == "party:0,party:1,party:2"


@pytest.mark.parametrize("sealed", [[ALICE], [BOB], []])
def test_outcome_about_submissions_that_were_not_sealed_is_refused(sealed: list[Submission]) -> None:
    with pytest.raises(RoundFailed, match="outcome_invalid"):
        agreed([GOOD] * 3, sealed)


@pytest.mark.parametrize(
    "bad", [{"output_digest": b"short"}, {"weight_total": 0}, {"weight_total": 1 << 63}, {"coefficient_bits": 64}]
)
def test_outcome_that_makes_no_sense_is_the_partys_fault(bad: dict[str, object]) -> None:
    with pytest.raises(PartyFault):
        replace(GOOD, **bad)


def test_status_that_lists_a_participant_twice_is_the_partys_fault() -> None:
    with pytest.raises(PartyFault, match="twice"):
        PartyStatus(RoundState.OPEN, (ALICE, submission(3, "alice")))
