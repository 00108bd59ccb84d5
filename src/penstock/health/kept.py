"""Findings as rows: taken in, counted, ended; and rows as what the planner is given."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import NotFound
from penstock.base.reasons import Reason
from penstock.base.text import one_line
from penstock.fleet import inventory
from penstock.health.orders import Asked, Orders
from penstock.health.state import Hold, Key, Outage, Seen, Sighting, Verb
from penstock.health.tables import decisions, findings, outages, watched
from penstock.store.store import Tx
from penstock.telemetry.push import finding_to_dict
from penstock.telemetry.spec import Finding, Severity

SIGHTINGS = 20  # kept of each finding
PER_NODE = 128  # findings kept of a node
LINES = 8  # of evidence
REMEMBER_S = 30 * 86_400.0  # how long what has ended is kept
OUTAGES_S = 180 * 86_400.0
NOTED_S = 300.0  # what is told again and again is written down anew so often


def where(key: Key) -> Any:
    node, rule, code, device = key
    c = findings.c
    return and_(c.node == node, c.rule == rule, c.code == code, c.device == device)


def row_of(conn: Connection, key: Key) -> Row[Any] | None:
    return conn.execute(select(findings).where(where(key))).first()


def raised(tx: Tx, one: Finding, *, late_s: float, trusted_at: float, jobs: Sequence[str]) -> bool:
    """A finding that is so: made, begun anew, counted, or only heard of again. Returns whether anything is new.

    ``trusted_at``: its time, or where that cannot be, the server's.
    """
    row = row_of(tx.conn, one.key)
    if row is None:
        _make_room(tx, one.node)
        _begin(tx, None, one, late_s, Sighting(trusted_at, one.count, tuple(jobs)))
        return True
    more = one.count - row.told if one.count >= row.told else one.count  # its source has counted anew
    if one.at <= row.at:
        more = 0  # the same line, read once more
    if not row.active:
        _begin(tx, row, one, late_s, Sighting(trusted_at, max(more, 1), tuple(jobs)))
        return True
    said = _said(one)
    if more <= 0:
        if one.at - row.at < NOTED_S and said["severity"] == row.severity:
            return False
        tx.conn.execute(findings.update().where(where(one.key)).values(**said, told=max(one.count, 0)))
        return bool(said["severity"] != row.severity)
    known = _with(_sightings(row.sightings), Sighting(trusted_at, more, tuple(jobs)))
    changed = {
        "told": one.count,
        "times": row.times + more,
        "sightings": _json(known),
        "late_s": min(row.late_s, late_s),
    }
    tx.conn.execute(findings.update().where(where(one.key)).values(**said, **changed))
    return True


def _begin(tx: Tx, row: Row[Any] | None, one: Finding, late_s: float, sighting: Sighting) -> None:
    """A row of its own, or the one of a time before, whose sightings stay: repeats count over days."""
    before = () if row is None else _sightings(row.sightings)
    values = _said(one) | {
        "first_at": one.first_at,
        "since": tx.now,
        "late_s": late_s,
        "times": sighting.count + (0 if row is None else row.times),
        "told": one.count,
        "active": True,
        "ended_at": None,
        "acked_by": "",
        "sightings": _json(_with(before, sighting)),
    }
    if row is None:
        node, rule, code, device = one.key
        tx.conn.execute(findings.insert().values(node=node, rule=rule, code=code, device=device, **values))
    else:
        tx.conn.execute(findings.update().where(where(one.key)).values(**values))
    if one.severity != Severity.INFO:
        data = {"finding": finding_to_dict(one), "jobs": list(sighting.jobs)}
        tx.emit(inventory.ref(one.node), Reason.FindingRaised, told(one), actor=one.source or "telemetry", data=data)


def _said(one: Finding) -> dict[str, Any]:
    return {
        "at": one.at,
        "message": one_line(one.message, 1000),
        "severity": one.severity.value,
        "source": one.source,
        "evidence": json.dumps(one.evidence[-LINES:]),
        "facts": json.dumps(dict(one.facts), sort_keys=True),
    }


def told(one: Finding) -> str:
    name = " ".join(part for part in (one.rule, one.code, f"on {one.device}" if one.device else "") if part)
    words = one_line(one.message) or one_line(" ".join(one.evidence[-1:]))
    return f"{name}: {words}" if words else name


def _make_room(tx: Tx, node: str) -> None:
    """So many of one node are kept: the oldest that has ended goes, then the least of those that are so."""
    rows = tx.conn.execute(select(findings).where(findings.c.node == node)).all()
    if len(rows) < PER_NODE:
        return
    rank = list(Severity)
    gone = min(rows, key=lambda row: (row.active, rank.index(Severity(row.severity)), row.at))
    tx.conn.execute(findings.delete().where(where((gone.node, gone.rule, gone.code, gone.device))))


def ended(tx: Tx, key: Key, words: str, *, actor: str) -> bool:
    """Returns whether it was so until now."""
    row = row_of(tx.conn, key)
    if row is None or not row.active:
        return False
    tx.conn.execute(findings.update().where(where(key)).values(active=False, ended_at=tx.now))
    if row.severity != Severity.INFO:
        one = finding(row)
        tx.emit(
            inventory.ref(key[0]),
            Reason.FindingEnded,
            f"{told(one)}; {words}",
            actor=actor,
            data={"finding": finding_to_dict(one)},
        )
    return True


def acknowledge(tx: Tx, keys: Collection[Key], *, actor: str) -> None:
    for key in keys:
        tx.conn.execute(findings.update().where(where(key)).values(acked_by=actor))


def matching(conn: Connection, node: str, rule: str, code: str, device: str) -> list[Key]:
    """The active findings of a node that these name, each only where it is given. Raises NotFound."""
    query = select(findings).where(findings.c.node == node, findings.c.active.is_(True))
    given = {"rule": rule, "code": code, "device": device}
    for name, value in given.items():
        query = query.where(findings.c[name] == value) if value else query
    found = [key_of(row) for row in conn.execute(query)]
    if not found:
        words = " ".join(value for value in given.values() if value)
        raise NotFound(
            f"node {node!r} has no active finding {words}".rstrip(), hint="`penstock health findings` lists them."
        )
    return sorted(found)


def active_of(conn: Connection, node: str) -> list[Finding]:
    rows = conn.execute(select(findings).where(findings.c.node == node, findings.c.active.is_(True)))
    return [finding(row) for row in rows]


def listed(conn: Connection, *, node: str | None, active: bool, limit: int) -> list[Row[Any]]:
    """Those that are so first, then by when they were seen last."""
    query = select(findings).order_by(findings.c.active.desc(), findings.c.at.desc(), findings.c.node, findings.c.rule)
    if node is not None:
        query = query.where(findings.c.node == node)
    if active:
        query = query.where(findings.c.active.is_(True))
    return list(conn.execute(query.limit(limit)))


def key_of(row: Row[Any]) -> Key:
    return (row.node, row.rule, row.code, row.device)


def finding(row: Row[Any]) -> Finding:
    return Finding(
        row.rule,
        row.node,
        row.at,
        row.first_at,
        row.message,
        Severity(row.severity),
        row.device,
        row.code,
        row.times,
        row.source,
        bool(row.active),
        tuple(json.loads(row.evidence)) if row.evidence != "[]" else (),
        json.loads(row.facts) if row.facts != "{}" else {},
    )


def seen(row: Row[Any]) -> Seen:
    return Seen(row.since, _sightings(row.sightings), row.late_s, row.ended_at, row.acked_by)


@lru_cache(maxsize=2048)
def known(row: Row[Any]) -> tuple[Finding, Seen]:
    """The same row is looked at every ten seconds for as long as it is so."""
    return finding(row), seen(row)


def recent(
    conn: Connection,
    since: float,
    rules: Collection[tuple[str, str]],
    nodes: Collection[str],
    around: Collection[str],
    lately: float,
) -> dict[str, list[Row[Any]]]:
    """By node: what is so; what ended after ``since``, of ``rules`` (rule, code) and of ``nodes``; and what ended after ``lately``,
    of the rules ``around``.
    """
    c = findings.c
    mine = or_(
        c.node.in_(sorted(nodes)), and_(c.rule.in_({one for one, _ in rules}), c.code.in_({one for _, one in rules}))
    )
    near = and_(c.ended_at >= lately, c.rule.in_(sorted(around)))
    found: dict[str, list[Row[Any]]] = {}
    for row in conn.execute(select(findings).where(or_(c.active.is_(True), and_(c.ended_at >= since, mine), near))):
        found.setdefault(row.node, []).append(row)
    return found


def outages_of(conn: Connection, since: float) -> dict[str, list[Outage]]:
    """By node, oldest first: those that last, and those that ended after ``since``."""
    c, found = outages.c, dict[str, list[Outage]]()
    for row in conn.execute(select(outages).where(or_(c.ended_at.is_(None), c.ended_at >= since)).order_by(c.since)):
        found.setdefault(row.node, []).append(Outage(row.since, row.ended_at, Verb(row.verb), keys(row.findings)))
    return found


def past(conn: Connection, node: str | None, limit: int) -> list[Row[Any]]:
    query = select(outages).order_by(outages.c.since.desc()).limit(limit)
    return list(conn.execute(query if node is None else query.where(outages.c.node == node)))


def decided(conn: Connection, node: str | None = None) -> list[Row[Any]]:
    query = select(decisions).order_by(decisions.c.node, decisions.c.held, decisions.c.verb)
    return list(conn.execute(query if node is None else query.where(decisions.c.node == node)))


def of_a_domain(row: Row[Any]) -> bool:
    """Whether it was decided of a rack, or another domain, and not of a node: its name and what it has."""
    return row.held == Hold.SHARED and row.verb not in set(Verb)


def watched_nodes(conn: Connection) -> dict[str, Row[Any]]:
    return {row.node: row for row in conn.execute(select(watched))}


def watched_node(conn: Connection, node: str) -> Row[Any] | None:
    return conn.execute(select(watched).where(watched.c.node == node)).first()


def note_node(tx: Tx, node: str, **values: Any) -> None:
    """What is known of a node's agent, or of its last check."""
    if tx.conn.execute(watched.update().where(watched.c.node == node).values(**values)).rowcount == 0:
        tx.conn.execute(
            watched.insert().values({"node": node, "boot_id": "", "doubts": "{}", "checked_at": None} | values)
        )


def asked_of(conn: Connection) -> list[tuple[str, str]]:
    """By node, as ``Orders.restore`` reads it."""
    query = select(watched.c.node, watched.c.checks).where(watched.c.checks.is_not(None))
    return [(row.node, row.checks) for row in conn.execute(query)]


def told_of_checks(tx: Tx, asked: Iterable[Asked], orders: Orders, actor: str) -> None:
    for one in asked:
        note_node(tx, one.node, checks=orders.as_json(one.node))
        words = f"check: {', '.join(one.order.checks)}, {one.why}"
        data = {"verb": "check", "order": one.order.id, "why": one.why}
        tx.emit(inventory.ref(one.node), Reason.HealthActed, words, actor=actor, data=data)


def checked(tx: Tx, done: Asked, orders: Orders) -> None:
    """What came of it: a node that passed has passed now."""
    passed = {"checked_at": tx.now} if done.passed else {}
    note_node(tx, done.node, checks=orders.as_json(done.node), **passed)
    word = "passed" if done.passed else "failed" if "failed" in done.results.values() else "nothing was shown"
    said = "; ".join(done.words[name] for name in done.order.checks)
    data = {"verb": "check", "order": done.order.id, "results": done.results}
    words = one_line(f"check {word}: {said}", 1000)
    tx.emit(inventory.ref(done.node), Reason.HealthActed, words, actor="check", data=data)


def anything(conn: Connection) -> bool:
    """Whether there is anything to decide of."""
    active = select(findings.c.node).where(findings.c.active.is_(True)).limit(1)
    lasting = select(outages.c.node).where(outages.c.ended_at.is_(None)).limit(1)
    return any(
        conn.execute(query).first() is not None for query in (active, lasting, select(decisions.c.node).limit(1))
    )


def forget(tx: Tx) -> None:
    """What ended long ago."""
    tx.conn.execute(findings.delete().where(findings.c.active.is_(False), findings.c.ended_at < tx.now - REMEMBER_S))
    tx.conn.execute(outages.delete().where(outages.c.ended_at < tx.now - OUTAGES_S))


def keys(text: str) -> tuple[Key, ...]:
    return tuple((one[0], one[1], one[2], one[3]) for one in json.loads(text))


def _sightings(text: str) -> tuple[Sighting, ...]:
    return tuple(Sighting(at, count, tuple(jobs)) for at, count, jobs in json.loads(text))


def _with(known: Sequence[Sighting], one: Sighting) -> list[Sighting]:
    return sorted([*known, one], key=lambda each: each.at)[-SIGHTINGS:]


def _json(known: Iterable[Sighting]) -> str:
    return json.dumps([[one.at, one.count, one.jobs] for one in known])


def as_json(row: Row[Any]) -> dict[str, Any]:
    """A finding for people and programs, with who acknowledged it and which jobs met it."""
    known = seen(row)
    jobs: Mapping[str, None] = dict.fromkeys(job for one in known.sightings for job in one.jobs)
    return finding_to_dict(finding(row)) | {"acked_by": row.acked_by, "ended_at": row.ended_at, "jobs": list(jobs)}
