"""A row for each attempt that reported steps, written when it has ended: its lives, and what its time was spent on."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, Table, Text

from penstock.store.tables import metadata

goodput = Table(
    "goodput",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("project", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("began_at", Double, nullable=False),  # its admission
    Column("ended_at", Double, nullable=False),
    Column("gpus", Double, nullable=False),
    Column("cpus", Double, nullable=False),
    Column("parts", Text, nullable=False),  # JSON: milliseconds by part; written anew when a later attempt ends
    Column("measured", Boolean, nullable=False),
    Column("lives", Text, nullable=False),  # JSON of history.to_json
    Column("told", Text, nullable=False),  # JSON: what was said of checkpoints, as saves.py keeps it
    Index("ix_goodput_ended_at", "ended_at"),
)
