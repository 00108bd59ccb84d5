"""Load, plan, apply: nodes leave service and return, through the engine first and the rows then; all of it in the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import PenstockError
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.engines.spec import Engine
from penstock.fleet import inventory
from penstock.health import kept, shipped
from penstock.health.checking import due
from penstock.health.load import Loaded, load
from penstock.health.plan import Action, Held, Plan, plan
from penstock.health.rule import Policy
from penstock.health.shared import DOMAIN, Shared
from penstock.health.state import OUT, Hold, Key, Verb
from penstock.health.tables import decisions, outages
from penstock.store import events
from penstock.store.store import Tx

if TYPE_CHECKING:
    from penstock.health.room import Health

ACTOR = "health"
EVERY_S = 10.0
WORDS_S = 60.0
_NO_NEWS = frozenset({Hold.QUIET, Hold.CHECK, Hold.SHARED})
Decision = tuple[str, str, str]  # node, verb, why it was not done; of a whole rack: its name, what it has, shared
What = Action | Held | Shared


class Reconciler:
    """``policy`` is read once, when the first finding comes."""

    def __init__(self, room: Health) -> None:
        self._room = room
        self.policy: Policy = shipped.load(room.policy)
        self._worded_at = -math.inf

    async def look(self) -> float | None:
        """Again after so many seconds; None while there is nothing to decide of. Where nothing is new nothing is written."""
        room = self._room
        loaded = await self._loaded()
        if loaded.lapsed or loaded.opened:
            await room.store.write(partial(self._tidy, loaded=loaded))
            loaded = await self._loaded()
        made = plan(loaded.nodes, self.policy, self.policy.budget, room.store.clock())
        failed: list[Held] = []
        for action in made.actions:
            held = await self._do(action, loaded) if action.verb in OUT or action.verb == Verb.RETURN else None
            failed += [held] if held is not None else []
        decided = _decided(made, failed)
        if self._news(loaded, decided):
            await room.store.write(partial(self._write_down, decided=decided, breaker=made.breaker))
        wanted = due(loaded.nodes, made.held, self.policy.checks, room.store.clock())
        await room.order(wanted)
        more = bool(made.actions or made.held or wanted or self.policy.checks.lasting) or await room.store.read(
            kept.anything
        )
        return EVERY_S if more else None

    def _news(self, loaded: Loaded, decided: Mapping[Decision, What]) -> bool:
        """Whether something is to be written. Words alone ("for 3m of 10m") are written anew once a minute."""
        known = {key: row.findings for key, row in loaded.decided.items()}
        if known != {key: json.dumps(one.findings) for key, one in decided.items()}:
            return True
        now = self._room.store.clock()
        if now - self._worded_at < WORDS_S or all(
            loaded.decided[key].reason == one.reason for key, one in decided.items()
        ):
            return False
        self._worded_at = now
        return True

    async def dry_run(self) -> Plan:
        loaded = await self._loaded()
        return plan(loaded.nodes, self.policy, self.policy.budget, self._room.store.clock())

    async def _loaded(self) -> Loaded:
        room, now = self._room, self._room.store.clock()
        return await room.store.read(
            lambda conn: load(conn, room.jobs(conn, math.inf, math.inf), self.policy, now, room.heard)
        )

    def _tidy(self, tx: Tx, loaded: Loaded) -> None:
        """What has ended by itself is ended; a node that somebody else let back is theirs."""
        self._room.fence(tx)
        for key in loaded.lapsed:
            kept.ended(tx, key, "it has not come again", actor="system")
        outages_of = kept.outages_of(tx.conn, tx.now)
        for name in loaded.opened:
            there = name in loaded.rows
            who = _opened_by(tx.conn, name) if there else "nobody: it is not there any more"
            _end_outage(tx, name, who)
            if there:  # who lets it back in knows of what was found
                kept.acknowledge(tx, [key for each in outages_of.get(name, ()) for key in each.keys], actor=who)
        kept.forget(tx)

    async def _do(self, action: Action, loaded: Loaded) -> Held | None:
        """In the engine, then in the rows."""
        name = loaded.rows[action.node].engine
        engine = self._room.engines.find(name)
        if name in loaded.read_only or engine is None:
            words = f"{action.reason}; Penstock only reads on engine {name!r}"
            return Held(action.node, action.verb, Hold.UNMANAGED, words, action.findings)
        try:
            await self._cordon(action, engine)
        except PenstockError as error:
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

    def _write_down(self, tx: Tx, decided: Mapping[Decision, What], breaker: str) -> None:
        """What is new of it is an event; what was told before is not told again."""
        self._room.fence(tx)
        known = {(row.node, row.verb, row.held): row for row in kept.decided(tx.conn)}
        for gone in known.keys() - decided.keys():
            tx.conn.execute(decisions.delete().where(_at(gone)))
            if kept.of_a_domain(known[gone]):
                words = f"{gone[1]}: it has ended; it was: {known[gone].reason}"
                tx.emit(
                    Ref(DOMAIN, gone[0]),
                    Reason.FindingEnded,
                    words,
                    actor=ACTOR,
                    data=_nodes(known[gone]) | {"what": gone[1]},
                )
        for key, one in decided.items():
            before = known.get(key)
            same = before is not None and before.findings == json.dumps(one.findings)
            if same or (before is not None and isinstance(one, Shared)):
                words, rests_on = one.reason, json.dumps(one.findings)
                tx.conn.execute(decisions.update().where(_at(key)).values(reason=words, findings=rests_on))
                continue
            if before is not None:
                tx.conn.execute(decisions.delete().where(_at(key)))
            said = {"at": tx.now, "reason": one.reason, "findings": json.dumps(one.findings)}
            tx.conn.execute(decisions.insert().values(node=key[0], verb=key[1], held=key[2], **said))
            self._tell(tx, one, breaker)

    def _tell(self, tx: Tx, one: What, breaker: str) -> None:
        if isinstance(one, Shared):
            found = {"what": one.what, "nodes": list(one.nodes), "findings": _evidence(tx.conn, one.findings)}
            words = f"{one.what}: {one.reason}; none of them is taken out for it"
            tx.emit(Ref(DOMAIN, one.domain), Reason.FindingRaised, words, actor=ACTOR, data=found)
            return
        if one.verb == Verb.OBSERVE or (isinstance(one, Held) and one.why in _NO_NEWS):
            return  # the finding's own event says so, or the rack's; and that a node takes its time is no news
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


def _decided(made: Plan, failed: Sequence[Held]) -> dict[Decision, What]:
    """By node, verb, and why it was not done."""
    undone = {(one.node, one.verb) for one in failed}
    found: dict[Decision, What] = {
        (one.node, one.verb, ""): one for one in made.actions if (one.node, one.verb) not in undone
    }
    found |= {(one.node, one.verb, one.why): one for one in (*made.held, *failed)}
    return found | {(one.domain, one.what, Hold.SHARED): one for one in made.shared}


def _evidence(conn: Connection, keys: Iterable[Key]) -> list[Mapping[str, Any]]:
    rows = (kept.row_of(conn, key) for key in keys)
    return [kept.as_json(row) for row in rows if row is not None]


def _nodes(row: Row[Any]) -> dict[str, Any]:
    return {"nodes": sorted({key[0] for key in kept.keys(row.findings)})}


def _at(key: tuple[str, str, str]) -> Any:
    node, verb, held = key
    return (decisions.c.node == node) & (decisions.c.verb == verb) & (decisions.c.held == held)


def _end_outage(tx: Tx, node: str, who: str) -> None:
    open_ = (outages.c.node == node) & outages.c.ended_at.is_(None)
    tx.conn.execute(outages.update().where(open_).values(ended_at=tx.now, ended_by=who))


def _opened_by(conn: Connection, node: str) -> str:
    told = events.page(conn, kind="Node", name=node, reason=[Reason.Uncordoned], limit=1, newest_first=True)
    return told[0].actor if told else "somebody"
