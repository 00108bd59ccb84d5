"""A real store, a simulated fleet and the room between them, in their own time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from penstock.base.errors import Conflict
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.base.routes import Call
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet
from penstock.fleet import inventory
from penstock.health import routes
from penstock.health.room import Health
from penstock.store import events
from penstock.store.store import Store, Tx
from penstock.telemetry.spec import Finding
from tests.stores import Clock, opened

HOUR = 3600.0
TRAIN = "default/train#1"


class Site(SimulatedEngine):
    """Notes what it is told; ``refuses``: it does not answer."""

    refuses = False

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        if self.refuses:
            raise Conflict("the site does not answer")
        self.told = [*getattr(self, "told", ()), (node, why is None)]


@dataclass
class Rig:
    store: Store
    clock: Clock
    health: Health
    site: Site
    jobs: dict[str, list[str]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)  # of attempts
    woken: int = 0
    restarted: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [offer.name for offer in self.site.nodes()]

    def xid(self, code: str = "79", node: int = 0, **more: Any) -> Finding:
        now = self.clock.now
        made = Finding("Xid", self.names[node], now, now, "words", device="GPU-1", code=code, source="kmsg")
        return replace(made, **more)

    async def told(self, reason: Reason) -> list[str]:
        rows = await self.store.read(lambda conn: events.page(conn, reason=[reason], limit=500))
        return [f"{row.name}: {row.message}" for row in rows]

    async def state(self, node: int = 0) -> tuple[bool, bool]:
        row = await self.store.read(lambda conn: inventory.get(conn, self.names[node]))
        return bool(row.cordoned), bool(row.draining)

    async def answer(self, number: int, **asked: Any) -> Any:
        endpoint = routes.endpoints(self.health)[number]
        body = endpoint.body(**asked) if endpoint.body is not None else None
        query = endpoint.query() if endpoint.query is not None else None
        path = {"name": self.names[0]}
        return await endpoint.handler(Call(Actor("ada", "admin"), path, query, body))


def checked(tmp_path: Path, test: Callable[[Rig], Awaitable[None]], nodes: int = 10, policy: str = "") -> None:
    async def run() -> None:
        clock = Clock()
        site = Site(Fleet(nodes, 8), clock=clock)
        file = tmp_path / "policy.yaml"
        file.write_text(policy)
        async with opened(f"sqlite:///{tmp_path}/p.db", clock) as store:
            await store.write(lambda tx: inventory.sync(tx, site.name, site.nodes()))

            def jobs(_conn: Connection, _since: float, until: float) -> Mapping[str, Sequence[str]]:
                return {node: [one for one in of if rig.began.get(one, 0) <= until] for node, of in rig.jobs.items()}

            def restart(_tx: Tx, attempt: str, _since: float, _words: str) -> bool:
                rig.restarted.append(attempt)
                return True

            def wake() -> None:
                rig.woken += 1

            health = Health(store, Engines(site), lambda _tx: 1, jobs, wake, str(file) if policy else None, restart)
            rig = Rig(store, clock, health, site)
            await test(rig)

    asyncio.run(run())
