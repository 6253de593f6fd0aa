"""What a party knows of its rounds, in SQLite: never a share, only where each stands. Shares are in `ShareFiles`.

Every method is one transaction and returns or raises before the next begins; files are synced before the row that
speaks of them is committed, so after a crash the store never claims more than is on disk.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from triskele.errors import ConfigurationError, Conflict, NotFound, Unavailable, WrongState
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest
from triskele_server.metrics import party as metrics
from triskele_server.party.disk_room import DiskRoom
from triskele_server.party.job import RoundOutcome
from triskele_server.party.records import (
    SCHEMA_VERSION,
    Blame,
    Relay,
    RoundRecord,
    Submission,
    Upload,
    outcome_json,
    round_record,
    rounds,
    schema,
    upload_record,
    uploads,
)
from triskele_server.party.share_files import RoundKey
from triskele_server.privacy import NOTHING_OPENED
from triskele_server.round_state import RoundEvent, RoundState, advance, has_ended, steps

_RESTORE = (
    "restore it from the latest backup, or, to give up this party's part in all rounds so far, start it with an empty "
    "data folder"
)
_READ_AT_MOST = 64  # rounds kept in memory, each with its task
MAX_ATTEMPTS = 16  # at one round; the coordinator gives up much sooner


class PartyStore:
    """The party's SQLite file. Safe for threads; a second process on the same folder is refused."""

    def __init__(self, data: Path) -> None:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim = _claim(data)
        try:
            self._open(data)
        except BaseException:
            self._claim.close()
            raise

    def _open(self, data: Path) -> None:
        self._lock = threading.Lock()
        self._read: dict[RoundKey, RoundRecord] = {}  # rounds as they stand: every upload asks for its own
        self._engine = sa.create_engine(
            f"sqlite:///{data / 'party.db'}",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            hide_parameters=True,
        )
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("PRAGMA synchronous=FULL")
                connection.exec_driver_sql("PRAGMA foreign_keys=ON")
                version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        except sa.exc.DatabaseError as error:
            self._engine.dispose()
            raise ConfigurationError(f"{data / 'party.db'} cannot be used ({error.orig}): {_RESTORE}") from None
        if version == 0 and _was_in_use(data):
            self.close()
            raise ConfigurationError(f"{data / 'party.db'} is missing or empty in a folder that was in use: {_RESTORE}")
        if version not in (0, SCHEMA_VERSION):
            self.close()
            raise ConfigurationError(f"{data}: written by another version of Triskele (schema {version})")
        with self._transaction() as transaction:
            schema.create_all(transaction)
            transaction.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file; the folder may be used by another process then. Closing again does nothing."""
        with self._lock:
            self._engine.dispose()
            self._claim.close()

    @contextmanager
    def _transaction(self, changed: RoundKey | None = None) -> Iterator[sa.Connection]:
        """`changed`: the round whose own row the transaction may change."""
        with self._lock:
            self._check_not_closed()
            try:
                with self._engine.begin() as connection:
                    yield connection
            finally:
                if changed is not None:
                    self._read.pop(changed, None)

    def _check_not_closed(self) -> None:
        if self._claim.closed:
            raise Unavailable("this party is stopping: try again later")

    def _must_be_open(self, transaction: sa.Connection, key: RoundKey) -> None:
        """Of a round that is known it is known what it is in this transaction: another one would have forgotten it."""
        known = self._read.get(key)
        state = known.state if known else transaction.execute(_FIND_STATE, _of_round(key)).scalar_one_or_none()
        if state is None:
            raise _never_opened(key)
        if state != RoundState.OPEN:
            raise WrongState(f"{key} is {state}: it takes no uploads any more")

    def open_round(self, key: RoundKey, canonical: bytes) -> RoundRecord:
        """Open a round, or find it as it is if it was opened before. Raises WrongState for one before the newest."""
        with self._transaction(key) as transaction:
            found = _find_round(transaction, key)
            if found is not None:
                return found
            newest = transaction.execute(
                sa.select(sa.func.max(rounds.c.round)).where(rounds.c.task == key.task)
            ).scalar()
            if newest is not None and key.number < newest:
                raise WrongState(f"{key}: this party has opened round {newest} already; rounds only go forward")
            values = {"canonical": canonical, "state": RoundState.OPEN.value, "attempt": 0}
            transaction.execute(rounds.insert().values(task=key.task, round=key.number, **values))
            metrics.ROUNDS.enter(key, RoundState.OPEN)
            return RoundRecord(key, canonical, RoundState.OPEN, 0, None, None)

    def round(self, key: RoundKey) -> RoundRecord:
        """The round; raises NotFound if this party never opened it."""
        with self._lock:
            self._check_not_closed()
            if (known := self._read.get(key)) is not None:
                return known
        with self._transaction() as transaction:
            found = _round(transaction, key)
            if len(self._read) == _READ_AT_MOST:
                self._read.clear()
            self._read[key] = found
            return found

    def rounds(self) -> tuple[RoundRecord, ...]:
        """All rounds, also ended ones."""
        with self._transaction() as transaction:
            return tuple(map(round_record, transaction.execute(sa.select(rounds)).mappings()))

    def unfinished_before(self, key: RoundKey) -> tuple[RoundKey, ...]:
        """Rounds of the same task with a lower number that have not ended here."""
        ended = [state.value for state in RoundState if has_ended(state)]
        earlier = (rounds.c.task == key.task, rounds.c.round < key.number, rounds.c.state.not_in(ended))
        with self._transaction() as transaction:
            found = transaction.execute(sa.select(rounds).where(*earlier)).mappings()
            return tuple(round_record(row).key for row in found)

    def upload(self, key: RoundKey, participant: ParticipantId) -> Upload | None:
        """The participant's upload to a round, if it has begun."""
        with self._transaction() as transaction:
            return _find_upload(transaction, key, participant)

    def uploads(self, key: RoundKey) -> tuple[Upload, ...]:
        """All uploads to a round, by slot."""
        with self._transaction() as transaction:
            return _all_uploads(transaction, key)

    def count_complete(self, key: RoundKey) -> int:
        """How many uploads to a round are complete."""
        with self._transaction() as transaction:
            return int(transaction.execute(_COUNT_COMPLETE, _of_round(key)).scalar_one())

    def reserve(
        self,
        key: RoundKey,
        submission: Submission,
        heavy: ShareIndex,
        size: int = 0,
        room: DiskRoom | None = None,
        *,
        relayed: bool = False,
    ) -> Upload:
        """The upload of this manifest, new or resumed; `size` bytes of words will come, for which `room` is asked.

        `relayed`: of a new one, whether the other holder brings them.

        Raises WrongState unless the round is open or the upload complete, Conflict if another upload stands, Busy if
        there is no room.

        Which slot is whose only the coordinator knows: two participants may claim one, and sealing settles it. Were
        a claim exclusive here, anybody could keep a participant out by claiming its slot first.
        """
        with self._transaction() as transaction:
            found = _find_upload(transaction, key, submission.participant)
            if found is None or not found.complete:
                self._must_be_open(transaction, key)
            if found is not None:
                found.check_manifest(submission.manifest_digest)
                return found
            if room is not None and size:
                room.check(size, of_round=_size_of(transaction, key), promised=_promised(transaction))
            upload = Upload(
                submission.slot,
                submission.participant,
                submission.manifest_digest,
                heavy,
                size,
                0,
                complete=False,
                sealed=False,
                relayed=relayed,
            )
            transaction.execute(_NEW_UPLOAD, {"task": key.task, "round": key.number, **vars(upload)})
            return upload

    def commit_offset(self, key: RoundKey, participant: ParticipantId, committed: int) -> None:
        """State that so many bytes of the heavy share are on disk; they have been synced before."""
        with self._transaction() as transaction:
            transaction.execute(_CHANGE_INCOMPLETE, {**_of_upload(key, participant), "committed": committed})

    def complete(self, key: RoundKey, participant: ParticipantId, committed: int, relay: Relay = Relay.NONE) -> None:
        """State that both shares are on disk and match the manifest. Raises WrongState if the round has closed.

        `relay`: whether the words are to be brought to the other holder.
        """
        with self._transaction() as transaction:
            self._must_be_open(transaction, key)
            values = {"committed": committed, "complete": True, "relay": relay.value}
            transaction.execute(_CHANGE_UPLOAD, {**_of_upload(key, participant), **values})

    def seeded(self, key: RoundKey, participant: ParticipantId) -> Upload:
        """State that the participant's own part of a relayed upload is on disk: with the words it is complete."""
        return self._relayed_part(key, participant, {"seeded": True})

    def words_brought(self, key: RoundKey, participant: ParticipantId, committed: int) -> Upload:
        """State that the words of a relayed upload are on disk and match: with the participant's part all is there."""
        return self._relayed_part(key, participant, {"committed": committed})

    def _relayed_part(self, key: RoundKey, participant: ParticipantId, values: dict[str, Any]) -> Upload:
        with self._transaction() as transaction:
            self._must_be_open(transaction, key)
            of = _of_upload(key, participant)
            transaction.execute(_CHANGE_RELAYED, {**of, **values})
            transaction.execute(_CHANGE_WHOLE, {**of, "complete": True})
            found = _find_upload(transaction, key, participant)
            if found is None or not found.relayed:
                raise WrongState(f"{participant}: the other holder does not bring this upload's words any more")
            return found

    def take_direct(self, key: RoundKey, participant: ParticipantId) -> Upload:
        """The participant sends the words of a relayed upload itself, from the first: what was brought is dropped."""
        with self._transaction() as transaction:
            self._must_be_open(transaction, key)
            values = {"relayed": False, "committed": 0, "seeded": False}
            transaction.execute(_CHANGE_RELAYED_INCOMPLETE, {**_of_upload(key, participant), **values})
            found = _find_upload(transaction, key, participant)
            if found is None:
                raise WrongState(f"{participant}: this upload was thrown away; send it again")
            return found

    def relays_due(self) -> list[tuple[RoundKey, ParticipantId]]:
        """The uploads to open rounds whose words this party has still to bring to the other holder."""
        query = (
            sa.select(uploads.c.task, uploads.c.round, uploads.c.participant)
            .join(rounds, (rounds.c.task == uploads.c.task) & (rounds.c.round == uploads.c.round))
            .where(rounds.c.state == RoundState.OPEN.value, uploads.c.relay == Relay.DUE.value)
            .order_by(uploads.c.slot)
        )
        with self._transaction() as transaction:
            return [
                (RoundKey(TaskDigest(task), RoundNumber(number)), ParticipantId(participant))
                for task, number, participant in transaction.execute(query)
            ]

    def relay_ended(self, key: RoundKey, participant: ParticipantId, relay: Relay) -> None:
        """State what became of a relay that was due."""
        with self._transaction() as transaction:
            transaction.execute(_CHANGE_DUE, {**_of_upload(key, participant), "relay": relay.value})

    def reopen_upload(self, key: RoundKey, participant: ParticipantId, committed: int, *, seeded: bool = False) -> None:
        """State that only so many bytes are there, and, of a relayed upload, whether the seed: files were lost."""
        values = {"committed": committed, "complete": False, "seeded": seeded, "relay": Relay.NONE.value}
        with self._transaction() as transaction:
            transaction.execute(_CHANGE_UPLOAD, {**_of_upload(key, participant), **values})

    def discard(self, key: RoundKey, participant: ParticipantId) -> None:
        """Forget an incomplete upload; its participant may send another."""
        with self._transaction() as transaction:
            transaction.execute(_FORGET_INCOMPLETE, _of_upload(key, participant))

    def seal(self, key: RoundKey, submissions: Sequence[Submission]) -> RoundRecord:
        """Fix the input set; the same again is no error. Raises Conflict on another, WrongState if one is missing."""
        with self._transaction(key) as transaction:
            record = _round(transaction, key)
            held = {u.participant: u for u in _all_uploads(transaction, key)}
            if record.state is not RoundState.OPEN:
                sealed = {u.submission for u in held.values() if u.sealed}
                if sealed != set(submissions):
                    raise Conflict(f"{key} is {record.state} with another input set: it cannot be sealed again")
                return record
            for submission in submissions:
                upload = held.get(submission.participant)
                if upload is None or not upload.complete or upload.submission != submission:
                    raise WrongState(
                        f"slot {submission.slot}: this party holds no such submission of {submission.participant}"
                    )
            for submission in submissions:
                transaction.execute(_CHANGE_UPLOAD, {**_of_upload(key, submission.participant), "sealed": True})
            return _move(transaction, record, RoundEvent.SEAL)

    def start_attempt(self, key: RoundKey, attempt: int, affordable: int | None = None) -> bool:
        """Whether the attempt is new and begins now: their numbers only grow. Raises WrongState unless SEALED.

        A COMBINED round takes part again if another party lost the aggregate that it had not stored yet. Only so many
        rounds of a task as are `affordable` ever begin: the next one's first attempt is False too.
        """
        with self._transaction(key) as transaction:
            record = _round(transaction, key)
            if record.state is RoundState.OPEN:
                raise WrongState(f"{key} is OPEN: seal it before it runs")
            if has_ended(record.state) or attempt <= record.attempt:
                return False
            if attempt > MAX_ATTEMPTS:
                raise WrongState(f"{key}: attempt {attempt} is above this party's limit of {MAX_ATTEMPTS}")
            if affordable is not None and not record.attempt and _opened_rounds(transaction, key) >= affordable:
                return False
            transaction.execute(rounds.update().where(*_round_is(key)).values(attempt=attempt))
            return True

    def opened_rounds(self, key: RoundKey) -> int:
        """How many other rounds of the task were opened, or may have been: what its privacy budget has been spent on.

        A round counts from its first attempt on, unless this party's own computation ended it before the opening.
        """
        with self._transaction() as transaction:
            return _opened_rounds(transaction, key)

    def combined(self, key: RoundKey, outcome: RoundOutcome) -> RoundRecord:
        """Record the outcome of the computation; the output file has been synced before.

        A later attempt at a masked aggregate takes the place of an earlier one: the words differ by the mask. That of a
        public one gives the same words.
        """
        with self._transaction(key) as transaction:
            record = _round(transaction, key)
            before = record.outcome
            if before is not None and not outcome.masked and before.output_digest != outcome.output_digest:
                raise Conflict(f"{key}: another attempt gave another aggregate; only the first one counts")
            for event in steps(record.state, RoundState.COMBINED):
                record = _move(transaction, record, event)
            transaction.execute(rounds.update().where(*_round_is(key)).values(outcome=outcome_json(outcome)))
            return _round(transaction, key)

    def end(self, key: RoundKey, event: RoundEvent, blame: Blame | None) -> RoundRecord:
        """End a round; one that has ended stays as it ended. Raises WrongState if it cannot end so from its state."""
        with self._transaction(key) as transaction:
            record = _round(transaction, key)
            if has_ended(record.state):
                return record
            values = None if blame is None else {"reason": blame.reason, "who": blame.who, "detail": blame.detail}
            return _move(transaction, record, event, blame=values)

    def keep_statement(self, key: RoundKey, statement: bytes) -> bytes:
        """The statement that this party signs of the ended round: the first one that was kept, for ever."""
        with self._transaction(key) as transaction:
            where = (*_round_is(key), rounds.c.statement.is_(None))
            transaction.execute(rounds.update().where(*where).values(statement=statement))
            return _round(transaction, key).statement or statement


def _was_in_use(data: Path) -> bool:
    """Whether there are shares or a coin's key.

    A party that has them, and no memory of the rounds that it took part in, could be led through one a second time.
    """
    shares = data / "rounds"
    return (data / "coin.key").exists() or (shares.exists() and any(shares.rglob("*")))


def _claim(data: Path) -> IO[bytes]:
    """Hold the folder for this process until the file is closed or the process ends."""
    file = (data / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigurationError(f"{data}: another party process uses this data folder") from error
    return file


def _round_is(key: RoundKey) -> tuple[sa.ColumnElement[bool], ...]:
    return rounds.c.task == key.task, rounds.c.round == key.number


# The statements of an upload, made once: SQLAlchemy takes longer to make one than SQLite to run it. Values of `_of` say
# which round or upload; other values given with a change are the columns that it sets.
_IN_ROUND = (uploads.c.task == sa.bindparam("of_task"), uploads.c.round == sa.bindparam("of_round"))
_IS_UPLOAD = (*_IN_ROUND, uploads.c.participant == sa.bindparam("of_participant"))
_IS_ROUND = (rounds.c.task == sa.bindparam("of_task"), rounds.c.round == sa.bindparam("of_round"))
_FIND_ROUND = sa.select(rounds).where(*_IS_ROUND)
_FIND_STATE = sa.select(rounds.c.state).where(*_IS_ROUND)
_FIND_UPLOAD = sa.select(uploads).where(*_IS_UPLOAD)
_FIND_UPLOADS = sa.select(uploads).where(*_IN_ROUND).order_by(uploads.c.slot)
_COUNT_COMPLETE = sa.select(sa.func.count()).where(*_IN_ROUND, uploads.c.complete)
_FIND_SIZE = sa.select(sa.func.sum(uploads.c.size)).where(*_IN_ROUND)
_FIND_PROMISED = (
    sa.select(sa.func.sum(uploads.c.size - uploads.c.committed))
    .join(rounds, (rounds.c.task == uploads.c.task) & (rounds.c.round == uploads.c.round))
    .where(rounds.c.state == RoundState.OPEN.value, ~uploads.c.complete)
)
_NEW_UPLOAD = uploads.insert()
_CHANGE_UPLOAD = uploads.update().where(*_IS_UPLOAD)
_CHANGE_INCOMPLETE = _CHANGE_UPLOAD.where(~uploads.c.complete)
_CHANGE_RELAYED = _CHANGE_UPLOAD.where(uploads.c.relayed)
_CHANGE_RELAYED_INCOMPLETE = _CHANGE_RELAYED.where(~uploads.c.complete)
_CHANGE_WHOLE = _CHANGE_RELAYED.where(uploads.c.seeded, uploads.c.committed == uploads.c.size)
_CHANGE_DUE = _CHANGE_UPLOAD.where(uploads.c.relay == Relay.DUE.value)
_FORGET_INCOMPLETE = uploads.delete().where(*_IS_UPLOAD, ~uploads.c.complete)


def _of_round(key: RoundKey) -> dict[str, Any]:
    return {"of_task": key.task, "of_round": key.number}


def _of_upload(key: RoundKey, participant: ParticipantId) -> dict[str, Any]:
    return {**_of_round(key), "of_participant": participant}


def _find_round(transaction: sa.Connection, key: RoundKey) -> RoundRecord | None:
    row = transaction.execute(_FIND_ROUND, _of_round(key)).mappings().one_or_none()
    return None if row is None else round_record(row)


def _round(transaction: sa.Connection, key: RoundKey) -> RoundRecord:
    found = _find_round(transaction, key)
    if found is None:
        raise _never_opened(key)
    return found


def _never_opened(key: RoundKey) -> NotFound:
    return NotFound(f"{key} was never opened at this party")


def _opened_rounds(transaction: sa.Connection, but: RoundKey) -> int:
    query = sa.select(rounds).where(rounds.c.task == but.task, rounds.c.round != but.number, rounds.c.attempt > 0)
    begun = map(round_record, transaction.execute(query).mappings())
    return sum(record.blame is None or record.blame.reason not in NOTHING_OPENED for record in begun)


def _find_upload(transaction: sa.Connection, key: RoundKey, participant: ParticipantId) -> Upload | None:
    row = transaction.execute(_FIND_UPLOAD, _of_upload(key, participant)).mappings().one_or_none()
    return None if row is None else upload_record(row)


def _all_uploads(transaction: sa.Connection, key: RoundKey) -> tuple[Upload, ...]:
    return tuple(map(upload_record, transaction.execute(_FIND_UPLOADS, _of_round(key)).mappings()))


def _size_of(transaction: sa.Connection, key: RoundKey) -> int:
    """Bytes of words of all uploads to a round, whole: what has come and what will."""
    return int(transaction.execute(_FIND_SIZE, _of_round(key)).scalar() or 0)


def _promised(transaction: sa.Connection) -> int:
    """Bytes that uploads to open rounds have not written yet."""
    return int(transaction.execute(_FIND_PROMISED).scalar() or 0)


def _move(transaction: sa.Connection, record: RoundRecord, event: RoundEvent, **values: Any) -> RoundRecord:
    state = advance(record.state, event)
    transaction.execute(rounds.update().where(*_round_is(record.key)).values(state=state.value, **values))
    metrics.ROUNDS.enter(record.key, state)
    if record.state is RoundState.OPEN:
        unfinished = sum(not upload.complete for upload in _all_uploads(transaction, record.key))
        metrics.UPLOADS.labels("expired", "").inc(unfinished)
    return _round(transaction, record.key)
