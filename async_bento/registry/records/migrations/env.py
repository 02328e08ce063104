"""Alembic runs this file, on the connection that `records/database.py` passes."""

from __future__ import annotations

from alembic import context

from async_bento.registry.records.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
