"""The coordinator's durable state. Every method is one transaction of a few rows, so it may run on the event loop.

A round's state changes here and nowhere else, always through `round_state.advance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import Select, Table, bindparam, func, insert, select
from sqlalchemy.orm import Session, sessionmaker

from triskele.errors import ConfigurationError, InvalidTask, NotFound, WrongState
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest, TaskName
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele_server.coordinator import migrations
from triskele_server.coordinator.database import database_url, must_open, open_engine, outages_told
from triskele_server.coordinator.rounds import (
    Admission,
    Blame,
    Outcome,
    Refusal,
    RoundId,
    RoundRecord,
    StoredResult,
    Submission,
    Terms,
)
from triskele_server.coordinator.tables import (
    CheckpointRow,
    EnrolmentRow,
    LogEntryRow,
    OpeningRow,
    RefusalRow,
    ResultRow,
    RoundRow,
    TaskRow,
)
from triskele_server.round_state import RoundEvent, RoundState, advance, has_ended, steps


@dataclass(frozen=True)
class StoredTask:
    """A task and how many rounds it runs in all."""

    spec: TaskSpec
    rounds: int


@dataclass(frozen=True)
class StoredEntry:
    """An entry of the log: the certificate of a round in its envelope, and how many have signed that."""

    index: int
    id: RoundId
    leaf: bytes  # RFC 9162 hash, 32 bytes
    signatures: int
    envelope: bytes


def database_revision(url: str) -> tuple[str | None, str]:
    """The revision of the database at `url` (None if it is empty) and the newest one; changes nothing.

    Raises ConfigurationError if a coordinator could not start with it.
    """
    engine = open_engine(database_url(url))
    try:
        with must_open():
            return migrations.revision_of(engine), migrations.head()
    finally:
        engine.dispose()


class Store:
    """Tasks, rounds, admissions and what became of them, in SQLite or PostgreSQL.

    A change locks its round's row, or all of SQLite, before it looks; what is read is of one moment. Raises
    ConfigurationError if the database cannot be opened, NotFound for an unknown task or round, WrongState for a change
    that the round's state does not allow, Unavailable while the database is away: then the change may or may not stand.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(database_url(url))
        try:
            with must_open():
                migrations.bring_to_head(self._engine)
        except BaseException:
            self._engine.dispose()
            raise
        self._changes = sessionmaker(self._engine)
        of_one_moment = self._engine
        if self._engine.dialect.name == "postgresql":  # SQLite's transactions are of one moment anyway
            of_one_moment = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._views = sessionmaker(of_one_moment)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with outages_told(), self._views.begin() as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with outages_told(), self._changes.begin() as session:
            yield session

    # Tasks

    def put_task(self, spec: TaskSpec, rounds: int) -> None:
        """Remember a task, or its new number of rounds."""
        with self._writing() as session:
            session.merge(TaskRow(digest=spec.digest, name=spec.name, canonical=spec.canonical(), rounds=rounds))

    def task(self, digest: TaskDigest) -> StoredTask:
        """The task with this digest."""
        with self._reading() as session:
            row = session.get(TaskRow, digest)
            if row is None:
                raise NotFound("no task with this digest here; list the tasks again")
            return StoredTask(_spec(row.canonical), row.rounds)

    def tasks(self) -> list[StoredTask]:
        """Every task ever loaded; raises ConfigurationError if one is of another version of Triskele."""
        with self._reading() as session:
            rows = [(row.name, row.canonical, row.rounds) for row in session.scalars(select(TaskRow))]
        try:
            return [StoredTask(_spec(canonical), rounds) for _, canonical, rounds in rows]
        except InvalidTask as error:
            names = ", ".join(sorted({name for name, _, _ in rows}))
            raise ConfigurationError(
                f"the database is of another version of Triskele ({error}; tasks: {names}): give this one a new one"
            ) from error

    def in_progress(self) -> list[tuple[TaskName, RoundId]]:
        """The rounds that have not ended, with their task's name."""
        with self._reading() as session:
            rows = session.execute(
                select(TaskRow.name, RoundRow)
                .join(RoundRow, RoundRow.task == TaskRow.digest)
                .where(RoundRow.state.in_(_GOING_ON))
            )
            return [(TaskName(name), _id(row)) for name, row in rows]

    # Rounds, read

    def round(self, id_: RoundId) -> RoundRecord:
        """The round as it stands."""
        with self._reading() as session:
            return _record(session, _round(session, id_))

    def rounds(self, task: TaskDigest, first: int = 1) -> list[RoundRecord]:
        """The task's rounds from number `first` on, in order."""
        with self._reading() as session:
            query = select(RoundRow).where(RoundRow.task == task, RoundRow.number >= first).order_by(RoundRow.number)
            return [_record(session, row) for row in session.scalars(query)]

    def numbers(self, task: TaskDigest, first: int = 1) -> list[RoundNumber]:
        """The numbers of the task's rounds from `first` on, in order."""
        with self._reading() as session:
            query = select(RoundRow.number).where(RoundRow.task == task, RoundRow.number >= first)
            return [RoundNumber(number) for number in session.scalars(query.order_by(RoundRow.number))]

    def last_round(self, task: TaskDigest) -> RoundRecord | None:
        """The task's newest round."""
        with self._reading() as session:
            row = session.scalar(
                select(RoundRow).where(RoundRow.task == task).order_by(RoundRow.number.desc()).limit(1)
            )
            return None if row is None else _record(session, row)

    def unclosed(self, task: TaskDigest) -> list[RoundRecord]:
        """The ended rounds of which not every party knows that they have ended."""
        with self._reading() as session:
            query = select(RoundRow).where(
                RoundRow.task == task, RoundRow.closed.is_(False), RoundRow.state.not_in(_GOING_ON)
            )
            return [_record(session, row) for row in session.scalars(query.order_by(RoundRow.number))]

    def result(self, id_: RoundId) -> StoredResult:
        """Where the words of a released round lie; raises WrongState in any other state."""
        with self._reading() as session:
            row = _round(session, id_)
            if row.result is None:
                raise WrongState(f"round {id_.number} is {row.state}; only a released round has a result")
            found = row.result
            return StoredResult(found.digest, found.weight_total, found.coefficient_bits, found.file)

    # Rounds, changed

    def open_round(self, id_: RoundId, terms: Terms, now: float) -> RoundRecord:
        """Begin the round."""
        with self._writing() as session:
            row = RoundRow(
                task=id_.task,
                number=id_.number,
                state=RoundState.OPEN,
                quorum=terms.quorum,
                deadline_seconds=terms.deadline_seconds,
                grace_seconds=terms.grace_seconds,
                min_accepted=terms.min_accepted,
                max_participants=terms.max_participants,
                opened_at=now,
            )
            session.add(row)
            session.flush()
            return _record(session, row)

    def enrol(self, id_: RoundId, participant: ParticipantId) -> Admission:
        """Admit `participant` to the OPEN round: slots go by the order of admission, the same one when repeated."""
        of = {"in_task": id_.task, "in_round": id_.number}
        who = {**of, "who": participant}
        with self._writing() as session:
            row = session.execute(_ADMITTING, of).first()
            if row is None:
                raise _no_round(id_)
            if row.state != RoundState.OPEN:
                raise WrongState(f"round {id_.number} is {row.state}, no longer OPEN; enrol in the next one")
            known = session.scalar(_SLOT, who)
            if known is not None:
                return Admission(Slot(known), new=False)
            slot = session.scalars(_ENROLLED, of).one()
            if slot >= row.max_participants:
                raise WrongState(
                    f"round {id_.number} is full: {slot} participants are enrolled, the task's maximum; "
                    "enrol in the next one"
                )
            session.execute(_ENROL, {**who, "in_slot": slot})
            return Admission(Slot(slot), new=True)

    def note_uploads(self, id_: RoundId, uploaded: int, quorum_since: float | None) -> bool:
        """Note how many submissions are complete at all parties; returns whether that is news."""
        with self._writing() as session:
            row = _locked(session, id_)
            news = (row.uploaded, row.quorum_since) != (uploaded, quorum_since)
            row.uploaded, row.quorum_since = uploaded, quorum_since
            return news

    def seal(self, id_: RoundId, sealed: Sequence[Submission], refused: Sequence[Refusal]) -> None:
        """OPEN to SEALED with this input set. From here on the set never changes."""
        with self._writing() as session:
            row = _locked(session, id_)
            row.state = advance(RoundState(row.state), RoundEvent.SEAL)
            row.uploaded = len(sealed)
            manifests = {s.participant: s.manifest for s in sealed}
            for enrolment in row.enrolments:
                enrolment.manifest = manifests.get(ParticipantId(enrolment.participant))
            _add_refusals(row, refused)

    def follow(self, id_: RoundId, target: RoundState) -> list[RoundState]:
        """Carry the round on to `target`, step by step; returns the states that it entered."""
        with self._writing() as session:
            row = _locked(session, id_)
            entered: list[RoundState] = []
            for step in steps(RoundState(row.state), target):
                entered.append(advance(RoundState(row.state), step))
                row.state = entered[-1]
            return entered

    def release(self, id_: RoundId, outcome: Outcome, file: str) -> None:
        """COMBINED to RELEASED: the words are in `file`."""
        with self._writing() as session:
            row = _locked(session, id_)
            row.state = advance(RoundState(row.state), RoundEvent.RELEASE)
            _add_refusals(row, outcome.refused)
            for enrolment in row.enrolments:
                enrolment.accepted = enrolment.slot in outcome.accepted
            row.openings = [
                OpeningRow(task=id_.task, round=id_.number, position=i, opening=text)
                for i, text in enumerate(outcome.openings)
            ]
            row.result = ResultRow(
                task=id_.task,
                round=id_.number,
                digest=outcome.output_digest,
                weight_total=outcome.weight_total,
                coefficient_bits=outcome.coefficient_bits,
                file=file,
            )

    def end(self, id_: RoundId, what: RoundEvent, blame: Blame, refused: Sequence[Refusal] = ()) -> None:
        """End the round without a result: `what` is FAIL or EXPIRE."""
        with self._writing() as session:
            row = _locked(session, id_)
            row.state = advance(RoundState(row.state), what)
            row.blame_reason, row.blame_who, row.blame_detail = blame.reason, blame.who, blame.detail
            _add_refusals(row, refused)

    def mark_closed(self, id_: RoundId) -> None:
        """All three parties know that the round has ended."""
        with self._writing() as session:
            _locked(session, id_).closed = True

    # The log: `coordinator.log` gives it its meaning

    def log_leaves(self, first: int) -> list[bytes]:
        """The leaf hashes of the log's entries from `first` on, in order."""
        with self._reading() as session:
            query = select(LogEntryRow.leaf).where(LogEntryRow.position >= first).order_by(LogEntryRow.position)
            return list(session.scalars(query))

    def log_entries(self, first: int, end: int) -> list[StoredEntry]:
        """The entries from `first` to before `end`, in order."""
        with self._reading() as session:
            within = (LogEntryRow.position >= first, LogEntryRow.position < end)
            return [
                _entry(row)
                for row in session.scalars(select(LogEntryRow).where(*within).order_by(LogEntryRow.position))
            ]

    def log_entry(self, id_: RoundId) -> StoredEntry | None:
        """The entry of a round."""
        with self._reading() as session:
            row = session.scalar(_entry_of(id_))
            return None if row is None else _entry(row)

    def put_log_entry(self, id_: RoundId, leaf: bytes, signatures: int, envelope: bytes) -> StoredEntry:
        """The round's entry: at the log's end if it is new; one that is there takes a better signed envelope.

        An entry whose leaf is another stays and is returned.
        """
        with self._writing() as session:
            row = session.scalar(_entry_of(id_).with_for_update())
            if row is None:
                last = session.scalar(select(func.max(LogEntryRow.position)))
                position = 0 if last is None else last + 1
                row = LogEntryRow(
                    position=position,
                    task=id_.task,
                    round=id_.number,
                    leaf=leaf,
                    signatures=signatures,
                    envelope=envelope,
                )
                session.add(row)
            elif row.leaf == leaf and row.signatures < signatures:
                row.signatures, row.envelope = signatures, envelope
            return _entry(row)

    def put_checkpoint(self, size: int, cosignatures: int, note: bytes) -> None:
        """Remember a cosigned checkpoint; of the same size, the one with more cosignatures."""
        with self._writing() as session:
            row = session.get(CheckpointRow, size)
            if row is None:
                session.add(CheckpointRow(size=size, cosignatures=cosignatures, note=note))
            elif row.cosignatures <= cosignatures:
                row.cosignatures, row.note = cosignatures, note

    def checkpoint(self, cosignatures: int = 0) -> bytes | None:
        """The newest checkpoint with at least so many cosignatures."""
        with self._reading() as session:
            enough = select(CheckpointRow.note).where(CheckpointRow.cosignatures >= cosignatures)
            return session.scalar(enough.order_by(CheckpointRow.size.desc()).limit(1))


# Admission, once for every participant of every round: made once, and of tables' columns, without the objects' ways.
_ROUNDS, _ENROLMENTS = RoundRow.__table__.c, EnrolmentRow.__table__.c
_OF_ROUND = (_ENROLMENTS.task == bindparam("in_task"), _ENROLMENTS.round == bindparam("in_round"))
_ADMITTING = (
    select(_ROUNDS.state, _ROUNDS.max_participants)
    .where(_ROUNDS.task == bindparam("in_task"), _ROUNDS.number == bindparam("in_round"))
    .with_for_update()
)
_SLOT = select(_ENROLMENTS.slot).where(*_OF_ROUND, _ENROLMENTS.participant == bindparam("who"))
_ENROLLED = select(func.count(_ENROLMENTS.slot)).where(*_OF_ROUND)
_ENROL = insert(cast("Table", EnrolmentRow.__table__)).values(
    task=bindparam("in_task"), round=bindparam("in_round"), participant=bindparam("who"), slot=bindparam("in_slot")
)

_GOING_ON = [s.value for s in RoundState if not has_ended(s)]


def _locked(session: Session, id_: RoundId) -> RoundRow:
    """The round's row, which no other transaction changes or admits to until this one has ended."""
    return _round(session, id_, lock=True)


def _round(session: Session, id_: RoundId, *, lock: bool = False) -> RoundRow:
    row = session.get(RoundRow, (id_.task, id_.number), with_for_update=lock or None)
    if row is None:
        raise _no_round(id_)
    return row


def _no_round(id_: RoundId) -> NotFound:
    return NotFound(f"the task has no round {id_.number} yet; watch its rounds or list them")


def _id(row: RoundRow) -> RoundId:
    return RoundId(TaskDigest(row.task), RoundNumber(row.number))


def _entry_of(id_: RoundId) -> Select[LogEntryRow]:
    return select(LogEntryRow).where(LogEntryRow.task == id_.task, LogEntryRow.round == id_.number)


def _entry(row: LogEntryRow) -> StoredEntry:
    id_ = RoundId(TaskDigest(row.task), RoundNumber(row.round))
    return StoredEntry(row.position, id_, row.leaf, row.signatures, row.envelope)


def _add_refusals(row: RoundRow, refused: Sequence[Refusal]) -> None:
    known = {r.participant for r in row.refusals}
    row.refusals += [
        RefusalRow(task=row.task, round=row.number, participant=r.participant, slot=r.slot, reason=r.reason)
        for r in refused
        if r.participant not in known
    ]


def _of_round(row: RoundRow, *columns: Any) -> Select[Any]:
    """Columns of the enrolments of a round. Read so, a row is a tuple; an object for each costs ten times that."""
    return select(*columns).where(EnrolmentRow.task == row.task, EnrolmentRow.round == row.number)


def _record(session: Session, row: RoundRow) -> RoundRecord:
    state = RoundState(row.state)
    columns = (EnrolmentRow.participant, EnrolmentRow.slot, EnrolmentRow.manifest, EnrolmentRow.accepted)
    enrolments = session.execute(_of_round(row, *columns).order_by(EnrolmentRow.slot)).all()
    sealed = [
        Submission(Slot(slot), ParticipantId(participant), ManifestDigest(manifest))
        for participant, slot, manifest, _ in enrolments
        if manifest is not None
    ]
    nothing_decided = state is RoundState.OPEN
    refusals, openings = ([], []) if nothing_decided else (row.refusals, row.openings)
    blame = row.blame_reason and Blame(row.blame_reason, row.blame_who or "", row.blame_detail or "")
    return RoundRecord(
        id=_id(row),
        state=state,
        terms=Terms(row.quorum, row.deadline_seconds, row.grace_seconds, row.min_accepted, row.max_participants),
        opened_at=row.opened_at,
        quorum_since=row.quorum_since,
        uploaded=row.uploaded,
        closed=row.closed,
        enrolled={ParticipantId(participant): Slot(slot) for participant, slot, _, _ in enrolments},
        sealed=tuple(sealed),
        refused=tuple(Refusal(Slot(r.slot), ParticipantId(r.participant), r.reason) for r in refusals),
        accepted=tuple(Slot(slot) for _, slot, _, accepted in enrolments if accepted),
        openings=tuple(o.opening for o in openings),
        blame=blame or None,
    )


@lru_cache(maxsize=128)  # of a content-addressed value: nothing to go stale
def _spec(canonical: bytes) -> TaskSpec:
    return TaskSpec.from_canonical(canonical)
