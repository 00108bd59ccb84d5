"""What others call: findings are taken in, acknowledged and ended, and the planner is woken. Light: the policy and the planner
are loaded when there is something to decide.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from penstock.base.errors import Conflict, InvalidInput
from penstock.base.ids import new_id
from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.base.text import one_line
from penstock.engines.several import Engines
from penstock.fleet import inventory
from penstock.health import kept
from penstock.health.orders import Asked, Orders, Wanted, possible
from penstock.health.rule import Trust
from penstock.health.state import Key
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx
from penstock.telemetry.push import Push
from penstock.telemetry.spec import Finding

if TYPE_CHECKING:
    from penstock.health.reconcile import Reconciler

log = logging.getLogger("penstock.health")
TOLD_S = kept.NOTED_S  # the same finding, told again by every push, is looked at so often
MOST = 256  # findings of one call
JUST_S = 30.0  # a job that ended so shortly before met it too
_PROBLEM = 200  # characters
_NEWS = frozenset({Reason.FindingRaised, Reason.FindingEnded})


@dataclass(slots=True)
class _Told:
    count: int
    severity: str
    at: float
    taken: float
    newest: float  # its newest time ...
    heard: float  # ... and when that was heard


def _nobody(_tx: Tx, _job: str, _since: float, _words: str) -> bool:
    return False


@dataclass(slots=True)
class Health:
    """Wired in server.py. ``jobs(conn, since, until)``: by node, the attempts (``project/name#2``) that run there, or ended
    after ``since``, of those that began before ``until``; ``restart(tx, attempt, since, words)``: that attempt is to start again, unless it has got on since; jobs/
    knows both. ``policy``: the site's file.
    """

    store: Store
    engines: Engines
    fence: Callable[[Tx], int]
    jobs: Callable[[Connection, float, float], Mapping[str, Sequence[str]]]
    wake: Callable[[], None]
    policy: str | None = None
    restart: Callable[[Tx, str, float, str], bool] = _nobody
    asked: Orders = field(default_factory=Orders)
    _told: dict[Key, _Told] = field(default_factory=dict)
    _doubts: dict[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)  # by node: boot, and problems
    _restored: bool = False
    _reconciler: Reconciler | None = None

    async def push(self, push: Push, findings: Sequence[Finding]) -> None:
        """From an agent; its findings are dated by the server's clock."""
        told = dict(push.sources)
        await self.take(findings, node=push.node, sources=told, boot_id=push.boot_id, sent_at=push.at)

    async def take(
        self,
        findings: Sequence[Finding],
        *,
        node: str = "",
        sources: Mapping[str, str] | None = None,
        boot_id: str = "",
        sent_at: float | None = None,
    ) -> int:
        """Findings of one node's agent (``node``, its sources with their problems, its boot and its clock), or of any program
        that finds. The same again is the same finding. Returns how many said something new; those of nodes that there are not
        are left out.
        """
        now = self.store.clock()
        await self.restored()
        for done in self.asked.told(findings[:MOST]):
            await self.checked(done)
        problems = _problems(sources or {}, sent_at, now, self.trust.clock_s)
        known = self._doubts.get(node)
        agent = (boot_id, problems) if node and (sources is not None or boot_id) else None
        fresh = [one for one in findings[:MOST] if self._says_something(one, now)]
        if not fresh and (agent is None or agent == known):
            return 0
        new, changed = await self.store.write(lambda tx: self._taken(tx, fresh, node, agent))
        if agent is not None:
            self._doubts[node] = agent
        for one in fresh:
            if one.active:
                self._told[one.key] = _Told(one.count, one.severity, one.at, now, one.at, now)
            else:
                self._told.pop(one.key, None)
        if new or changed:
            self.wake()
        return new

    def heard(self, key: Key) -> float:
        """When it was told last; 0: not since this server started."""
        told = self._told.get(key)
        return told.heard if told is not None else 0.0

    def _says_something(self, one: Finding, now: float) -> bool:
        """Every push tells again of what is so: most of it need not be looked up."""
        told = self._told.get(one.key)
        if told is None or not one.active:
            return True
        if one.at > told.newest:
            told.newest, told.heard = one.at, now
        same = (told.count, told.severity) == (one.count, one.severity)
        return not same or (one.at > told.at and now - told.taken >= TOLD_S)

    def _taken(
        self, tx: Tx, fresh: Sequence[Finding], node: str, agent: tuple[str, Mapping[str, str]] | None
    ) -> tuple[int, bool]:
        """How many findings are news, and whether something of the agent is."""
        there = {
            row.name for row in inventory.some_nodes(tx.conn, {one.node for one in fresh} | ({node} if node else set()))
        }
        changed = agent is not None and node in there and self._agent(tx, node, *agent)
        jobs = self.jobs(tx.conn, tx.now - JUST_S, math.inf) if any(one.active for one in fresh) else {}
        new, stale_s = 0, self.trust.stale_s
        for one in fresh:
            if one.node not in there:
                log.warning(
                    "a finding of %s, which is no node here: %s", one_line(one.node, 80), one_line(kept.told(one))
                )
            elif one.active:
                late = max(0.0, tx.now - one.at)
                at = one.at if abs(tx.now - one.at) <= stale_s and one.at <= tx.now else tx.now
                met = jobs if tx.now - at <= JUST_S else self.jobs(tx.conn, at - JUST_S, at)  # what began since did not
                new += kept.raised(tx, one, late_s=late, trusted_at=at, jobs=met.get(one.node, ()))
            else:
                new += kept.ended(tx, one.key, "it has ended", actor=one.source or "telemetry")
        return new, changed

    def _agent(self, tx: Tx, node: str, boot_id: str, problems: Mapping[str, str]) -> bool:
        """Whether there is something to decide of anew: not when a node that is well is heard of for the first time."""
        row = kept.watched_node(tx.conn, node)
        if row is not None and boot_id and row.boot_id and row.boot_id != boot_id:
            for one in kept.active_of(tx.conn, node):
                kept.ended(tx, one.key, "the node was started anew", actor="system")
                self._told.pop(one.key, None)
        doubts = json.dumps(dict(problems), sort_keys=True)
        if row is None or (row.boot_id, row.doubts) != (boot_id or row.boot_id, doubts):
            kept.note_node(tx, node, boot_id=boot_id or (row.boot_id if row is not None else ""), doubts=doubts)
            return row is not None or bool(problems)
        return False

    def listen(self) -> None:
        """Findings that another server has taken in are decided of here, where this one leads."""

        def heard(rows: Sequence[EventRow]) -> None:
            if any(row.reason in _NEWS for row in rows):
                self.wake()

        self.store.listen(heard)

    async def acknowledge(self, node: str, rule: str, code: str, device: str, *, actor: str) -> list[Key]:
        """It is known, and nothing is to be done about it until it comes anew. Raises NotFound."""

        def work(tx: Tx) -> list[Key]:
            found = kept.matching(tx.conn, node, rule, code, device)
            kept.acknowledge(tx, found, actor=actor)
            return found

        found = await self.store.write(work)
        self.wake()
        return found

    async def clear(self, node: str, rule: str, code: str, device: str, *, actor: str, why: str) -> list[Key]:
        """It is mended. Raises NotFound."""

        def work(tx: Tx) -> list[Key]:
            found = kept.matching(tx.conn, node, rule, code, device)
            for key in found:
                kept.ended(tx, key, why or "cleared", actor=actor)
            return found

        found = await self.store.write(work)
        for key in found:
            self._told.pop(key, None)
        self.wake()
        return found

    async def restored(self) -> None:
        """What a server before this one had asked for is asked for still."""
        if not self._restored:
            rows = await self.store.read(kept.asked_of)
            if not self._restored:
                for node, text in rows:
                    self.asked.restore(node, text)
                self._restored = True

    async def order(self, wanted: Sequence[Wanted], actor: str = "health") -> list[Asked]:
        """Ask nodes' agents for checks; those that are asked already are left out."""
        await self.restored()
        now = self.store.clock()
        asked = [one for one in (self.asked.ask(each, new_id(now, os.urandom(10)), now) for each in wanted) if one]
        if asked:
            await self.store.write(lambda tx: kept.told_of_checks(tx, asked, self.asked, actor))
        return asked

    async def ask(self, node: str, checks: Sequence[str], actor: str) -> Asked:
        """Somebody wants these checks now. Raises NotFound, InvalidInput, Conflict."""
        jobs = await self.store.read(lambda conn: self._jobs_of(conn, node))
        names = possible(checks, busy=bool(jobs))
        left = [name for name in checks if name not in names]
        if left:
            raise InvalidInput(
                f"{', '.join(left)}: wants the GPUs for itself, and {', '.join(jobs)} runs on {node}",
                hint="Ask for others, or drain the node first.",
            )
        done = await self.order([Wanted(node, names, "asked for")], actor)
        if not done:
            raise Conflict(
                f"node {node!r} is asked for checks already", hint="`penstock health check NODE` shows them."
            )
        return done[0]

    def _jobs_of(self, conn: Connection, node: str) -> Sequence[str]:
        inventory.get(conn, node)
        return self.jobs(conn, math.inf, math.inf).get(node, ())

    async def checked(self, done: Asked) -> None:
        """An order is over."""
        await self.store.write(lambda tx: kept.checked(tx, done, self.asked))
        self.wake()

    async def reconcile(self, _key: object) -> float | None:
        """For the loop."""
        if self._reconciler is None and self.policy is None and not await self.store.read(kept.anything):
            return None
        return await self.reconciler().look()

    @property
    def trust(self) -> Trust:
        """Without a site's file the policy need not be loaded for it."""
        return self.reconciler().policy.trust if self.policy is not None else Trust()

    def reconciler(self) -> Reconciler:
        """Raises InvalidInput where the site's policy cannot be read (any more)."""
        if self._reconciler is None:
            from penstock.health.reconcile import Reconciler  # noqa: PLC0415 - a fleet that is well does without

            self._reconciler = Reconciler(self)
        return self._reconciler


def _problems(sources: Mapping[str, str], sent_at: float | None, now: float, clock_s: float) -> dict[str, str]:
    """Those that have one; the clock's is under no name, since all that the node says is dated by it."""
    found = {one_line(name, 80): one_line(text, _PROBLEM) for name, text in sources.items() if text}
    if sent_at is not None and abs(sent_at - now) > clock_s:
        off = format_duration(round(abs(sent_at - now), -1))
        found[""] = f"the node's clock is {off} {'ahead' if sent_at > now else 'behind'}"
    return found
