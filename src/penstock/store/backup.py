"""A portable dump: a zip of one JSON-lines file per table and a manifest; the same from SQLite and PostgreSQL.

``manifest.json`` holds ``{"format": 1, "schema", "taken_at", "head": {"seq", "hash"}, "tables": {name: {"columns",
"rows", "sha256"}}}``; each line of ``tables/<name>.jsonl`` is one row's values in the columns' order. Leases are left
out: they speak of servers that run, not of what is kept.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sqlalchemy import Connection, Table, delete, func, insert, inspect, select, text

from penstock.base.errors import Conflict, InvalidInput, LedgerBroken
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store import events, schema
from penstock.store.events import Head
from penstock.store.store import Store, Tx
from penstock.store.tables import alembic_version, heads, leases, metadata
from penstock.store.tables import events as events_table

FORMAT = 1
_MANIFEST = "manifest.json"
_BATCH = 500  # rows read or written at a time
_LINE_LIMIT = 64 << 20  # bytes of one row
_MANIFEST_LIMIT = 1 << 20

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a compression that zipfile does not know
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Contents:
    """What a dump's manifest says of one table."""

    columns: tuple[str, ...]
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    schema: str
    taken_at: float
    head: Head
    tables: dict[str, Contents]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema": self.schema,
            "taken_at": self.taken_at,
            "head": {"seq": self.head.seq, "hash": self.head.hash},
            "tables": {
                name: {"columns": list(found.columns), "rows": found.rows, "sha256": found.sha256}
                for name, found in self.tables.items()
            },
        }


async def dump(store: Store, file: IO[bytes], *, actor: str) -> Manifest:
    """Write a dump of one moment to ``file`` while the store is in use. An event tells of it afterwards."""
    taken_at = store.clock()
    manifest = await store.read_long(lambda conn: write_dump(conn, file, taken_at))
    rows = sum(found.rows for found in manifest.tables.values())
    message = f"{rows} rows, events up to {manifest.head.seq}"
    await store.write(lambda tx: tx.emit(_SUBJECT, Reason.BackupTaken, message, actor=actor))
    return manifest


async def restore(store: Store, file: IO[bytes], *, actor: str) -> Manifest:
    """Put a dump in the place of all that the database holds, in one transaction, after all of it was verified.

    Raises InvalidInput (no dump, damaged), Conflict (of another schema), LedgerBroken (its chain does not hold).
    """
    manifest = await asyncio.to_thread(check_dump, file)

    def apply(tx: Tx) -> None:
        _apply(tx.conn, file, manifest)
        tx.replace_chain(manifest.head)
        message = f"events up to {manifest.head.seq} restored"
        tx.emit(_SUBJECT, Reason.BackupRestored, message, actor=actor, data={"taken_at": manifest.taken_at})

    await store.write(apply, alone=True)
    return manifest


_SUBJECT = Ref("Store", "store")


def write_dump(conn: Connection, file: IO[bytes], taken_at: float) -> Manifest:
    """Stream every table of one snapshot into ``file``, a bounded number of rows at a time."""
    tables = _dumped()
    strange = set(inspect(conn).get_table_names()) - set(metadata.tables) - {alembic_version.name}
    if strange:
        raise Conflict(f"the database holds tables that this Penstock does not know: {', '.join(sorted(strange))}")
    found: dict[str, Contents] = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for table in tables:
            with archive.open(_entry(table), "w", force_zip64=True) as out:
                found[table.name] = _write_table(conn, table, out)
        stamped = schema.revision(conn) or ""
        manifest = Manifest(stamped, taken_at, events.load_head(conn), found)
        archive.writestr(_MANIFEST, json.dumps(manifest.to_dict(), indent=1))
    return manifest


def check_dump(file: IO[bytes]) -> Manifest:
    """Read all of a dump and compare it with its manifest, this Penstock's schema and its own chain of hashes."""
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _read_manifest(archive)
            _check_schema(manifest)
            for table in _dumped():
                _check_table(archive, table, manifest)
    except _DAMAGE as exc:
        raise InvalidInput(f"this is not a backup, or it is damaged: {exc}") from exc
    return manifest


def _dumped() -> Sequence[Table]:
    return [table for table in metadata.sorted_tables if table is not leases]


def _entry(table: Table) -> str:
    return f"tables/{table.name}.jsonl"


def _write_table(conn: Connection, table: Table, out: IO[bytes]) -> Contents:
    digest, rows = hashlib.sha256(), 0
    result = conn.execution_options(yield_per=_BATCH).execute(select(table).order_by(*table.primary_key.columns))
    for batch in result.partitions():
        data = "".join(_encode([_portable(value) for value in row]) + "\n" for row in batch).encode("ascii")
        digest.update(data)
        rows += len(batch)
        out.write(data)
    return Contents(tuple(column.name for column in table.columns), rows, digest.hexdigest())


def _portable(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"a {type(value).__name__} has no place in a backup")


def _native(value: Any) -> Any:
    return base64.b64decode(value["base64"], validate=True) if isinstance(value, dict) else value


def _read_manifest(archive: zipfile.ZipFile) -> Manifest:
    with archive.open(_MANIFEST) as file:
        said = json.loads(file.read(_MANIFEST_LIMIT))
    if said["format"] != FORMAT:
        raise InvalidInput(f"the backup has format {said['format']}; this Penstock reads {FORMAT}")
    tables = {
        name: Contents(tuple(found["columns"]), int(found["rows"]), found["sha256"])
        for name, found in said["tables"].items()
    }
    return Manifest(
        said["schema"], float(said["taken_at"]), Head(int(said["head"]["seq"]), said["head"]["hash"]), tables
    )


def _check_schema(manifest: Manifest) -> None:
    if manifest.schema != schema.HEAD:
        raise Conflict(
            f"the backup has schema {manifest.schema!r}, this Penstock {schema.HEAD!r}",
            hint="Restore it with the version that made it, then start this one on that database.",
        )
    expected = {table.name: tuple(column.name for column in table.columns) for table in _dumped()}
    if {name: found.columns for name, found in manifest.tables.items()} != expected:
        raise InvalidInput("the backup's tables are not those of its schema")


def _check_table(archive: zipfile.ZipFile, table: Table, manifest: Manifest) -> None:
    said = manifest.tables[table.name]
    digest, rows = hashlib.sha256(), 0
    chain = events.Chain() if table is events_table else None
    for line in _lines(archive, table):
        digest.update(line)
        rows += 1
        values = json.loads(line)
        if len(values) != len(said.columns):
            raise InvalidInput(f"the backup is damaged: row {rows} of {table.name} has {len(values)} values")
        if chain is not None:
            chain.add(tuple(values))
        if table is heads and values != [events.CHAIN, manifest.head.seq, manifest.head.hash]:
            raise LedgerBroken("the backup's recorded end of the chain is not its manifest's")
    if rows != said.rows or digest.hexdigest() != said.sha256:
        raise InvalidInput(f"the backup is damaged: {table.name} is not what the manifest says")
    if chain is not None:
        found = chain.end(manifest.head)
        if not found.ok:
            raise LedgerBroken(f"the backup's ledger is broken: {found.problem}", hint="Use an earlier backup.")


def _lines(archive: zipfile.ZipFile, table: Table) -> Iterator[bytes]:
    with archive.open(_entry(table)) as file:
        while line := file.readline(_LINE_LIMIT):
            if not line.endswith(b"\n"):
                raise InvalidInput(f"the backup is damaged: a row of {table.name} is cut off or too long")
            yield line


def _apply(conn: Connection, file: IO[bytes], manifest: Manifest) -> None:
    tables = _dumped()
    for table in reversed(tables):
        conn.execute(delete(table))
    with zipfile.ZipFile(file) as archive:
        for table in tables:
            columns = manifest.tables[table.name].columns
            batch: list[dict[str, Any]] = []
            for line in _lines(archive, table):
                batch.append(dict(zip(columns, map(_native, json.loads(line)), strict=True)))
                if len(batch) == _BATCH:
                    conn.execute(insert(table), batch)
                    batch = []
            if batch:
                conn.execute(insert(table), batch)
            _advance_sequence(conn, table)


def _advance_sequence(conn: Connection, table: Table) -> None:
    """PostgreSQL numbers rows from a sequence of its own: it must go on after the restored ones."""
    column = table.autoincrement_column
    if conn.dialect.name == "sqlite" or column is None:
        return
    named = {"table": f'"{table.name}"', "column": column.name}
    sequence = conn.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), named).scalar()
    if sequence is not None:
        highest = conn.execute(select(func.max(column))).scalar()
        conn.execute(select(func.setval(sequence, highest or 1, highest is not None)))
