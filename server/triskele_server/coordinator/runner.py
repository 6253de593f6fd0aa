"""Drives the rounds of one task at the three parties: `TaskRunner.run` is a round as the coordinator sees it.

The store is written before the parties are told, so a coordinator that was killed at any moment goes on from the store.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random

from triskele.errors import NotFound, RoundFailed, TriskeleError, Unavailable
from triskele.ids import PARTIES, PartyIndex, RoundNumber
from triskele.task import TaskSpec
from triskele.tracing import TRACES, RoundTrace
from triskele_server.coordinator.certification import certify
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.outcome import agreed
from triskele_server.coordinator.parties import (
    Pace,
    Parties,
    Waiting,
    all_combined,
    check_open,
    names,
    next_attempt,
    outcomes_of,
    silent_parties,
    stall,
    statuses,
)
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import (
    COORDINATOR,
    Blame,
    Outcome,
    PartyStatus,
    RoundId,
    RoundRecord,
    Signed,
    Terms,
)
from triskele_server.coordinator.schedule import Expire, GiveUp, KeepOpen, Seal, decide, decide_without, tally
from triskele_server.coordinator.store import Store
from triskele_server.metrics import coordinator as metrics
from triskele_server.privacy import BUDGET_SPENT, affordable_rounds, epsilon, spent_text
from triskele_server.round_state import RoundEvent, RoundState, least_advanced, progress
from triskele_server.rules.noise import no_claim

OUTPUT_NOT_SERVED = "output_not_served"  # no party hands out the words whose digest all three named
_STORE_SECONDS = (0.05, 0.5)  # at least and at most, before the store is tried again

_log = structlog.get_logger(__name__)


class TaskRunner:
    """The rounds of one task, one after the other. `clock` gives Unix seconds; `parties` are for this runner only."""

    def __init__(
        self,
        spec: TaskSpec,
        terms: Terms,
        *,
        store: Store,
        files: ResultFiles,
        parties: Parties,
        changes: RoundChanges,
        log: Log,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
    ) -> None:
        self._spec = spec
        self._terms = terms
        self._store = store
        self._files = files
        self._parties = parties
        self._changes = changes
        self._certified = log
        self._clock = clock
        self._pace = pace or Pace()
        self._log = _log.bind(task=spec.name)
        self._steps = TRACES.steps()

    async def run(self, rounds: int) -> None:
        """Run rounds until number `rounds` has ended, from wherever the store left off, however long it is away."""
        await outlasting_the_store(partial(self._run, rounds))

    async def _run(self, rounds: int) -> None:
        if (last := self._store.last_round(self._spec.digest)) is not None:
            self._changes.announce(last.id)  # its last step may stand in the store, but was not told when that broke
        await self._close()
        while (id_ := self._next(rounds)) is not None:
            trace = RoundTrace(id_.task, id_.number)
            with TRACES.round("round", trace, root=not self._stored(id_), task_name=self._spec.name):
                self._steps = TRACES.steps()
                await self._one(id_)
                await self._close()
            if self._store.round(id_).state is RoundState.FAILED:
                await asyncio.sleep(self._pace.pause_seconds)

    async def _close(self) -> None:
        await close_ended_rounds(
            self._spec,
            store=self._store,
            parties=self._parties,
            log=self._certified,
            changes=self._changes,
            pace=self._pace,
        )

    async def _one(self, id_: RoundId) -> None:
        try:
            await self._open(id_)  # 5.1; participants upload (5.2)
            if await self._collect(id_):  # 5.3: the input set is fixed
                outcomes = await self._compute(id_)  # 5.4 to 5.9 happen at the parties
                await self._release(id_, outcomes)  # 5.10
        except RoundFailed as failure:
            self._store.end(id_, RoundEvent.FAIL, Blame(failure.reason, failure.who, failure.detail))
            self._entered(id_, RoundState.FAILED)

    def _stored(self, id_: RoundId) -> RoundRecord | None:
        last = self._store.last_round(self._spec.digest)
        return last if last is not None and last.id == id_ else None

    def _next(self, rounds: int) -> RoundId | None:
        last = self._store.last_round(self._spec.digest)
        if last is not None and not last.ended:
            metrics.ROUNDS.resume(last.id, last.state)
            return last.id
        if last is not None and last.ends_task:
            return None
        number = 1 if last is None else last.id.number + 1
        return RoundId(self._spec.digest, RoundNumber(number)) if number <= rounds else None

    async def _open(self, id_: RoundId) -> None:
        """Open the round at all parties, however long one of them is away, then to participants."""
        stored = self._stored(id_)
        if stored is not None and stored.state is not RoundState.OPEN:
            return
        missing, waiting = set(PARTIES), Waiting(self._pace)
        try:
            self._check_budget(id_)
            while missing:
                answers = await self._parties.ask(lambda p: p.open_round(self._spec, id_.number), missing)
                statuses(answers)
                if missing := silent_parties(answers):
                    await waiting.sleep()
        except RoundFailed:
            if stored is None:  # a refused round is used up like any other that fails
                self._store.open_round(id_, self._terms, self._clock())
            raise
        if stored is None:
            self._store.open_round(id_, self._terms, self._clock())
            self._entered(id_, RoundState.OPEN)

    def _check_budget(self, id_: RoundId) -> None:
        """Raise RoundFailed if one round more would spend more than the task's privacy budget; parties count, too."""
        privacy = self._spec.privacy
        if privacy is not None and (spent := self._opened_rounds(id_)) >= affordable_rounds(privacy):
            raise RoundFailed(BUDGET_SPENT, COORDINATOR, spent_text(privacy, spent))

    def _opened_rounds(self, but: RoundId | None = None) -> int:
        """Rounds of the task that were sealed, unless they ended before anything could be opened."""
        return sum(record.may_have_opened and record.id != but for record in self._store.rounds(self._spec.digest))

    async def _collect(self, id_: RoundId) -> bool:
        """Wait for uploads; returns whether the round was sealed (True) or has expired."""
        if self._store.round(id_).state is not RoundState.OPEN:
            return True  # sealed before a restart; an ended round does not come here
        waiting, seen = Waiting(self._pace), dict[PartyIndex, PartyStatus]()
        enough, patience = 0, 0.0  # uploads, seconds: what a party answers at the latest after
        while True:
            ask = partial(self._open_status, id_=id_, seen=seen, enough=enough, seconds=patience)
            answers = await self._parties.ask(ask)
            heard = statuses(answers)
            check_open(heard)
            seen |= heard
            # From here to the decision's entry in the store nothing else runs: no admission falls in between.
            record, now = self._store.round(id_), self._clock()
            uploaded = record.uploaded
            if silent := silent_parties(answers):
                decision = decide_without(record, silent, now, self._pace.stall_seconds)
            else:
                counted = tally(record.enrolled, [heard[p].complete for p in PARTIES])
                uploaded = len(counted.ready)
                decision = decide(record, counted, now)
            match decision:
                case KeepOpen(quorum_since, until):
                    if self._store.note_uploads(id_, uploaded, quorum_since):
                        self._changes.announce(id_, counts_only=True)
                        waiting.moved()
                    terms = record.terms
                    enough = terms.quorum if quorum_since is None else terms.max_participants
                    patience = max(0.0, min(until - now, self._pace.news_seconds))
                    await waiting.sleep(0.0 if waiting.held else until - now)
                case Seal(fixed):
                    self._store.seal(id_, fixed.ready, fixed.refused)
                    self._entered(id_, RoundState.SEALED)
                    return True
                case Expire(blame, left):
                    self._store.end(id_, RoundEvent.EXPIRE, blame, left.refused)
                    self._entered(id_, RoundState.EXPIRED)
                    return False
                case GiveUp(blame):
                    raise RoundFailed(blame.reason, blame.who, blame.detail)

    async def _open_status(
        self, party: PartyLink, *, id_: RoundId, seen: Mapping[PartyIndex, PartyStatus], enough: int, seconds: float
    ) -> PartyStatus:
        try:
            return await party.status(id_, seen.get(party.index), enough=enough, seconds=seconds)
        except NotFound:  # the party lost the round; what it held must be uploaded again
            return await party.open_round(self._spec, id_.number)

    async def _compute(self, id_: RoundId) -> list[Outcome]:
        """Seal at all parties, run attempts until all are COMBINED; returns the outcomes of parties 0, 1, 2."""
        sealed = self._store.round(id_).sealed
        latest: dict[PartyIndex, PartyStatus] = {}
        waiting = Waiting(self._pace)

        async def sealed_status(party: PartyLink) -> PartyStatus:
            known = latest.get(party.index)
            seen = None if known is None or known.state is RoundState.COMBINED else known  # no more news from that one
            status = await party.status(id_, seen, seconds=self._pace.news_seconds)
            return await party.seal(id_, sealed) if status.state is RoundState.OPEN else status

        while True:
            answers = await self._parties.ask(sealed_status)
            heard, silent = statuses(answers), silent_parties(answers)
            moved = any(p not in latest or latest[p].state is not status.state for p, status in heard.items())
            if moved:
                waiting.moved()
            latest |= heard
            if len(latest) == len(PARTIES):
                slowest = min(least_advanced(s.state for s in latest.values()), RoundState.COMBINED, key=progress)
                for state in self._store.follow(id_, slowest):
                    self._entered(id_, state)
                if slowest is RoundState.COMBINED and all_combined(latest.values()):
                    return outcomes_of(latest)
            if len(heard) == len(PARTIES) and (attempt := next_attempt(heard.values(), self._pace.attempts)):
                metrics.ATTEMPTS.labels("first" if attempt == 1 else "repeated").inc()
                self._log.info("attempt", round=id_.number, attempt=attempt)
                statuses(await self._parties.ask(lambda p: p.run(id_, attempt)))
                waiting.moved()
            if waiting.stalled:
                raise stall(silent, latest, self._pace.stall_seconds)
            await waiting.sleep(0.0 if moved or waiting.held else math.inf)

    async def _release(self, id_: RoundId, outcomes: Sequence[Outcome]) -> None:
        """Compare the outcomes, store the words from the first party that has the right ones, release."""
        outcome = agreed(outcomes, self._store.round(id_).sealed)
        length = self._spec.dimension * self._spec.ring.word_bytes
        waiting = Waiting(self._pace)
        while True:
            errors: dict[PartyIndex, TriskeleError] = {}
            for party in self._parties.links:
                try:
                    words = party.output(id_)
                    file = await self._files.receive(id_, words, length=length, digest=outcome.output_digest)
                except TriskeleError as error:
                    errors[party.index] = error
                    self._log.warning("output_refused", round=id_.number, party=party.index, error=str(error))
                    continue
                self._store.release(id_, outcome, file)
                self._entered(id_, RoundState.RELEASED)
                return
            if waiting.stalled or not any(isinstance(error, Unavailable) for error in errors.values()):
                raise RoundFailed(OUTPUT_NOT_SERVED, names(errors), "; ".join(map(str, errors.values())))
            await waiting.sleep()

    def _entered(self, id_: RoundId, state: RoundState) -> None:
        """Tell the metrics, the log, the trace and the watchers."""
        record = self._store.round(id_)
        metrics.count_state(record, self._spec)
        if self._spec.privacy is not None and record.ended and not no_claim(self._spec):
            metrics.EPSILON_SPENT.labels(self._spec.name).set(epsilon(self._spec.privacy, self._opened_rounds()))
        why = {} if record.blame is None else {"reason": record.blame.reason, "who": record.blame.who}
        self._log.info(
            "round_state",
            round=id_.number,
            state=state,
            enrolled=len(record.enrolled),
            sealed=len(record.sealed),
            **why,
        )
        self._steps.ended(f"until {state}")
        TRACES.note(state=state, **why)
        self._changes.announce(id_)


async def outlasting_the_store(work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, which begins with what the store says, again and again until the store lets it come to its end."""

    def told(state: RetryCallState) -> None:
        _log.warning("waiting_for_database", attempt=state.attempt_number)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unavailable),  # of the store: parties that are away are waited for where they are
        wait=wait_random(*_STORE_SECONDS),
        before_sleep=told,
        reraise=True,
    ):
        with attempt:
            await work()


async def close_ended_rounds(
    spec: TaskSpec, *, store: Store, parties: Parties, log: Log, changes: RoundChanges, pace: Pace
) -> None:
    """Tell all three parties of every ended round of a task, as long as it takes: they delete its shares and sign.

    The signatures come into the log as the round's certificate.
    """
    for record in store.unclosed(spec.digest):
        signed = await _close(record, spec, parties, Waiting(pace))
        await certify(record.id, signed, log, parties, pace)
        store.mark_closed(record.id)
        changes.announce(record.id, counts_only=True)  # who waits for the certificate is woken


async def _close(record: RoundRecord, spec: TaskSpec, parties: Parties, waiting: Waiting) -> dict[PartyIndex, Signed]:
    signed: dict[PartyIndex, Signed] = {}
    missing = set(PARTIES)
    while missing:
        answers = await parties.ask(lambda p: p.end(record, spec), missing)
        for party, answer in answers.items():
            if isinstance(answer, TriskeleError) and not isinstance(answer, Unavailable | NotFound):
                # The coordinator can do no more for this round: the operator is told, and the next round goes on.
                _log.warning("round_end_refused", round=record.id.number, party=party, error=str(answer))
            if isinstance(answer, PartyStatus) and answer.certificate is not None:
                signed[party] = answer.certificate
        if missing := silent_parties(answers):
            await waiting.sleep()
    return signed
