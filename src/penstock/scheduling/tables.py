"""Every queue file that was ever applied; the newest holds."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, Table, Text

from penstock.store.tables import metadata

setups = Table(
    "scheduling_setups",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("applied_by", Text, nullable=False),
    Column("applied_at", Float, nullable=False),
)
