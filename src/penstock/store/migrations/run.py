"""Alembic, run on a connection whose transaction the caller holds. Imported only when something is to be migrated."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def upgrade(conn: Connection, revision: str = "head") -> None:
    """Bring the schema up to ``revision``."""
    command.upgrade(config(conn), revision)


def config(conn: Connection) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = conn
    return made
