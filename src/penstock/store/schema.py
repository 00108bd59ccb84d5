"""Which schema a database has: a new one is made whole and stamped, an older one migrated, a newer one refused."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, insert, inspect, select

from penstock.base.errors import Conflict
from penstock.store.events import CHAIN, GENESIS
from penstock.store.tables import alembic_version, heads, metadata

REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
    "0014",
    "0015",
    "0016",
    "0017",
    "0018",
    "0019",
    "0020",
)  # oldest first; the files of migrations/versions
HEAD = REVISIONS[-1]


def prepare(engine: Engine, *, migrate: bool) -> None:
    """Bring the database to ``HEAD`` or say why not (``Conflict``). Two servers starting at once take turns."""
    with engine.connect() as conn:
        conn.exec_driver_sql("BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN")
        if engine.dialect.name != "sqlite":
            conn.exec_driver_sql("SELECT pg_advisory_xact_lock(7067367)")  # any number, the same in every Penstock
        _bring_up(conn, migrate=migrate)
        conn.exec_driver_sql("COMMIT")


def revision(conn: Connection) -> str | None:
    """The revision a database is stamped with, None when it has no Penstock schema."""
    if not inspect(conn).has_table(alembic_version.name):
        return None
    return conn.execute(select(alembic_version.c.version_num)).scalar()


def _bring_up(conn: Connection, *, migrate: bool) -> None:
    found = revision(conn)
    if found == HEAD:
        return
    if found is None:
        _create(conn)
        return
    if found not in REVISIONS:
        raise Conflict(
            f"the database has schema {found!r}, made by a newer Penstock (this one knows up to {HEAD!r})",
            hint="Start the newer version, or restore a backup that this version made.",
        )
    if not migrate:
        raise Conflict(
            f"the database has schema {found!r}; this Penstock needs {HEAD!r}", hint="Run `penstock up` once."
        )
    from penstock.store.migrations.run import upgrade

    upgrade(conn)


def _create(conn: Connection) -> None:
    metadata.create_all(conn)
    alembic_version.create(conn)
    conn.execute(insert(alembic_version).values(version_num=HEAD))
    conn.execute(insert(heads).values(chain=CHAIN, seq=0, hash=GENESIS))
