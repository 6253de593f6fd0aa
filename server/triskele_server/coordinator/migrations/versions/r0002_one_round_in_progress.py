"""The database itself refuses a second round of a task while one is in progress, whoever opens it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = "one_round_in_progress"
IN_PROGRESS = sa.text("state IN ('OPEN', 'SEALED', 'CHECKED', 'FILTERED', 'COMBINED')")


def upgrade() -> None:
    """No row changes."""
    op.create_index(NAME, "rounds", ["task"], unique=True, sqlite_where=IN_PROGRESS, postgresql_where=IN_PROGRESS)


def downgrade() -> None:
    """No row changes."""
    op.drop_index(NAME, "rounds")
