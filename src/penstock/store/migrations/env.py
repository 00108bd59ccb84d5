"""Alembic's environment: the connection is handed over by ``run.py``, which is inside a transaction already."""

from __future__ import annotations

from alembic import context

from penstock.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    render_as_batch=True,  # SQLite alters most things only by copying the table
)
with context.begin_transaction():
    context.run_migrations()
