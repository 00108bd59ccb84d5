"""Of every secret only the SHA-256 is kept: a dump of these tables opens nothing (the secrets are 256 random bits)."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Table, Text

from penstock.store.tables import metadata

users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),  # fleet-wide: "", "viewer", "admin"
    Column("unix_user", Text),
    Column("created_at", Double, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("project", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("role", Text, nullable=False),  # "viewer", "member", "admin"
)
Index("members_by_user", members.c.user)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False),  # SHA-256 of the whole token, hex
    Column("last_four", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("node", Text),  # an agent's token: it is that node's alone
)
Index("tokens_by_user", tokens.c.user)

# The console's cookies. A session lives no longer than the token that it was opened with.
sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("token_id", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)
Index("sessions_by_token", sessions.c.token_id)

# Who has shown the whole content of which snapshot: knowing a hash is not having the files.
snapshots = Table(
    "snapshots",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("size", Double, nullable=False),  # bytes
    Column("created_at", Double, nullable=False),
)
