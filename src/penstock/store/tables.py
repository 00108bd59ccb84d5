"""The shared ``metadata`` on which every room registers its tables, and the store's own tables.

Times are epoch seconds (double precision, which SQLite and PostgreSQL both give back bit for bit).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text

# Named by rule, so that Alembic can name what it alters on either database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite aliases the row id only for a column that is declared INTEGER.
Serial = BigInteger().with_variant(Integer(), "sqlite")

events = Table(
    "events",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=False),  # 1, 2, 3 ... without gaps
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),  # canonical JSON; part of what is hashed, hence text on both databases
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_events_subject", "project", "name", "kind", "seq"),
    Index("ix_events_kind_seq", "kind", "seq"),
    Index("ix_events_reason_seq", "reason", "seq"),
    Index("ix_events_actor_seq", "actor", "seq"),
)

heads = Table(
    "heads",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", Serial, nullable=False),
    Column("hash", String(64), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # grows at every change of holder: the fencing token
    Column("ttl_s", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("answer", Text, nullable=False),  # JSON
    Column("created_at", Double, nullable=False, index=True),
)

# Alembic's own table, kept apart: Alembic makes it too, and it is never part of a comparison of schemas.
_stamp_metadata = MetaData()
alembic_version = Table("alembic_version", _stamp_metadata, Column("version_num", String(32), primary_key=True))
