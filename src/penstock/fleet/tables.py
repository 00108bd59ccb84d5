"""The nodes that engines offer, with what people decided about them."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Table, Text

from penstock.store.tables import metadata

nodes = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("engine", Text, nullable=False),
    Column("cpus", Float, nullable=False),
    Column("memory", Float, nullable=False),
    Column("gpus", Text, nullable=False),  # JSON: [{"id","model","memory"}]
    Column("ready", Boolean, nullable=False),
    Column("cordoned", Boolean, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("joined_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("offered_labels", Text, nullable=False, server_default="{}"),  # JSON: the engine's
    Column("labels", Text, nullable=False, server_default="{}"),  # JSON: people's; null: taken away
)
