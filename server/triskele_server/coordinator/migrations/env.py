"""Run by Alembic around every migration: always within the transaction that the caller has begun."""

from __future__ import annotations

from alembic import context

from triskele_server.coordinator.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
