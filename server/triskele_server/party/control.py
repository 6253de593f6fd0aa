"""The rounds of one party, from OPEN to their end: what the coordinator may ask, and what the party then does."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from triskele.errors import Conflict, InvalidTask, PartyFault, PeerLost, RoundFailed, WrongState
from triskele.ids import RoundNumber, ShareIndex, held_shares
from triskele.limits import DEFAULT_LIMITS
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele.tracing import TRACES
from triskele_server.config import PartyConfig
from triskele_server.logs import describe
from triskele_server.metrics import party as metrics
from triskele_server.party.certifier import Certifier, SignedStatement, Told
from triskele_server.party.coin_key import coin_key
from triskele_server.party.intake import Intake
from triskele_server.party.job import HeldShare, HeldSubmission, RoundJob, RoundOutcome, RoundRunner
from triskele_server.party.policy import check_task
from triskele_server.party.records import Blame, RoundRecord, Submission, Upload
from triskele_server.party.release_files import ReleaseFiles
from triskele_server.party.share_files import RoundKey, ShareFiles, size_of
from triskele_server.party.store import PartyStore
from triskele_server.privacy import BUDGET_SPENT, affordable_rounds, spent_text
from triskele_server.round_state import RoundEvent, RoundState, has_ended

SHARES_LOST = "shares_lost"
PARTY_FAULT = "party_fault"
INTERNAL_ERROR = "internal_error"
ENDED_BY_COORDINATOR = "ended_by_coordinator"
NEWS_SECONDS = 2.0  # that a call waits for news at most

_ENDINGS = {
    RoundState.RELEASED: RoundEvent.RELEASE,
    RoundState.FAILED: RoundEvent.FAIL,
    RoundState.EXPIRED: RoundEvent.EXPIRE,
}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Seen:
    """What is known of a round where it is asked for, and for how many seconds news is waited for."""

    state: RoundState
    attempt: int
    running: bool
    enough: int  # complete uploads of an open round: fewer are no news
    seconds: float


@dataclass(frozen=True)
class RoundStatus:
    """What a party says of a round."""

    state: RoundState
    complete: tuple[Submission, ...]
    blame: Blame | None
    outcome: RoundOutcome | None
    attempt: int
    running: bool
    setback: str  # why the last attempt was lost
    participants: dict[int, str]  # of the complete uploads, by slot
    certificate: SignedStatement | None = None  # of a round that has just been ended


class RoundControl:
    """Opens, seals, runs and ends rounds. Its methods run on the event loop; disk work runs in threads."""

    def __init__(
        self,
        *,
        store: PartyStore,
        files: ShareFiles,
        releases: ReleaseFiles,
        intake: Intake,
        runner: RoundRunner,
        certifier: Certifier,
        config: PartyConfig,
    ) -> None:
        self._store = store
        self._files = files
        self._releases = releases
        self._intake = intake
        self._runner = runner
        self._certifier = certifier
        self._config = config
        self._who = f"party:{config.index}"
        self._running: dict[RoundKey, asyncio.Task[None]] = {}
        self._phases: dict[RoundKey, RoundState] = {}  # of running rounds; an attempt does not outlive the process
        self._setbacks: dict[RoundKey, str] = {}
        self._news: dict[RoundKey, asyncio.Event] = {}  # of rounds in which somebody waits for some
        self._coin_key = coin_key(config.data, new=not store.rounds())

    async def recover(self) -> None:
        """Make the store tell the truth after a restart. Call it once, before anything is served."""
        await asyncio.to_thread(self._recover)

    async def open(self, canonical: bytes, number: RoundNumber) -> RoundStatus:
        """Open a round of a task that this party's policy allows; idempotent. Raises InvalidTask or Forbidden.

        A round that the task's privacy budget is not enough for ends at once, before anybody uploads.
        """
        spec = TaskSpec.from_canonical(canonical)
        await asyncio.to_thread(check_task, spec, self._config.policy)
        key = RoundKey(spec.digest, number)
        record = await asyncio.to_thread(self._store.open_round, key, canonical)
        if record.state is RoundState.OPEN and spec.privacy is not None:
            spent = await asyncio.to_thread(self._store.opened_rounds, key)
            if spent >= await asyncio.to_thread(affordable_rounds, spec.privacy):
                await self._refuse_spending(key, spec.privacy)
        return await self.status(key)

    async def status(self, key: RoundKey) -> RoundStatus:
        """Where the round stands; raises NotFound."""
        attempt = self._attempt(key)
        record = await asyncio.to_thread(self._store.round, key)
        uploads = [u for u in await asyncio.to_thread(self._store.uploads, key) if u.complete]
        state, running = _standing(record, attempt)
        return RoundStatus(
            state,
            tuple(u.submission for u in uploads),
            record.blame,
            record.outcome,
            record.attempt,
            running,
            self._setbacks.get(key, ""),
            {u.slot: u.participant for u in uploads if u.sealed},
        )

    async def news(self, key: RoundKey, seen: Seen) -> RoundStatus:
        """The same as soon as it is not as seen, or in a while: asking again and again costs more, and is later."""
        await asyncio.to_thread(self._store.round, key)  # nobody waits for what was never opened
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seen.seconds, NEWS_SECONDS)):
                while True:
                    news = self._news.setdefault(key, asyncio.Event())  # before the look
                    if not await asyncio.to_thread(self._is_seen, key, seen):
                        break
                    await news.wait()
        return await self.status(key)

    def announce(self, key: RoundKey) -> None:
        """Something of the round has changed: an upload is complete, or a phase, an attempt, the round has ended."""
        if (news := self._news.pop(key, None)) is not None:
            news.set()

    def _is_seen(self, key: RoundKey, seen: Seen) -> bool:
        attempt = self._attempt(key)
        record = self._store.round(key)
        if (*_standing(record, attempt), record.attempt) != (seen.state, seen.running, seen.attempt):
            return False
        return record.state is not RoundState.OPEN or self._store.count_complete(key) < seen.enough

    def _attempt(self, key: RoundKey) -> tuple[bool, RoundState | None]:
        """Whether an attempt runs, and its phase. To be asked before the store.

        What an attempt came to is stored before it ends: the other way round, one that ends in between would look as
        if nothing had come of it, and the coordinator would begin another one.
        """
        return key in self._running, self._phases.get(key)

    async def seal(self, key: RoundKey, submissions: Sequence[Submission]) -> RoundStatus:
        """Fix the input set; idempotent. Raises WrongState below the minimum cohort or if one is missing here."""
        if len({s.slot for s in submissions}) != len(submissions) or len({s.participant for s in submissions}) != len(
            submissions
        ):
            raise InvalidTask("seal: a slot or a participant is listed twice")
        record = await asyncio.to_thread(self._store.round, key)
        minimum = max(record.spec.min_accepted, self._config.policy.min_accepted)
        if len(submissions) < minimum:
            raise WrongState(
                f"{key}: {len(submissions)} submissions are below this party's minimum cohort of {minimum}"
            )
        await asyncio.to_thread(self._store.seal, key, submissions)
        await asyncio.to_thread(self._intake.close_round, key)
        return await self.status(key)

    async def run(self, key: RoundKey, attempt: int) -> RoundStatus:
        """Start an attempt at a sealed round, giving up an earlier one; of an old number only the status is told."""
        if attempt < 1:
            raise InvalidTask("run: attempts are numbered from 1")
        privacy = (await asyncio.to_thread(self._store.round, key)).spec.privacy
        affordable = None if privacy is None else await asyncio.to_thread(affordable_rounds, privacy)
        if await asyncio.to_thread(self._store.start_attempt, key, attempt, affordable):
            await self._give_up(key)
            job = await asyncio.to_thread(self._job, key, attempt)
            self._running[key] = asyncio.create_task(self._compute(key, job))
        elif privacy is not None:  # rounds that were open side by side: the last ones do not fit the budget any more
            record = await asyncio.to_thread(self._store.round, key)
            if record.state is RoundState.SEALED and record.attempt == 0:
                await self._refuse_spending(key, privacy)
        return await self.status(key)

    async def output(self, key: RoundKey) -> Path:
        """The file of the aggregate's words; raises WrongState unless the round is COMBINED."""
        record = await asyncio.to_thread(self._store.round, key)
        if record.state is not RoundState.COMBINED or record.outcome is None:
            raise WrongState(f"{key} is {record.state}: its output can be fetched while it is COMBINED")
        return self._files.output(key, record.outcome.attempt)

    async def end(self, key: RoundKey, told: Told, canonical: bytes = b"") -> RoundStatus:
        """End a round, delete its shares, sign its certificate; idempotent, and what ended the round first stays.

        `told` is the coordinator's account. With the task's `canonical` form a round ends without a result that this
        party never opened: it cannot be opened later.

        Raises WrongState, and Conflict if the round is said to be released and was not, or the other way round.
        """
        state = told.state
        if state not in _ENDINGS:
            raise InvalidTask(f"a round ends as {', '.join(_ENDINGS)}, not as {state}")
        if canonical and state is not RoundState.RELEASED:
            if TaskSpec.from_canonical(canonical).digest != key.task:
                raise InvalidTask("end: the task is not the one whose digest is given")
            await asyncio.to_thread(self._store.open_round, key, canonical)
        blame = None
        if state is not RoundState.RELEASED:
            blame = Blame(ENDED_BY_COORDINATOR, "coordinator", f"the coordinator ended the round as {state}")
        else:
            await asyncio.to_thread(self._keep_aggregate, key)
        await self._end(key, _ENDINGS[state], blame)
        await self._give_up(key)
        self._setbacks.pop(key, None)
        await asyncio.to_thread(self._files.delete, key)  # again: a computation may have written while it was stopped
        status = await self.status(key)
        if (status.state is RoundState.RELEASED) != (state is RoundState.RELEASED):
            raise Conflict(f"{key} has ended as {status.state} at this party, not as {state}")
        if status.state is RoundState.RELEASED:
            await self._end_earlier(key)
        return replace(status, certificate=await asyncio.to_thread(self._certificate, key, told))

    async def stop(self) -> None:
        """Cancel what runs; its rounds are found as interrupted at the next start."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await asyncio.to_thread(self._intake.close)

    async def _end_earlier(self, released: RoundKey) -> None:
        """A task's rounds come one after the other: whatever is left of earlier ones has ended without this party.

        It was put back from a backup, and nobody would tell it again to delete those shares.
        """
        detail = f"the coordinator released round {released.number} of the task: this one has ended without this party"
        for key in await asyncio.to_thread(self._store.unfinished_before, released):
            await self._end(key, RoundEvent.FAIL, Blame(ENDED_BY_COORDINATOR, "coordinator", detail))
            await self._give_up(key)
            await asyncio.to_thread(self._files.delete, key)  # as in `end`

    async def _give_up(self, key: RoundKey) -> None:
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    async def _refuse_spending(self, key: RoundKey, privacy: Privacy) -> None:
        spent = await asyncio.to_thread(self._store.opened_rounds, key)
        text = await asyncio.to_thread(spent_text, privacy, spent)
        await self._end(key, RoundEvent.FAIL, Blame(BUDGET_SPENT, self._who, text))

    async def _compute(self, key: RoundKey, job: RoundJob) -> None:
        def on_phase(state: RoundState) -> None:
            if state is RoundState.COMBINED:
                return  # told when the outcome is stored and the output checked
            self._phases[key] = state
            self.announce(key)
            metrics.ROUNDS.enter(key, state)
            _log.info("phase", round=job.round, task=key.task.hex()[:16], state=state)

        metrics.ATTEMPTS.inc()
        with metrics.ROUNDS_COMPUTING.track_inprogress(), TRACES.span("attempt", attempt=job.attempt):
            try:
                outcome = await self._runner.run(job, on_phase)
                await asyncio.to_thread(self._keep_outcome, key, job, outcome)
            except PeerLost as error:  # the coordinator sees that nothing runs here and begins another attempt
                metrics.ATTEMPTS_LOST.inc()
                self._setbacks[key] = str(error)
                _log.warning("attempt_lost", round=job.round, task=key.task.hex()[:16], attempt=job.attempt)
            except RoundFailed as error:
                await self._end(key, RoundEvent.FAIL, Blame(error.reason, error.who, error.detail))
            except PartyFault as error:
                who = self._who if error.party is None else f"party:{error.party}"
                await self._end(key, RoundEvent.FAIL, Blame(PARTY_FAULT, who, str(error)))
            except Exception as error:  # noqa: BLE001  whatever breaks ends the round by name; its text may hold data
                reference = secrets.token_hex(8)
                _log.error("round_internal_error", reference=reference, **describe(error))
                await self._end(key, RoundEvent.FAIL, Blame(INTERNAL_ERROR, self._who, f"reference {reference}"))
            finally:
                if self._running.get(key) is asyncio.current_task():
                    del self._running[key]
                    self._phases.pop(key, None)
                self.announce(key)

    async def _end(self, key: RoundKey, event: RoundEvent, blame: Blame | None) -> None:
        """The state first, then the streams, then the files: a crash in between is finished by `recover`."""
        record = await asyncio.to_thread(self._store.end, key, event, blame)
        await asyncio.to_thread(self._intake.close_round, key)
        await asyncio.to_thread(self._files.delete, key)
        if record.state is not RoundState.RELEASED:
            await asyncio.to_thread(self._releases.forget_keys, key)
        reason = record.blame.reason if record.blame else ""
        _log.info("round_ended", round=key.number, task=key.task.hex()[:16], state=record.state, reason=reason)

    def _certificate(self, key: RoundKey, told: Told) -> SignedStatement | None:
        """One statement for ever, whatever the coordinator tells later; None of an outcome that contradicts itself."""
        record = self._store.round(key)
        statement = record.statement
        if statement is None:
            sealed = [u.submission for u in self._store.uploads(key) if u.sealed]
            try:
                statement = self._store.keep_statement(key, self._certifier.statement(record, sealed, told))
            except PartyFault as error:  # the round has ended all the same; nobody uses what has no certificate
                _log.error("round_not_signed", round=key.number, task=key.task.hex()[:16], error=str(error))
                return None
        return self._certifier.sign(statement)

    def _keep_aggregate(self, key: RoundKey) -> None:
        """What the task's next round starts from, if its rule does. Before the round ends: a crash repeats it."""
        record = self._store.round(key)
        if record.state is RoundState.COMBINED and record.outcome is not None and _starts_from_previous(record):
            output = self._files.output(key, record.outcome.attempt)
            self._releases.keep_previous(key, output, record.outcome)
        if record.state is RoundState.COMBINED and record.outcome is not None and record.outcome.clip_bound is not None:
            self._releases.keep_bound(key, record.outcome.clip_bound)

    def _job(self, key: RoundKey, attempt: int) -> RoundJob:
        record = self._store.round(key)
        submissions = tuple(self._held(key, u) for u in self._store.uploads(key) if u.sealed)
        previous = self._releases.previous(key.task)
        used = previous if _starts_from_previous(record) and previous.exists() else None
        output, bound = self._files.output(key, attempt), self._releases.bound(key.task)
        return RoundJob(
            record.canonical,
            key.number,
            attempt,
            submissions,
            output,
            self._coin_key,
            used,
            bound if bound.exists() else None,
            self._store.opened_rounds(key),
        )

    def _held(self, key: RoundKey, upload: Upload) -> HeldSubmission:
        def share(index: ShareIndex) -> HeldShare:
            seed = index != upload.heavy
            return HeldShare(index, self._files.share(key, upload.participant, index, seed=seed), seed)

        first, second = held_shares(self._config.index)
        return HeldSubmission(upload.slot, upload.participant, upload.manifest_digest, (share(first), share(second)))

    def _keep_outcome(self, key: RoundKey, job: RoundJob, outcome: RoundOutcome) -> None:
        """Output and keys first: what the store calls COMBINED is there. Keys of attempts that came to nothing go."""
        self._check_output(job, outcome)
        if outcome.mask_keys is not None:
            self._releases.keep_keys(key, outcome.attempt, outcome.mask_keys)
        self._store.combined(key, outcome.stored)
        self._releases.forget_keys(key, but=outcome.attempt)

    def _check_output(self, job: RoundJob, outcome: RoundOutcome) -> None:
        """The output is safely on disk and is what the parties agreed on, before the round counts as COMBINED."""
        spec = TaskSpec.from_canonical(job.task)
        expected = spec.dimension * spec.ring.word_bytes
        digest = hashlib.sha256()
        with job.output.open("rb") as file:
            while block := file.read(DEFAULT_LIMITS.max_chunk_bytes):
                digest.update(block)
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
        if size_of(job.output) != expected or digest.digest() != outcome.output_digest:
            raise Conflict("the output file is not the one that the computation announced")

    def _recover(self) -> None:
        alive = []
        for record in self._store.rounds():
            if not has_ended(record.state):
                blame = self._loss(record)
                if blame is None:
                    alive.append(record.key)
                    metrics.ROUNDS.resume(record.key, record.state)
                else:
                    self._store.end(record.key, RoundEvent.FAIL, blame)
                    _log.warning("round_ended", round=record.key.number, state=RoundState.FAILED, reason=blame.reason)
        self._files.delete_all_but(alive)

    def _loss(self, record: RoundRecord) -> Blame | None:
        """What the restart cost this round; incomplete and damaged uploads of an open one are put right."""
        if record.state is RoundState.COMBINED:
            return None
        for upload in self._store.uploads(record.key):
            held = self._held(record.key, upload)
            seeds_there = all(self._files.has_seed(s.path) for s in held.shares if s.seed)
            words = next((self._files.stored(s.path, seed=False) for s in held.shares if not s.seed), 0)
            if words >= upload.committed and (seeds_there or not (upload.complete or upload.seeded)):
                continue
            if upload.sealed:
                return Blame(SHARES_LOST, self._who, f"slot {upload.slot}: files of this party are missing")
            committed = min(words, upload.committed)
            self._store.reopen_upload(record.key, upload.participant, committed, seeded=upload.seeded and seeds_there)
        return None


def _standing(record: RoundRecord, attempt: tuple[bool, RoundState | None]) -> tuple[RoundState, bool]:
    """A round's state with its phase, and whether an attempt at it runs."""
    running, phase = attempt
    state = phase if phase is not None and record.state is RoundState.SEALED else record.state
    return state, running and not has_ended(record.state)


def _starts_from_previous(record: RoundRecord) -> bool:
    from triskele_server.rules import find  # noqa: PLC0415  loads the rules' code, not for `--help`

    return find(record.spec.stages[-1]).reference == "previous"
