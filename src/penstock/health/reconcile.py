"""Load, plan, apply: nodes leave service and return, through the engine first and the rows then; all of it in the ledger."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import PenstockError
from penstock.base.reasons import Reason
from penstock.engines.spec import Engine
from penstock.fleet import inventory, registry
from penstock.fleet.labels import RACK
from penstock.health import kept, shipped
from penstock.health.judge import ended_at
from penstock.health.plan import Action, Held, Plan, plan
from penstock.health.rule import Policy
from penstock.health.state import OUT, Hold, Key, NodeHealth, Verb
from penstock.health.tables import decisions, outages
from penstock.store import events
from penstock.store.store import Tx

if TYPE_CHECKING:
    from penstock.health.room import Health

log = logging.getLogger("penstock.health")
ACTOR = "health"
EVERY_S = 10.0
HISTORY_S = 30 * 86_400.0
POOL = "pool"  # the label that says which pool a node is in; without it: its engine's


class Reconciler:
    """``policy`` is read once, when the first finding comes."""

    def __init__(self, room: Health) -> None:
        self._room = room
        self.policy: Policy = shipped.load(room.policy)

    async def look(self) -> float | None:
        """Again after so many seconds; None while there is nothing to decide of."""
        room = self._room
        await room.store.write(self._tidy)
        now = room.store.clock()
        nodes, rows, read_only = await room.store.read(self._load)
        made = plan(nodes, self.policy, self.policy.budget, now)
        failed: list[Held] = []
        for action in made.actions:
            if action.verb not in {Verb.OBSERVE, Verb.RESTART_JOB}:
                held = await self._do(action, rows[action.node], read_only=action.node in read_only)
                failed += [held] if held is not None else []
        await room.store.write(partial(self._write_down, made=made, failed=failed))
        more = bool(made.actions or made.held) or await room.store.read(kept.anything)
        return EVERY_S if more else None

    async def dry_run(self) -> Plan:
        nodes, _, _ = await self._room.store.read(self._load)
        return plan(nodes, self.policy, self.policy.budget, self._room.store.clock())

    def _load(self, conn: Connection) -> tuple[list[NodeHealth], dict[str, Row[Any]], set[str]]:
        since = self._room.store.clock() - HISTORY_S
        rows = {row.name: row for row in inventory.all_nodes(conn)}
        found, past, known = kept.recent(conn, since), kept.outages_of(conn, since), kept.watched_nodes(conn)
        jobs = self._room.jobs(conn, math.inf)
        managed = {name: registry.managed(conn, name) for name in {row.engine for row in rows.values()}}
        nodes = []
        for row in rows.values():
            mine, agent = found.get(row.name, []), known.get(row.name)
            lasting = [one for one in past.get(row.name, ()) if one.ended_at is None]
            labels = inventory.labels_of(row)
            nodes.append(
                NodeHealth(
                    row.name,
                    ready=bool(row.ready),
                    cordoned=bool(row.cordoned or row.closed),
                    cordoned_by_us=bool(row.cordoned) and bool(lasting),
                    findings=tuple(kept.finding(each) for each in mine),
                    jobs=tuple(jobs.get(row.name, ())),
                    pool=labels.get(POOL, row.engine),
                    rack=labels.get(RACK, ""),
                    out_since=lasting[-1].since if lasting and row.cordoned else None,
                    draining=bool(row.draining),
                    seen={kept.key_of(each): kept.seen(each) for each in mine},
                    doubts=json.loads(agent.doubts) if agent is not None else {},
                    outages=tuple(past.get(row.name, ())),
                    checked_at=agent.checked_at if agent is not None else None,
                )
            )
        return nodes, rows, {row.name for row in rows.values() if not managed[row.engine]}

    def _tidy(self, tx: Tx) -> None:
        """What has ended by itself is ended; a node that somebody else let back is theirs."""
        self._room.fence(tx)
        for name, mine in kept.recent(tx.conn, tx.now).items():
            for row in mine:
                one = kept.finding(row)
                node = NodeHealth(
                    name, ready=True, cordoned=False, cordoned_by_us=False, seen={one.key: kept.seen(row)}
                )
                end = ended_at(one, node, self.policy) if one.active else None
                if end is not None and end <= tx.now:
                    kept.ended(tx, one.key, "it has not come again", actor="system")
        rows = {row.name: row for row in inventory.all_nodes(tx.conn)}
        for name, mine_ in kept.outages_of(tx.conn, tx.now).items():
            there = rows.get(name)
            if there is not None and there.cordoned:
                continue
            who = "nobody: it is not there any more" if there is None else _opened_by(tx.conn, name)
            _end_outage(tx, name, who)
            if there is not None:  # who lets it back in knows of what was found
                kept.acknowledge(tx, [key for each in mine_ for key in each.keys], actor=who)
        kept.forget(tx)

    async def _do(self, action: Action, row: Row[Any], *, read_only: bool) -> Held | None:
        """In the engine, then in the rows. Advice is only told."""
        if action.verb not in OUT | {Verb.RETURN}:
            return None
        engine = self._room.engines.find(row.engine)
        if read_only or engine is None:
            words = f"{action.reason}; Penstock only reads on engine {row.engine!r}"
            return Held(action.node, action.verb, Hold.UNMANAGED, words, action.findings)
        try:
            await self._cordon(action, engine)
        except PenstockError as error:
            log.warning("%s of %s: %s", action.verb, action.node, error)
            return Held(action.node, action.verb, Hold.FAILED, f"{action.reason}; {error.message}", action.findings)
        return None

    async def _cordon(self, action: Action, engine: Engine) -> None:
        await engine.cordon(action.node, None if action.verb == Verb.RETURN else f"{action.reason} ({ACTOR})")
        await self._room.store.write(partial(self._note, action=action))

    def _note(self, tx: Tx, action: Action) -> None:
        self._room.fence(tx)
        if action.verb == Verb.RETURN:
            _end_outage(tx, action.node, ACTOR)
            inventory.uncordon(tx, action.node, actor=ACTOR, why=action.reason)
            return
        row = inventory.get(tx.conn, action.node)
        lasting = [one for one in kept.outages_of(tx.conn, tx.now).get(action.node, ()) if one.ended_at is None]
        values = {
            "verb": action.verb,
            "reason": action.reason,
            "findings": json.dumps(action.findings),
            "jobs": json.dumps(action.jobs),
        }
        if lasting:
            here = (outages.c.node == action.node) & (outages.c.since == lasting[-1].since)
            tx.conn.execute(outages.update().where(here).values(**values))
        elif not row.cordoned:  # one that a person cordoned stays theirs
            tx.conn.execute(
                outages.insert().values(node=action.node, since=tx.now, ended_at=None, ended_by="", **values)
            )
        inventory.cordon(tx, action.node, actor=ACTOR, why=action.reason, drain=action.verb == Verb.DRAIN)

    def _write_down(self, tx: Tx, made: Plan, failed: Sequence[Held]) -> None:
        """What is new of it is an event; what was told before is not told again."""
        self._room.fence(tx)
        known = {(row.node, row.verb, row.held): row for row in kept.decided(tx.conn)}
        undone = {(one.node, one.verb) for one in failed}
        done = [one for one in made.actions if (one.node, one.verb) not in undone]
        now: dict[tuple[str, str, str], Action | Held] = {(one.node, one.verb, ""): one for one in done}
        now |= {(one.node, one.verb, one.why): one for one in (*made.held, *failed)}
        for gone in known.keys() - now.keys():
            tx.conn.execute(decisions.delete().where(_at(gone)))
        for key, one in now.items():
            before = known.get(key)
            said = json.dumps(one.findings)
            if before is not None and before.findings == said:
                if before.reason != one.reason:
                    tx.conn.execute(decisions.update().where(_at(key)).values(reason=one.reason))
                continue
            if before is not None:
                tx.conn.execute(decisions.delete().where(_at(key)))
            node, verb, held = key
            tx.conn.execute(
                decisions.insert().values(node=node, verb=verb, held=held, at=tx.now, reason=one.reason, findings=said)
            )
            self._tell(tx, one, made.breaker)

    def _tell(self, tx: Tx, one: Action | Held, breaker: str) -> None:
        if one.verb == Verb.OBSERVE or (isinstance(one, Held) and one.why in {Hold.QUIET, Hold.CHECK}):
            return  # the finding's own event says so, and that a node takes its time is no news
        data: dict[str, Any] = {
            "verb": one.verb,
            "policy": self.policy.version,
            "findings": _evidence(tx.conn, one.findings),
        }
        if isinstance(one, Held):
            data |= {"held": one.why} | ({"breaker": breaker} if one.why == Hold.BREAKER else {})
            tx.emit(
                inventory.ref(one.node),
                Reason.HealthHeld,
                f"not done: {one.verb}: {one.reason}",
                actor=ACTOR,
                data=data,
            )
            return
        if one.verb == Verb.RESTART_JOB:
            data["restarted"] = [job for job in one.jobs if self._restart(tx, one, job)]
            if not data["restarted"]:
                return  # they got on all the same
        data |= {"jobs": list(one.jobs), "advise": one.advise}
        tx.emit(inventory.ref(one.node), Reason.HealthActed, f"{one.verb}: {one.reason}", actor=ACTOR, data=data)

    def _restart(self, tx: Tx, one: Action, job: str) -> bool:
        rows = [row for row in (kept.row_of(tx.conn, key) for key in one.findings) if row is not None]
        since = max((kept.seen(row).sightings[-1].at for row in rows if kept.seen(row).sightings), default=tx.now)
        return self._room.restart(tx, job, since, f"{one.reason} on node {one.node}")


def _evidence(conn: Connection, keys: Iterable[Key]) -> list[Mapping[str, Any]]:
    rows = (kept.row_of(conn, key) for key in keys)
    return [kept.as_json(row) for row in rows if row is not None]


def _at(key: tuple[str, str, str]) -> Any:
    node, verb, held = key
    return (decisions.c.node == node) & (decisions.c.verb == verb) & (decisions.c.held == held)


def _end_outage(tx: Tx, node: str, who: str) -> None:
    open_ = (outages.c.node == node) & outages.c.ended_at.is_(None)
    tx.conn.execute(outages.update().where(open_).values(ended_at=tx.now, ended_by=who))


def _opened_by(conn: Connection, node: str) -> str:
    told = events.page(conn, kind="Node", name=node, reason=[Reason.Uncordoned], limit=1, newest_first=True)
    return told[0].actor if told else "somebody"
