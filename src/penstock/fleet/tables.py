"""The nodes that engines offer, with what people decided about them; and the engines that were added."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Table, Text, text

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
    Column("closed", Text, nullable=False, server_default=text("''")),  # why the site itself gives it no new work
)

# Engines that were added. What they show to their sites (tokens) lies in files of the data folder, not here.
engines = Table(
    "engines",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # slurm
    Column("options", Text, nullable=False),  # JSON: as engines/<kind>/options.py has them
    Column("managed", Boolean, nullable=False),  # whether Penstock may change nodes and quotas there
    Column("version", Text, nullable=False),  # of the site, when it was asked last
    Column("findings", Text, nullable=False),  # JSON: what works there and what does not
    Column("probed_at", Float),
    Column("added_by", Text, nullable=False),
    Column("added_at", Float, nullable=False),
)
