"""Any sequence of what may happen to jobs on an engine that schedules itself: no attempt lives twice, usage is exactly what ran,
every job ends, and nothing is left behind there.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from penstock.base.errors import Conflict
from tests.jobs.cluster import Cluster, clusters

Step = tuple[str, int]
STEPS = (
    "submit", "submit", "gang", "array", "finish", "finish", "fail", "requeue", "cancel", "change", "lose", "restore",
    "cut", "reconnect", "restart", "wait", "wait",
)  # fmt: skip
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=14)


class Story:
    """``ran`` is the truth: CPU seconds of each attempt, from what the engine has at work whenever the clock goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ran: defaultdict[str, float] = defaultdict(float)
        self.count = 0

    async def step(self, what: str, which: int) -> None:
        act: Callable[[int], Awaitable[None]] = getattr(self, f"_{what}")
        await act(which)
        await self.cluster.settled()
        await self.check()

    async def check(self) -> None:
        cluster = self.cluster
        alive = Counter(job for job, _ in await cluster.open_attempts())
        assert all(count == 1 for count in alive.values()), alive
        there = Counter(id_.rpartition(".")[0] for id_ in cluster.c1.running())
        assert all(count == 1 for count in there.values()), there
        if cluster.c1.unknown_since is None:
            used = await cluster.usage()
            assert {id_ for id_, spans in used.items() if any(end is None for *_, end in spans)} == cluster.c1.running()

    async def used_what_ran(self) -> None:
        now = self.cluster.clock()
        used = {
            id_: sum(cpus * ((now if end is None else end) - start) for cpus, start, end in spans)
            for id_, spans in (await self.cluster.usage()).items()
        }
        assert {id_: cpu for id_, cpu in used.items() if cpu} == {id_: cpu for id_, cpu in self.ran.items() if cpu}

    def _pick(self, among: Any, which: int) -> Any:
        known = sorted(among)
        return known[which % len(known)] if known else None

    async def _submit(self, which: int) -> None:
        self.count += 1
        depends = [{"job": f"job-{self.count - 1}", "condition": "Finished"}] if which == 7 and self.count > 1 else []
        resources = {"cpus": 1 + which % 4}
        await self.cluster.run(f"job-{self.count}", resources=resources, max_restarts=which % 3, depends_on=depends)

    async def _gang(self, which: int) -> None:
        self.count += 1
        await self.cluster.run(f"job-{self.count}", nodes=2, resources={"cpus": 1 + which % 4}, max_restarts=which % 2)

    async def _array(self, which: int) -> None:
        self.count += 1
        await self.cluster.run(f"job-{self.count}", array={"count": 3, "max_parallel": 1 + which % 3})

    async def _finish(self, which: int) -> None:
        self.cluster.c1.finish(self._pick(self.cluster.c1.running(), which) or "")

    async def _fail(self, which: int) -> None:
        self.cluster.c1.finish(self._pick(self.cluster.c1.running(), which) or "", 1)

    async def _requeue(self, which: int) -> None:
        self.cluster.c1.requeue(self._pick(self.cluster.c1.running(), which) or "")

    async def _cancel(self, which: int) -> None:
        name = self._pick(await self.cluster.unfinished(), which)
        if name is not None:
            await self.cluster.cancel(name)

    async def _change(self, which: int) -> None:
        name = self._pick(await self.cluster.unfinished(), which)
        if name is not None:
            try:
                await self.cluster.change(name, env={"N": str(which)}, priority=which)
            except Conflict:
                pass

    async def _lose(self, which: int) -> None:
        await self.cluster.c1.lose(f"c1-node-{which % 2}")

    async def _restore(self, which: int) -> None:
        await self.cluster.c1.restore(f"c1-node-{which % 2}")

    async def _cut(self, _which: int) -> None:
        self.cluster.c1.cut_off("drill")

    async def _reconnect(self, _which: int) -> None:
        self.cluster.c1.reconnect()

    async def _restart(self, _which: int) -> None:
        down = [node for node in self.cluster.c1.nodes() if not node.ready]
        await self.cluster.restart()
        for node in down:
            await self.cluster.c1.lose(node.name)

    async def _wait(self, which: int) -> None:
        cluster = self.cluster
        for id_ in cluster.c1.running():
            self.ran[id_] += which * cluster.c1.cpus_of(id_)
        cluster.clock.now += which
        await cluster.a_while_passes()

    async def end(self) -> None:
        """Everything is well again; what can run does, what does not end by itself is cancelled."""
        cluster = self.cluster
        cluster.c1.reconnect()
        for node in (0, 1):
            await cluster.c1.restore(f"c1-node-{node}")
        await self.step("wait", 7)
        await self.used_what_ran()
        for name in await cluster.unfinished():
            await cluster.cancel(name)
        for _ in range(3):
            await self.step("wait", 4)
        assert await cluster.unfinished() == []
        assert (cluster.c1.waiting(), cluster.c1.running()) == ((), frozenset())
        assert await cluster.open_attempts() == []
        await self.used_what_ran()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
@given(steps)
def test_any_sequence(story: list[Step]) -> None:
    note(repr(story))

    async def main(path: Path) -> None:
        async with clusters(path) as cluster:
            told = Story(cluster)
            for what, which in story:
                await told.step(what, which)
            await told.end()

    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        asyncio.run(main(Path(folder)))
