"""What carries the requests, as the control plane has it: the gateway and the activator, both of which outlive it; what they are
told, and what they have counted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.base.errors import PenstockError, Unavailable
from penstock.serving.gateway.publish import Publisher
from penstock.serving.gateway.spec import Gateway
from penstock.serving.orders import Orders
from penstock.serving.past import Past
from penstock.serving.place import Place
from penstock.serving.shadowed import Shadowed
from penstock.serving.sidecars import Activator, Comparator
from penstock.serving.state import Counts, Histogram

log = logging.getLogger("penstock.serving")
Key = tuple[str, str, int]
WINDOW_S = 60.0  # that times of answers are taken over
RECENT_S = 10.0  # that what a replica does is learned from
HEARD_S = 2.0  # what the activator said longer ago is not so any more
NOTHING = Counts()


@dataclass(frozen=True, slots=True)
class Load:
    """Of one service, all of its versions: in it now, come since the last look, and how long answers took of late. ``recent``:
    what was answered in the last ``recent_s``.
    """

    active: float = 0.0
    arrived: float = 0.0
    seconds: float = 1.0
    latency: Histogram = field(default_factory=Histogram)
    recent: Counts = NOTHING
    recent_s: float = 0.0


class Traffic:
    """``woken(project, name)`` is called when somebody waits for a first replica; ``restarted`` when Envoy had died."""

    def __init__(
        self, place: Place, woken: Callable[[str, str], None], restarted: Callable[[str], Awaitable[None]]
    ) -> None:
        home = Path(place.folder)
        self._place = place
        self.publisher = Publisher(home / "gateway", restarted=restarted)
        self.activator = Activator(home / "sidecars")
        self.comparator = Comparator(home / "sidecars")
        self.counts: Mapping[Key, Counts] = {}
        self.history = Past()
        self.trouble = ""  # why the gateway does not go by what it was told last
        self._held: dict[tuple[str, str], tuple[float, int]] = {}  # when the activator said so, and how many
        self._woken = woken
        self._past: deque[tuple[float, Mapping[Key, Counts]]] = deque()
        self._looked: dict[tuple[str, str], tuple[float, float]] = {}  # when, and requests that had come by then
        self._orders: dict[tuple[str, str], Orders] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._comparing: asyncio.Task[None] | None = None  # while a service has a version in shadow

    async def start(self) -> None:
        """Adopt what runs, start what does not."""
        if not self._tasks:
            self._orders.clear()
            await self.publisher.start()
            if self.publisher.process.running is None:
                _must_be_free(self._place.host, self._place.port)
            self._tasks = [asyncio.ensure_future(self.activator.keep()), asyncio.ensure_future(self._hear())]

    async def close(self) -> None:
        await self._let_go()
        await self.publisher.close()

    async def _stop(self) -> None:
        """The last service is gone."""
        await self._let_go()
        for key in self._orders:
            self.activator.orders.drop(*key)
            self.comparator.forget(*key)
            self.history.drop(*key)
        self._orders.clear()
        await self._end_comparing()
        await self.publisher.stop()
        await self.activator.stop()

    async def _end_comparing(self) -> None:
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.gather(self._comparing, return_exceptions=True)
            self._comparing = None
        await self.comparator.stop()

    async def _let_go(self) -> None:
        tasks = [*self._tasks, *([self._comparing] if self._comparing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._comparing = None
        self._tasks = []

    async def publish(self, told: Gateway, orders: Mapping[tuple[str, str], Orders]) -> None:
        """Returns when requests go so. The activator is told first: it may be asked as soon as Envoy knows. Without a service
        nothing runs.
        """
        try:
            if not told.services:
                await self._stop()
            else:
                await self._tell(told, orders)
        except PenstockError as error:
            self.trouble = "; ".join([error.message, *map(str, error.details)])
            raise
        self.trouble = ""

    def problem(self, project: str, name: str) -> str:
        """What of a service, or of the whole gateway, is not as it is wanted; empty where all is."""
        place = f"services.{project}/{name}"
        own = [one for one in self.publisher.left_out if f"{one.path}.".startswith(f"{place}.")]
        return self.trouble or "; ".join(one.message for one in own)

    async def _tell(self, told: Gateway, orders: Mapping[tuple[str, str], Orders]) -> None:
        await self.start()
        compares = any(one.comparator is not None for one in told.services)
        if compares and self._comparing is None:
            self._comparing = asyncio.ensure_future(self.comparator.keep())
        for key, one in orders.items():
            if self._orders.get(key) != one:
                self.activator.orders.put(one)
                self._orders[key] = one
        await self.publisher.publish(told)
        for key in [key for key in self._orders if key not in orders]:
            self.activator.orders.drop(*key)
            self.comparator.forget(*key)
            del self._orders[key]
            self._held.pop(key, None)
            self.history.drop(*key)
        if not compares and self._comparing is not None:
            await self._end_comparing()

    async def count(self, now: float) -> Mapping[Key, Counts]:
        """Ask the gateway, and keep the last minute."""
        try:
            self.counts = await self.publisher.counts()
        except PenstockError as error:
            log.warning("the gateway's counters cannot be read: %s", error)
            return self.counts
        self._past.append((now, self.counts))
        while self._past and self._past[0][0] < now - WINDOW_S:
            self._past.popleft()
        self.history.take(now, self.counts)
        return self.counts

    @property
    def carries(self) -> bool:
        """Whether there is a service."""
        return bool(self._orders)

    def load(self, project: str, name: str, now: float) -> Load:
        """Since this was asked last."""
        key = (project, name)
        mine = {version: one for version, one in self.counts.items() if version[:2] == key}
        held = self.held(project, name)
        active = max(sum(one.active for one in mine.values()), held)
        came = sum(one.requests for one in mine.values()) + active
        at, before = self._looked.get(key, (now - 1.0, came - held))
        self._looked[key] = (now, came)
        old = self._past[0][1] if self._past else {}
        latency = Histogram()
        for version, one in mine.items():
            latency = latency.plus(one.since(old.get(version, NOTHING)).latency)
        recent_at, recent = self._recent(mine)
        return Load(active, max(0.0, came - before), max(now - at, 1e-3), latency, recent, recent_at)

    def _recent(self, mine: Mapping[Key, Counts]) -> tuple[float, Counts]:
        """Seconds, and what all of these were answered in them."""
        if len(self._past) < 2:
            return 0.0, NOTHING
        newest = self._past[-1][0]
        at, old = next(one for one in self._past if one[0] >= newest - RECENT_S)
        ended = [one.since(old.get(version, NOTHING)) for version, one in mine.items()]
        latency = Histogram()
        for one in ended:
            latency = latency.plus(one.latency)
        requests, seconds = sum(one.requests for one in ended), sum(one.seconds for one in ended)
        return newest - at, Counts(requests, seconds=seconds, latency=latency)

    def shadowed(self, project: str, name: str, candidate: int) -> Shadowed | None:
        """What the comparator has counted of that version; None where it was in no shadow."""
        found = self.comparator.seen().get((project, name))
        return found if found is not None and found.candidate == candidate else None

    def held(self, project: str, name: str) -> int:
        """Requests that wait for a first replica, as the activator says each half second."""
        at, count = self._held.get((project, name), (0.0, 0))
        return count if time.monotonic() - at < HEARD_S else 0

    async def _hear(self) -> None:
        async for demand in self.activator.demands():
            self._held[demand.project, demand.name] = (time.monotonic(), demand.held)
            if demand.held:
                self._woken(demand.project, demand.name)


def _must_be_free(host: str, port: int) -> None:
    """Envoys would share a port without a word, and each take a part of the other's requests. Raises Unavailable."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"the gateway's port {port} cannot be had: {error.strerror}", hint="Give another with --gateway-port."
            ) from error
