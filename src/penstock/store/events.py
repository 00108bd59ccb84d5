"""The event log: append-only rows, each hashed over the one before it.

``hash = sha256(prev_hash + canonical JSON of [seq, at, actor, kind, project, name, subject_id, reason, message, data])``
where ``data`` is the stored text itself (canonical JSON: sorted keys, no blanks, ASCII). The first row's
``prev_hash`` is 64 zeros. The chain's end is kept apart in ``heads``, so that rows cut off the end are missed too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from sqlalchemy import Connection, Row, select

from penstock.base.quantities import format_time
from penstock.store.connect import any_text
from penstock.store.tables import events, heads

GENESIS = "0" * 64
CHAIN = "events"
_VERIFY_ROWS = 1000  # fetched at a time

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_listed = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event as it is stored; ``data`` is what its JSON reads back as."""

    seq: int
    at: float
    actor: str
    kind: str
    project: str
    name: str
    subject_id: str
    reason: str
    message: str
    data: Mapping[str, Any]
    prev_hash: str
    hash: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "at": format_time(self.at),
            "actor": self.actor,
            "kind": self.kind,
            "project": self.project,
            "name": self.name,
            "subject_id": self.subject_id,
            "reason": self.reason,
            "message": self.message,
            "data": self.data,
            "prev_hash": self.prev_hash,
            "hash": self.hash,
        }


@dataclass(frozen=True, slots=True)
class Head:
    """The chain's end: the last row's number and hash (0 and zeros when empty)."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """``rows`` that were good from the start on; ``first_bad_seq`` and ``problem`` are None when all are."""

    rows: int
    first_bad_seq: int | None
    problem: str | None
    head: Head

    @property
    def ok(self) -> bool:
        return self.problem is None


def encode_data(data: Mapping[str, Any] | None) -> str:
    """Canonical JSON. Raises TypeError / ValueError for what JSON cannot carry (NaN, objects)."""
    return _canonical(data) if data else "{}"


def chain_hash(prev_hash: str, columns: Iterable[Any]) -> str:
    """``columns`` from ``seq`` to ``data`` as stored, in the table's order."""
    return hashlib.sha256((prev_hash + _listed(list(columns))).encode()).hexdigest()


def to_event(row: Row[Any]) -> EventRow:
    """A row of the whole ``events`` table as an EventRow."""
    seq, at, actor, kind, project, name, subject_id, reason, message, data, prev_hash, digest = tuple(row)
    read = {} if data == "{}" else json.loads(data)
    return EventRow(seq, at, actor, kind, project, name, subject_id, reason, message, read, prev_hash, digest)


def load_head(conn: Connection, *, lock: bool = False) -> Head:
    """The stored end of the chain; with ``lock`` no other transaction can move it until this one ends."""
    query = select(heads.c.seq, heads.c.hash).where(heads.c.chain == CHAIN)
    row = conn.execute(query.with_for_update() if lock else query).first()
    return Head(row.seq, row.hash) if row else Head(0, GENESIS)


class Filters(TypedDict, total=False):
    """What ``page`` may be narrowed by; None is as good as nothing."""

    kind: str | None
    project: str | Collection[str] | None  # a collection: of any of them ("" is the fleet's own)
    name: str | None
    subject_id: str | None
    reason: str | Collection[str] | None
    actor: str | None


def page(
    conn: Connection,
    *,
    after: int | None = None,
    limit: int = 100,
    newest_first: bool = False,
    **filters: Unpack[Filters],
) -> list[EventRow]:
    """Events in order, at most ``limit``.

    ``after`` is the last ``seq`` of the page before: rows above it, or with ``newest_first`` rows below it.
    """
    query = select(events)
    for column, value in filters.items():
        if isinstance(value, str):
            query = query.where(events.c[column] == value)
        elif isinstance(value, Collection):
            query = query.where(events.c[column].in_(sorted(value)))
    if after is not None:
        query = query.where(events.c.seq < after if newest_first else events.c.seq > after)
    query = query.order_by(events.c.seq.desc() if newest_first else events.c.seq).limit(limit)
    return [to_event(row) for row in conn.execute(query)]


def last_seq(conn: Connection) -> int:
    """The newest event's number, 0 when there is none."""
    return load_head(conn).seq


def verify(conn: Connection) -> Verification:
    """Read the whole chain in order, a bounded number of rows at a time, and name the first bad row.

    A rewritten row that carries a matching new hash is named through its successor, whose ``prev_hash`` still
    vouches for the old one; rows cut off the end through ``heads``. Whoever can rewrite every later row and the head
    as well is only caught by comparing ``head`` with one kept elsewhere.
    """
    head = load_head(conn)
    chain = Chain()
    streaming = conn.execution_options(yield_per=_VERIFY_ROWS)
    with any_text(conn), streaming.execute(select(events).order_by(events.c.seq)) as rows:
        for row in rows:
            if not chain.add(tuple(row)):
                break
    return chain.end(head)


class Chain:
    """Verifies rows handed to it in order; remembers one row only."""

    def __init__(self) -> None:
        self.good = Head(0, GENESIS)
        self.bad: tuple[int, str] | None = None

    def add(self, row: tuple[Any, ...]) -> bool:
        """Whether the chain holds so far; after the first bad row nothing is looked at any more."""
        if self.bad is None:
            self.bad = _check_row(self.good, row)
            if self.bad is None:
                self.good = Head(row[0], row[-1])
        return self.bad is None

    def end(self, head: Head) -> Verification:
        """What came of it, ``head`` being the recorded end."""
        seq, problem = self.bad or _check_end(self.good, head)
        return Verification(self.good.seq, seq, problem, head)


def _check_row(good: Head, row: tuple[Any, ...]) -> tuple[int, str] | None:
    seq, *_, prev_hash, _digest = row
    if seq != good.seq + 1:
        return good.seq + 1, f"event {good.seq + 1} is missing (the next one there is {seq})"
    whole = _is_whole(row)
    if prev_hash == good.hash:
        return None if whole else (seq, f"event {seq} was altered: its content does not give its hash")
    if whole and good.seq:
        return good.seq, f"event {good.seq} was replaced: event {seq} follows another one"
    return seq, f"event {seq} was altered or reordered: it does not follow event {good.seq}"


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Whether a row gives its own hash. What Penstock cannot have written (NaN, bytes, NULL) gives none."""
    try:
        return bool(chain_hash(row[-2], row[:-2]) == row[-1])
    except (TypeError, ValueError):
        return False


def _check_end(good: Head, head: Head) -> tuple[int | None, str | None]:
    if head == good:
        return None, None
    if head.seq > good.seq:
        return good.seq + 1, f"events {good.seq + 1} to {head.seq} are missing from the end"
    if head.seq < good.seq:
        return head.seq + 1, f"event {head.seq + 1} lies beyond the recorded end of the chain ({head.seq})"
    return good.seq, f"event {good.seq} was replaced: the recorded end of the chain has another hash"
