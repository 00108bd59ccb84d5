"""New databases are made whole, older ones migrated, newer ones refused; both roads lead to one schema."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select

from penstock.base.errors import Conflict
from penstock.store import schema
from penstock.store.connect import parse_url, writing_engine
from penstock.store.migrations.run import config, upgrade
from penstock.store.store import Store
from penstock.store.tables import alembic_version, heads, metadata
from tests.stores import Clock
from tools.make_migration import import_tables

import_tables()


def description(conn: Connection) -> dict[str, Any]:
    """All that a database says of its schema, in an order of its own."""
    found = inspect(conn)
    said: dict[str, Any] = {}
    for table in sorted(set(found.get_table_names()) - {alembic_version.name}):
        said[table] = {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(table)],
            "key": found.get_pk_constraint(table),
            "indexes": sorted(map(str, found.get_indexes(table))),
            "unique": sorted(map(str, found.get_unique_constraints(table))),
            "foreign": sorted(map(str, found.get_foreign_keys(table))),
            "checks": sorted(map(str, found.get_check_constraints(table))),
        }
    return said


def migrated(url: str) -> Engine:
    """A database brought by Alembic alone from nothing to the newest schema."""
    engine = writing_engine(parse_url(url))
    with engine.connect() as conn:
        conn.exec_driver_sql("BEGIN")
        upgrade(conn)
        conn.exec_driver_sql("COMMIT")
    return engine


def both_roads_agree(url_one: str, url_two: str) -> None:
    created = writing_engine(parse_url(url_one))
    schema.prepare(created, migrate=False)
    other = migrated(url_two)
    with created.connect() as one, other.connect() as two:
        assert description(one) == description(two), "run tools/make_migration.py"
        assert schema.revision(one) == schema.revision(two) == schema.HEAD
        assert one.execute(select(heads)).all() == two.execute(select(heads)).all()
        context = MigrationContext.configure(two, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == [], "run tools/make_migration.py"


def test_both_roads_lead_to_one_schema(tmp_path: Any) -> None:
    both_roads_agree(f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/two.db")


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_both_roads_lead_to_one_schema_on_postgresql(cluster: Any) -> None:
    both_roads_agree(cluster.create_database(), cluster.create_database())


def test_the_list_of_revisions_is_that_of_the_files(sqlite_url: str) -> None:
    with writing_engine(parse_url(sqlite_url)).connect() as conn:
        files = ScriptDirectory.from_config(config(conn)).walk_revisions()
        assert tuple(reversed([file.revision for file in files])) == schema.REVISIONS


def test_a_newer_database_is_refused_and_left_alone(url: str) -> None:
    engine = writing_engine(parse_url(url))
    schema.prepare(engine, migrate=True)
    with engine.connect() as conn:
        conn.execute(alembic_version.update().values(version_num="9999"))
    with pytest.raises(Conflict, match="newer Penstock"):
        Store.open(url, clock=Clock())
    with engine.connect() as conn:
        assert schema.revision(conn) == "9999"


def test_an_older_database_is_migrated_or_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "REVISIONS", ("0000", *schema.REVISIONS))
    engine = writing_engine(parse_url(url))
    with engine.connect() as conn:  # as a release before the first would have left it: a stamp and nothing else
        alembic_version.create(conn)
        conn.execute(alembic_version.insert().values(version_num="0000"))
    with pytest.raises(Conflict, match="this Penstock needs"):
        schema.prepare(engine, migrate=False)
    migrated_to: list[str] = []

    def stand_in(conn: Connection) -> None:
        migrated_to.append(schema.HEAD)
        conn.execute(alembic_version.update().values(version_num=schema.HEAD))

    monkeypatch.setattr("penstock.store.migrations.run.upgrade", stand_in)
    schema.prepare(engine, migrate=True)
    schema.prepare(engine, migrate=True)
    assert migrated_to == [schema.HEAD]


def test_opening_a_database_does_not_import_alembic(tmp_path: Any) -> None:
    program = f"""
import sys, time
from penstock.store.store import Store
for _ in range(2):
    Store.open("sqlite:///{tmp_path}/p.db", clock=time.time)
print("alembic" in sys.modules, "psycopg" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
