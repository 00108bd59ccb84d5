"""Engines for the two databases, and their errors in Penstock's words. The only file that knows driver specifics."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from penstock.base.errors import Busy, InvalidInput, LedgerBroken, OutOfSpace, PenstockError, Unavailable

BUSY_TIMEOUT_MS = 5000  # how long SQLite waits for another process's lock
CONNECT_TIMEOUT_S = 3
DATABASE_ERRORS = (DBAPIError, PoolTimeoutError, sqlite3.Error)  # what opening and reading may raise
_FOLDER_HINT = "Check that the data folder exists, has space, and belongs to the user that runs the server."
_DATABASE_HINT = (
    "Check that the database server runs and that --database-url is right; Penstock goes on once it is back."
)


def parse_url(url: str) -> URL:
    """Raises InvalidInput for anything but a SQLite file or PostgreSQL through psycopg 3."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise InvalidInput(f"{url!r} is not a database URL: write sqlite:///PATH or postgresql://HOST/NAME") from exc
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database not in (None, "", ":memory:"):
        return parsed
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    raise InvalidInput(
        f"cannot use {parsed.drivername!r} as a database: write sqlite:///PATH or postgresql://HOST/NAME"
    )


def writing_engine(url: URL) -> Engine:
    """Connections in autocommit: the writer says BEGIN, SAVEPOINT and COMMIT itself."""
    return _engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def reading_engine(url: URL) -> Engine:
    """PostgreSQL: a small pool whose transactions each see one snapshot. SQLite: the store keeps the connection."""
    if url.get_backend_name() == "sqlite":
        return _engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    return _engine(url, pool_size=4, max_overflow=8, pool_timeout=10, isolation_level="REPEATABLE READ")


def _engine(url: URL, **options: Any) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S}
    if sqlite:
        arguments = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000, "cached_statements": 256}
    try:
        engine = create_engine(url, connect_args=arguments, **options)
    except (NoSuchModuleError, ImportError) as exc:
        raise InvalidInput("PostgreSQL needs its driver", hint="Install it: pip install 'penstock[postgres]'") from exc
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
        "journal_size_limit=67108864",  # bytes of write-ahead log kept after a burst
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def driver(conn: Connection) -> Any:
    """The driver's own connection: sqlite3's and psycopg's both have ``execute``, several times cheaper than Core's."""
    return conn.connection.driver_connection


@contextmanager
def any_text(conn: Connection) -> Iterator[None]:
    """SQLite gives back any bytes that were forced into a text column, instead of failing the whole query."""
    raw = driver(conn)
    if not isinstance(raw, sqlite3.Connection):
        yield
        return
    before, raw.text_factory = raw.text_factory, lambda data: data.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        raw.text_factory = before


def lost(engine: Engine, exc: BaseException) -> bool:
    """Whether the connection to a database server is gone (never so for SQLite)."""
    if engine.dialect.name == "sqlite":
        return False
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    errors = engine.dialect.loaded_dbapi
    if not isinstance(original, errors.OperationalError | errors.InterfaceError):
        return False
    state = getattr(original, "sqlstate", None)
    return state is None or state[:2] in ("08", "57") or engine.dialect.is_disconnect(original, None, None)


def translate(engine: Engine, exc: Exception) -> Exception:
    """A database's error as one of Penstock's, always a new object; what is not the database's state stays as it is."""
    if isinstance(exc, PoolTimeoutError):
        return Busy("every connection to the database is in use")
    original = (isinstance(exc, DBAPIError) and exc.orig) or exc
    if isinstance(original, sqlite3.Error):
        return _from_sqlite(original) or exc
    if isinstance(exc, PenstockError):
        return exc
    if engine.dialect.name != "sqlite":
        return _from_postgres(engine, exc, original) or exc
    return exc


def _from_sqlite(exc: sqlite3.Error) -> PenstockError | None:
    name = getattr(exc, "sqlite_errorname", None) or ""
    found: PenstockError | None = None
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        found = OutOfSpace(f"the database could not be written: {exc} ({name}); the disk is full or failing")
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        found = Busy(f"another process holds the database's lock ({name})")
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        found = LedgerBroken(f"the database file is damaged: {exc}", hint="Restore a backup with `penstock restore`.")
    elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        found = Unavailable(
            f"the database file cannot be opened for writing: {exc}",
            hint=_FOLDER_HINT,
        )
    if found:
        found.__cause__ = exc
    return found


def _from_postgres(engine: Engine, exc: Exception, original: BaseException) -> PenstockError | None:
    found: PenstockError | None = None
    state = getattr(original, "sqlstate", None) or ""
    if state.startswith("53"):  # insufficient resources: 53100 is a full disk, 53300 too many connections
        full = state == "53100"
        found = OutOfSpace(f"the database server's disk is full: {original}") if full else Busy(str(original))
    elif state == "25006":
        found = Unavailable("the database server is a read-only standby", hint=_DATABASE_HINT)
    elif lost(engine, exc):
        said = " ".join(str(original).split()) or "the connection was lost"
        found = Unavailable(f"the database server cannot be reached: {said}", hint=_DATABASE_HINT)
    if found:
        found.__cause__ = original
    return found


def fail(engine: Engine, exc: Exception) -> NoReturn:
    """Raise ``exc`` in Penstock's words."""
    found = translate(engine, exc)
    if found is exc:
        raise exc
    raise found from exc


def make_folder(url: URL) -> None:
    """The folder of a SQLite file, private to the server's user. Raises Unavailable, OutOfSpace."""
    folder = Path(str(url.database)).absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        kind = OutOfSpace if exc.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
        raise kind(f"the data folder {folder} cannot be made: {exc.strerror}", hint=_FOLDER_HINT) from exc
