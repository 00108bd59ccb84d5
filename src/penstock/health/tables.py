"""Findings, outages of nodes by our own doing, what was decided of each node last, and what is known of its agent."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, Table, Text

from penstock.store.tables import metadata

findings = Table(
    "health_findings",
    metadata,
    Column("node", Text, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("code", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("at", Double, nullable=False),  # as it says itself
    Column("first_at", Double, nullable=False),
    Column("since", Double, nullable=False),  # when the server first heard of it, this time
    Column("late_s", Double, nullable=False),
    Column("message", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("times", Integer, nullable=False),  # in all
    Column("told", Integer, nullable=False),  # as its source counted last
    Column("source", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("ended_at", Double),
    Column("sightings", Text, nullable=False),  # JSON: [[at, count, [jobs]]], the newest
    Column("evidence", Text, nullable=False),  # JSON
    Column("facts", Text, nullable=False),  # JSON
    Column("acked_by", Text, nullable=False),
    Index("ix_health_findings_active", "active"),
)

outages = Table(
    "health_outages",
    metadata,
    Column("node", Text, primary_key=True),
    Column("since", Double, primary_key=True),
    Column("ended_at", Double),
    Column("verb", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("findings", Text, nullable=False),  # JSON: keys
    Column("jobs", Text, nullable=False),  # JSON: what was moved
    Column("ended_by", Text, nullable=False),  # who, or what, brought it back
)

decisions = Table(
    "health_decisions",
    metadata,
    Column("node", Text, primary_key=True),
    Column("verb", Text, primary_key=True),
    Column("held", Text, primary_key=True),  # why it was not done; empty: it was
    Column("at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("findings", Text, nullable=False),  # JSON: keys
)

watched = Table(
    "health_nodes",
    metadata,
    Column("node", Text, primary_key=True),
    Column("boot_id", Text, nullable=False),
    Column("doubts", Text, nullable=False),  # JSON: a source's name, and its problem
    Column("checked_at", Double),  # when a check of the node passed last
    Column("checks", Text),  # JSON: what its agent is asked for, and what came of it last
)
