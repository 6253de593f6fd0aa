"""The coordinator's tables. Metadata only: who, when, sizes, decisions; never a share, a key or an aggregate.

A change here needs a revision in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from triskele_server.round_state import RoundState, has_ended

_IN_PROGRESS = text(f"state IN ({', '.join(repr(s.value) for s in RoundState if not has_ended(s))})")
_NAME = 64  # characters, as in triskele.ids.checked_name


class Base(DeclarativeBase):
    """The one metadata of the coordinator's database."""


class TaskRow(Base):
    """A task that was loaded once; its rounds stay readable for ever."""

    __tablename__ = "tasks"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(_NAME), index=True)
    canonical: Mapped[bytes] = mapped_column(LargeBinary)
    rounds: Mapped[int] = mapped_column(BigInteger)


class RoundRow(Base):
    """One round with the terms it was opened under. Times are Unix seconds."""

    __tablename__ = "rounds"
    __table_args__ = (
        Index("one_round_in_progress", "task", unique=True, sqlite_where=_IN_PROGRESS, postgresql_where=_IN_PROGRESS),
    )

    task: Mapped[bytes] = mapped_column(ForeignKey("tasks.digest"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    quorum: Mapped[int]
    deadline_seconds: Mapped[float] = mapped_column(Double)
    grace_seconds: Mapped[float] = mapped_column(Double)
    min_accepted: Mapped[int]
    max_participants: Mapped[int]
    opened_at: Mapped[float] = mapped_column(Double)
    quorum_since: Mapped[float | None] = mapped_column(Double)
    uploaded: Mapped[int] = mapped_column(default=0)
    closed: Mapped[bool] = mapped_column(default=False)
    blame_reason: Mapped[str | None] = mapped_column(String(64))
    blame_who: Mapped[str | None] = mapped_column(Text)
    blame_detail: Mapped[str | None] = mapped_column(Text)

    enrolments: Mapped[list[EnrolmentRow]] = relationship(order_by="EnrolmentRow.slot")
    refusals: Mapped[list[RefusalRow]] = relationship(order_by="RefusalRow.slot")
    openings: Mapped[list[OpeningRow]] = relationship(order_by="OpeningRow.position")
    result: Mapped[ResultRow | None] = relationship()


class _OfRound:
    """The key that every row below a round begins with."""

    task: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    round: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


def _round_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["task", "round"], ["rounds.task", "rounds.number"])


class EnrolmentRow(_OfRound, Base):
    """An admission; `manifest` is set when its submission is sealed, `accepted` when it was aggregated."""

    __tablename__ = "enrolments"
    __table_args__ = (_round_key(), UniqueConstraint("task", "round", "slot"))

    participant: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    slot: Mapped[int]
    manifest: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    accepted: Mapped[bool] = mapped_column(default=False)


class RefusalRow(_OfRound, Base):
    """A submission that was left out or refused, with the reason code."""

    __tablename__ = "refusals"
    __table_args__ = (_round_key(),)

    participant: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    slot: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String(64))


class OpeningRow(_OfRound, Base):
    """One entry of the round's opening ledger: "name[shape]"."""

    __tablename__ = "openings"
    __table_args__ = (_round_key(),)

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    opening: Mapped[str] = mapped_column(Text)


class ResultRow(_OfRound, Base):
    """Where a released round's words lie and how they are decoded."""

    __tablename__ = "results"
    __table_args__ = (_round_key(),)

    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    weight_total: Mapped[int] = mapped_column(BigInteger)
    coefficient_bits: Mapped[int]
    file: Mapped[str] = mapped_column(Text)


class LogEntryRow(Base):
    """One entry of the append-only log. It outlives what this database knows of its round: see coordinator/log.py."""

    __tablename__ = "log_entries"
    __table_args__ = (UniqueConstraint("task", "round"),)

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    task: Mapped[bytes] = mapped_column(LargeBinary(32))
    round: Mapped[int] = mapped_column(BigInteger)
    leaf: Mapped[bytes] = mapped_column(LargeBinary(32))  # RFC 9162 hash of the envelope's statement
    signatures: Mapped[int]
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class CheckpointRow(Base):
    """A checkpoint of the log that parties have cosigned: a signed note."""

    __tablename__ = "checkpoints"

    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cosignatures: Mapped[int]
    note: Mapped[bytes] = mapped_column(LargeBinary)
