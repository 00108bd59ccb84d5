"""Usage (one row per attempt, node and resource) and capacity (per node and resource); what still lasts has no end."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, Table, Text

from penstock.store.tables import metadata

UNRECORDED = "not recorded"  # the queue of usage from before queues were recorded; no queue can be called so

usage = Table(
    "usage",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("resource", Text, primary_key=True),  # cost.spec.CPUS, MEMORY, or "gpus:<model>"
    Column("project", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("quantity", Double, nullable=False),  # cores, bytes, GPUs
    Column("started_at", Double, primary_key=True),  # an attempt that its engine requeued runs more than once
    Column("ended_at", Double),
    Column("queue", Text, nullable=False, server_default=UNRECORDED),
    Index("ix_usage_project_started_at", "project", "started_at"),
    Index("ix_usage_ended_at", "ended_at"),
)

capacity = Table(
    "capacity",
    metadata,
    Column("node", Text, primary_key=True),
    Column("resource", Text, primary_key=True),  # as in ``usage``
    Column("started_at", Double, primary_key=True),
    Column("quantity", Double, nullable=False),
    Column("ended_at", Double),
    Index("ix_capacity_ended_at", "ended_at"),
)

idle_usage = Table(
    "idle_usage",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("gpu", Text, primary_key=True),
    Column("started_at", Double, primary_key=True),
    Column("resource", Text, nullable=False),  # as in ``usage``
    Column("project", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("ended_at", Double),
    Column("quantity", Double),  # of a GPU: a share or an instance is a part; null: a whole one
    Index("ix_idle_usage_ended_at", "ended_at"),
)

budgets = Table(
    "budgets",
    metadata,
    Column("project", Text, primary_key=True),
    Column("amount", Text, nullable=False),  # a decimal, for a calendar month (UTC)
    Column("thresholds", Text, nullable=False),  # JSON: percentages, ascending
    Column("refuse", Boolean, nullable=False),
    Column("contact", Text, nullable=False),
    Column("told", Text, nullable=False),  # "2026-11 80": the month, and the highest threshold that was announced
)

# How far jobs that were submitted to an engine itself have been taken over.
outside = Table(
    "outside",
    metadata,
    Column("engine", Text, primary_key=True),
    Column("since", Double, nullable=False),  # what was before is none of this ledger's
    Column("known", Double, nullable=False),  # all that ended before is in it; by the cluster's clock
)
