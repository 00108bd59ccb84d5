"""The usage ledger: one row per attempt, node and resource; what is still in use has no end."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, Table, Text

from penstock.store.tables import metadata

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
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Index("ix_usage_project_started_at", "project", "started_at"),
    Index("ix_usage_ended_at", "ended_at"),
)
