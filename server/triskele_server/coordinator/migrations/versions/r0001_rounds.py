"""Tasks, rounds, and what became of each. Frozen: what coordinators made before there were revisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

schema = sa.MetaData()


def _of_round(name: str, *columns: sa.schema.SchemaItem) -> None:
    sa.Table(
        name,
        schema,
        sa.Column("task", sa.LargeBinary(32), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        *columns,
        sa.ForeignKeyConstraint(["task", "round"], ["rounds.task", "rounds.number"]),
    )


sa.Table(
    "tasks",
    schema,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, index=True),
    sa.Column("canonical", sa.LargeBinary, nullable=False),
    sa.Column("rounds", sa.BigInteger, nullable=False),
)
sa.Table(
    "rounds",
    schema,
    sa.Column("task", sa.LargeBinary(32), sa.ForeignKey("tasks.digest"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("quorum", sa.Integer, nullable=False),
    sa.Column("deadline_seconds", sa.Double, nullable=False),
    sa.Column("grace_seconds", sa.Double, nullable=False),
    sa.Column("min_accepted", sa.Integer, nullable=False),
    sa.Column("max_participants", sa.Integer, nullable=False),
    sa.Column("opened_at", sa.Double, nullable=False),
    sa.Column("quorum_since", sa.Double),
    sa.Column("uploaded", sa.Integer, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.Column("blame_reason", sa.String(64)),
    sa.Column("blame_who", sa.Text),
    sa.Column("blame_detail", sa.Text),
)
_of_round(
    "enrolments",
    sa.Column("participant", sa.String(64), primary_key=True),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("manifest", sa.LargeBinary(32)),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.UniqueConstraint("task", "round", "slot"),
)
_of_round(
    "refusals",
    sa.Column("participant", sa.String(64), primary_key=True),
    sa.Column("slot", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
)
_of_round(
    "openings",
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("opening", sa.Text, nullable=False),
)
_of_round(
    "results",
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("weight_total", sa.BigInteger, nullable=False),
    sa.Column("coefficient_bits", sa.Integer, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
)


def upgrade() -> None:
    """From an empty database."""
    schema.create_all(op.get_bind(), checkfirst=False)


def downgrade() -> None:
    """Every row is lost."""
    schema.drop_all(op.get_bind(), checkfirst=False)
