"""The simulation can fail: bugs of the kinds that it is there for, planted on purpose, are found by short lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from triskele import release_mask
from triskele.errors import Busy
from triskele.ids import PARTIES
from triskele_server.coordinator import certification, runner
from triskele_server.coordinator.store import Store
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.session import Session, Shares
from triskele_server.party import relay
from triskele_server.party import round as round_page
from triskele_server.party.checkpoint import FileCheckpoints
from triskele_server.party.control import RoundControl
from triskele_server.party.intake import Intake
from triskele_server.party.share_files import ShareFiles

from .federation import play
from .operations import Hostile, LoseRelay, Operation, Replay, Setup, Tick, UntilEnded, Upload, WorkerCrash

Plant = Callable[[pytest.MonkeyPatch], None]


def a_replayed_upload_counts_twice(patch: pytest.MonkeyPatch) -> None:
    begun: Counter[tuple[int, bytes]] = Counter()
    begin, job = Intake.begin, RoundControl._job

    def counting(self: Intake, *args: Any, **options: Any) -> Any:
        session = begin(self, *args, **options)
        begun[self._party, session._upload.manifest_digest] += 1
        return session

    def doubled(self: RoundControl, key: Any, attempt: int) -> Any:
        given = job(self, key, attempt)
        again = [s for s in given.submissions if any(begun[p, s.manifest_digest] > 1 for p in PARTIES)]
        return replace(given, submissions=(*given.submissions, *again))

    patch.setattr(Intake, "begin", counting)
    patch.setattr(RoundControl, "_job", doubled)


def the_validity_check_is_left_out(patch: pytest.MonkeyPatch) -> None:
    checked = round_page.check

    def careless(*args: Any, **named: Any) -> Any:
        return torch.ones_like(torch.as_tensor(checked(*args, **named))).numpy()

    patch.setattr(round_page, "check", careless)


def a_rerun_leaves_one_out(patch: pytest.MonkeyPatch) -> None:
    job = RoundControl._job

    def fewer(self: RoundControl, key: Any, attempt: int) -> Any:
        given = job(self, key, attempt)
        return given if attempt == 1 else replace(given, submissions=given.submissions[:-1])

    patch.setattr(RoundControl, "_job", fewer)


def a_rerun_decides_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileCheckpoints, "decision", lambda _: None)


def nobody_thinks_of_the_minimum_cohort(patch: pytest.MonkeyPatch) -> None:
    decide = runner.decide

    def careless(record: Any, counted: Any, now: float) -> Any:
        return decide(replace(record, terms=replace(record.terms, min_accepted=2)), counted, now)

    async def seal(self: RoundControl, key: Any, submissions: Any) -> Any:
        self._store.seal(key, submissions)
        self._intake.close_round(key)
        return await self.status(key)

    patch.setattr(runner, "decide", careless)
    patch.setattr(RoundControl, "seal", seal)
    patch.setattr(round_page, "_check_minimum", lambda *_: None)


def something_is_opened_beside_the_ledger(patch: pytest.MonkeyPatch) -> None:
    checked = round_page.check

    def curious(session: Session, sketch: Any, folded: Shares, *rest: Any, **named: Any) -> Any:
        admit = OpeningLedger.admit
        patch.setattr(OpeningLedger, "admit", lambda self, name, shape: None)
        session.open(Shares(folded.first[:1].clone(), folded.second[:1].clone()), "sketch")
        patch.setattr(OpeningLedger, "admit", admit)
        return checked(session, sketch, folded, *rest, **named)

    patch.setattr(round_page, "check", curious)


def shares_of_ended_rounds_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShareFiles, "delete", lambda *_: None)


def a_confirmed_upload_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    tally = runner.tally

    def forgetful(*args: Any) -> Any:
        counted = tally(*args)
        return replace(counted, ready=counted.ready[:-1])

    patch.setattr(runner, "tally", forgetful)


def a_result_is_replaced_later(patch: pytest.MonkeyPatch) -> None:
    closed: set[Any] = set()
    mark_closed, result = Store.mark_closed, Store.result

    def noted(self: Store, id_: Any) -> None:
        mark_closed(self, id_)
        closed.add(id_)

    def replaced(self: Store, id_: Any) -> Any:
        found = result(self, id_)
        return replace(found, weight_total=found.weight_total + 1) if id_ in closed else found

    patch.setattr(Store, "mark_closed", noted)
    patch.setattr(Store, "result", replaced)


def a_lost_relay_is_given_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(relay, "_AGAIN", Busy)


def rounds_without_a_result_are_not_logged(patch: pytest.MonkeyPatch) -> None:
    certify = runner.certify

    async def certified(id_: Any, signed: Any, log: Any, *rest: Any) -> None:
        if any(b'"state":"RELEASED"' in given.statement for given in signed.values()):
            await certify(id_, signed, log, *rest)

    patch.setattr(runner, "certify", certified)


def a_signature_is_left_out(patch: pytest.MonkeyPatch) -> None:
    assemble = certification.assemble
    patch.setattr(certification, "assemble", lambda statement, by_key: assemble(statement, dict([*by_key.items()][1:])))


def checkpoints_are_lost_with_the_process(patch: pytest.MonkeyPatch) -> None:
    notes: dict[int, dict[int, bytes]] = {}

    def put(self: Store, size: int, cosignatures: int, note: bytes) -> None:
        notes.setdefault(id(self), {})[cosignatures] = note

    def newest(self: Store, cosignatures: int = 0) -> bytes | None:
        return next((note for count, note in notes.get(id(self), {}).items() if count >= cosignatures), None)

    patch.setattr(Store, "put_checkpoint", put)
    patch.setattr(Store, "checkpoint", newest)


def masks_are_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(release_mask, "_apply", lambda *_: None)


FOUR = Setup(eager=4, quorum=4)
EVERYBODY = tuple(Upload(member) for member in (0, 1, 2, 4))  # who have their shares relayed
PLANTED: list[tuple[Plant, Setup, list[Operation], str]] = [
    # no party signs a certificate that accepts one submission twice: the round's end is told for ever
    (a_replayed_upload_counts_twice, FOUR, [Replay(1)], "is not|not at every party"),
    (the_validity_check_is_left_out, Setup(eager=3), [Hostile(4, "too_long"), UntilEnded()], "refused"),
    (a_rerun_leaves_one_out, FOUR, [WorkerCrash(1, 30), UntilEnded()], "another set than was sealed"),
    (a_rerun_decides_anew, replace(FOUR, rule="norm-clip", decisions="hidden"), [], "differently|for {"),
    (nobody_thinks_of_the_minimum_cohort, Setup(eager=2, min_accepted=3), [], "computes with 2"),
    (something_is_opened_beside_the_ledger, FOUR, [], "opened {'sketch'}"),
    (shares_of_ended_rounds_stay, FOUR, [], "were kept"),
    (a_confirmed_upload_is_forgotten, replace(FOUR, quorum=5), [UntilEnded()], "are not in round"),
    (a_result_is_replaced_later, FOUR, [UntilEnded(), Tick(30.0), Upload(1)], "released twice|is not"),
    (
        a_lost_relay_is_given_up,
        Setup(eager=0, quorum=4),
        [LoseRelay(0, "middle", 1), *EVERYBODY, UntilEnded()],
        "words twice",
    ),
    (rounds_without_a_result_are_not_logged, Setup(eager=0), [UntilEnded()], "never cosigned"),
    (a_signature_is_left_out, FOUR, [UntilEnded()], "2 of the three parties have signed"),
    (masks_are_left_out, FOUR, [UntilEnded()], "holds the aggregate of round 1"),
    (checkpoints_are_lost_with_the_process, FOUR, [UntilEnded()], "cosignatures is gone"),
]


@pytest.mark.parametrize("planted", PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_bug_is_found(made, monkeypatch, planted: tuple[Plant, Setup, list[Operation], str]):
    plant, setup, operations, found = planted
    setup = replace(setup, rounds=1)
    if plant is a_rerun_decides_anew:  # the last frames of a party are those of the opening
        operations = [WorkerCrash(0, _frames_of_a_round(made, setup) - 1), UntilEnded()]
    play(made, setup, operations)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(made, setup, operations)


def _frames_of_a_round(made: Any, setup: Setup) -> int:
    """Frames that party 0 sends in a round without faults."""
    federation = play(made, setup, [])
    return sum(life.frames for life in federation.parties[0].lives)
