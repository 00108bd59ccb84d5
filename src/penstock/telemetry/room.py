"""Pushes of nodes' agents, taken in: whose token it is, which push it is, what goes on to health, what is kept.

Nothing here is written to the database but misuse, once: findings are health's to write down, and samples stay in memory.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from penstock.base.errors import Conflict, Forbidden, InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Actor, Ref
from penstock.base.routes import Sample
from penstock.base.text import one_line
from penstock.fleet import inventory
from penstock.store.store import Store
from penstock.telemetry.history import History, Recent
from penstock.telemetry.push import Answer, Order, Push, Row
from penstock.telemetry.spec import Finding
from penstock.tenancy.plan import decide

Take = Callable[[Push, Sequence[Finding]], Awaitable[object]]  # a push, and its findings by the server's clock
SKEW_S = 5.0  # clocks that differ by more are not believed: the server's counts
LIVE_S = 60.0  # a node that was heard of so lately is heard of
MOST_NODES = 20_000  # agents that are remembered; and misuses that were told


def _none(_node: str) -> tuple[Order, ...]:
    return ()


@dataclass(slots=True)
class Heard:
    """What is known of a node's agent."""

    run: str
    before: str = ""  # the run before: what comes of it now is a second agent's, or was recorded
    sequence: int = 0
    at: float = 0.0  # by the server's clock
    offset: float = 0.0  # seconds that the node's clock is behind the server's
    version: str = ""
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Telemetry:
    """``on_findings`` is called with each push (its boot and its sources' problems count too) before it is answered: what it
    raises, the agent is told, and it sends it again. health/ adds itself.
    """

    store: Store
    history: History = field(default_factory=History)
    on_findings: list[Take] = field(default_factory=list)
    orders: Callable[[str], tuple[Order, ...]] = _none  # what a node's agent is asked to do; health/ says
    heard: OrderedDict[str, Heard] = field(default_factory=OrderedDict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("taken", "again", "series", "refused"), 0))
    findings: int = 0
    late_rows: int = 0
    _told: set[tuple[str, str]] = field(default_factory=set)

    async def take(self, actor: Actor, push: Push) -> Answer:
        """Raises Forbidden, NotFound, Conflict, InvalidInput; then nothing of the push was taken."""
        try:
            await self._allow(actor, push)
            known = await self._heard(push)
        except (Forbidden, NotFound, Conflict, InvalidInput):
            self.counts["refused"] += 1
            raise
        if push.sequence <= known.sequence:
            self.counts["again"] += 1
            return Answer(known.sequence, orders=self.orders(push.node))
        if push.rows and push.series is None and not self.history.knows(push.node, push.digest):
            self.counts["series"] += 1
            return Answer(known.sequence, series_wanted=True)
        if push.series is not None:
            self.history.learn(push.node, push.digest, push.series)
        if push.rows and len(push.rows[0].values) != self.history.width(push.node):
            raise InvalidInput("the push's rows are not as long as its series")
        now = self.store.clock()
        offset = now - push.at if abs(now - push.at) > SKEW_S else 0.0
        moved = [_moved(finding, offset, now) for finding in push.findings]
        for take in self.on_findings:
            await take(push, moved)
        self.findings += len(moved)
        self._keep(push, offset, now)
        known.sequence, known.at, known.offset = push.sequence, now, offset
        known.version, known.sources = push.version, push.sources
        self.counts["taken"] += 1
        return Answer(push.sequence, orders=self.orders(push.node))

    def series(self, node: str, since: float, until: float) -> tuple[Recent, ...]:
        """What is known of a node and its devices in that time, by the server's clock."""
        return self.history.series(node, since, until)

    async def samples(self) -> list[Sample]:
        """For /metrics."""
        now = self.store.clock()
        live = sum(1 for one in self.heard.values() if now - one.at <= LIVE_S)
        size = "Bytes that the history of nodes' samples takes in memory."
        return [
            *(
                Sample("telemetry_pushes", "counter", "Pushes of agents by what came of them.", {"outcome": key}, count)
                for key, count in self.counts.items()
            ),
            Sample("telemetry_agents", "gauge", "Nodes whose agents were heard of within a minute.", {}, live),
            Sample("telemetry_findings", "counter", "Findings that agents sent.", {}, self.findings),
            Sample("telemetry_late_rows", "counter", "Rows of samples older than what was known.", {}, self.late_rows),
            Sample("telemetry_history_series", "gauge", "Series in the history.", {}, self.history.series_count),
            Sample("telemetry_history_bytes", "gauge", size, {}, self.history.bytes),
        ]

    async def _allow(self, actor: Actor, push: Push) -> None:
        """An agent tells of its own node; an administrator of any."""
        others = {one.node for one in push.findings} - {push.node}
        if others:
            await self._misused(actor, min(others), "sent findings of")
            raise InvalidInput(f"a push of {one_line(push.node, 80)!r} has findings of other nodes")
        if actor.node == push.node or (not actor.node and decide(actor, "nodes.write")):
            return
        await self._misused(actor, push.node, "pushed telemetry of")
        raise Forbidden(
            f"{actor.user} may not tell of node {one_line(push.node, 80)!r}",
            hint="Make the node's own token: penstock token create --agent NODE",
        )

    async def _misused(self, actor: Actor, node: str, what: str) -> None:
        """In the ledger the first time; whoever has a token could fill it otherwise."""
        key = (actor.user, what if len(self._told) >= MOST_NODES else f"{what} {node[:253]}")
        if key in self._told:
            return
        self._told.add(key)
        said = f"{actor.user} {what} {one_line(node, 253)}, which it may not; told once"
        ref = Ref("Token", actor.user, id=actor.user)
        await self.store.write(
            lambda tx: tx.emit(ref, Reason.TokenMisused, said, actor=actor.user, data={"node": node})
        )

    async def _heard(self, push: Push) -> Heard:
        known = self.heard.get(push.node)
        if known is None:
            await self.store.read(lambda conn: inventory.get(conn, push.node))
            known = self.heard[push.node] = Heard(push.run)
            if len(self.heard) > MOST_NODES:
                self.history.forget(self.heard.popitem(last=False)[0])
        elif push.run == known.before:
            raise Conflict(
                "this push is of a run of the agent that a newer one has followed",
                hint="Two agents run on the node, or one's token was copied: see that there is one, and make a new token.",
            )
        elif push.run != known.run:
            known.run, known.before, known.sequence = push.run, known.run, 0
        self.heard.move_to_end(push.node)
        return known

    def _keep(self, push: Push, offset: float, now: float) -> None:
        if push.rows:
            rows = [Row(row.at + offset, row.values) for row in push.rows if row.at + offset <= now + SKEW_S]
            self.late_rows += len(push.rows) - self.history.take(push.node, rows)


def _moved(finding: Finding, offset: float, now: float) -> Finding:
    """By the server's clock, and not of the future."""
    at, first_at = min(finding.at + offset, now), min(finding.first_at + offset, now)
    return (
        finding
        if (at, first_at) == (finding.at, finding.first_at)
        else dataclasses.replace(finding, at=at, first_at=first_at)
    )
