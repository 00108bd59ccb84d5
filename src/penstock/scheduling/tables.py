"""Every queue file that was ever applied (the newest holds), and reservations beside it."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, Table, Text

from penstock.store.tables import metadata

setups = Table(
    "scheduling_setups",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("applied_by", Text, nullable=False),
    Column("applied_at", Float, nullable=False),
)

# Windows that operators made; those of the queue file stand in its text.
reservations = Table(
    "scheduling_reservations",
    metadata,
    Column("name", Text, primary_key=True),
    Column("begins", Float, nullable=False),
    Column("ends", Float, nullable=False),
    Column("nodes", Text, nullable=False),  # JSON: names
    Column("maintenance", Boolean, nullable=False),
    Column("drain", Boolean, nullable=False),
    Column("drained", Boolean, nullable=False),  # who was to leave was told
    Column("projects", Text, nullable=False),  # JSON: whose jobs may name it; both empty: anybody's
    Column("users", Text, nullable=False),  # JSON
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

# What the scheduler of the last cycle knew that no other row says; see restart.py. ``made_for`` is the job's generation
# and attempt: what was meant for another is nothing.
promises = Table(
    "scheduling_promises",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("made_for", Text, nullable=False),
    Column("begins", Float, nullable=False),
    Column("shares", Text, nullable=False),  # JSON
)

awaited = Table(
    "scheduling_awaited",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("made_for", Text, nullable=False),
    Column("flavor", Text, nullable=False),
    Column("nodes", Text, nullable=False),  # JSON: names
    Column("victims", Text, nullable=False),  # JSON: ids
)

usage = Table(
    "scheduling_usage",
    metadata,
    Column("path", Text, primary_key=True),  # JSON: cohorts from the root, the queue, the user
    Column("decayed", Float, nullable=False),
    Column("at", Float, nullable=False),
    Column("rate", Float, nullable=False),
)

# What those who wait were first told of their start, and when they did: how good estimates are.
outlooks = Table(
    "scheduling_outlooks",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("told_at", Float, nullable=False),
    Column("begins", Float, nullable=False),  # as it was told
    Column("firm", Boolean, nullable=False),  # it was promised
    Column("began", Float),  # null: not yet
)
Index("scheduling_outlooks_by_start", outlooks.c.began)

# What of an engine's own accounting was made for the queue file, and the fields that were set last: see drift.py.
compiled = Table(
    "scheduling_compiled",
    metadata,
    Column("engine", Text, primary_key=True),
    Column("kind", Text, primary_key=True),  # engines.slurm.accounts.Kind
    Column("name", Text, primary_key=True),
    Column("account", Text, primary_key=True),  # of a user's association; else empty
    Column("fields", Text, nullable=False),  # JSON
    Column("pending", Boolean, nullable=False),  # about to be set: a server that was interrupted sets it again
)
