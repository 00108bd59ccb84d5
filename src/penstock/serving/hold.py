"""Who waits for a replica, in which order they go, and to which replica. Pure: the time is an argument.

One ``Line`` is of one service. A version's requests go in the order in which they came; a replica that has just begun is
given ``concurrency`` of them and the next one when one of these has ended, so that the first replica of many is not
drowned in all that waited for it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.serving.gateway.spec import Backend

SUSPECT_S = 1.0  # a replica that took no connection is left out for so long, where there is another


@dataclass(eq=False, slots=True)
class Ticket:
    """One request. ``backend`` is set once it may go; ``late`` once it has waited too long."""

    version: int
    until: float
    backend: Backend | None = None
    late: bool = False


@dataclass(slots=True)
class Line:
    """``requests`` may wait, each for ``time`` seconds."""

    requests: int = 1000
    time: float = 60.0
    concurrency: int = 32
    ready: Mapping[int, tuple[Backend, ...]] = field(default_factory=dict)
    waiting: dict[int, OrderedDict[Ticket, None]] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    suspects: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.busy

    def arrive(self, version: int, now: float) -> Ticket | None:
        """None: as many wait as may. One that need not wait has its backend already."""
        ticket = Ticket(self._known(version), now + self.time)
        if not self.waiting.get(ticket.version):
            ticket.backend = self._free(ticket.version, now)
            if ticket.backend is not None:
                self._take(ticket.backend)
                return ticket
        if self.held >= self.requests:
            return None
        self.waiting.setdefault(ticket.version, OrderedDict())[ticket] = None
        return ticket

    def back(self, ticket: Ticket, now: float) -> None:
        """Its replica took no connection: nothing was sent, so it waits again, before the others."""
        if ticket.backend is not None:
            self.suspects[ticket.backend.replica] = now + SUSPECT_S
        self._release(ticket)
        line = self.waiting.setdefault(ticket.version, OrderedDict())
        line[ticket] = None
        line.move_to_end(ticket, last=False)

    def leave(self, ticket: Ticket) -> None:
        """It has its answer, or its caller is gone. A second time does nothing."""
        self._release(ticket)
        line = self.waiting.get(ticket.version)
        if line is not None and ticket in line:
            del line[ticket]
            if not line:
                del self.waiting[ticket.version]

    def step(self, now: float) -> list[Ticket]:
        """Those that may go now, or are late; in their order."""
        found: list[Ticket] = []
        self.suspects = {name: until for name, until in self.suspects.items() if until > now}
        for version in tuple(self.waiting):
            line = self.waiting[version]
            found += self._late(line, now)
            while line:
                backend = self._free(self._known(version), now)
                if backend is None:
                    break
                ticket, _ = line.popitem(last=False)
                ticket.backend = backend
                self._take(backend)
                found.append(ticket)
            if not line:
                del self.waiting[version]
        return found

    def give_up(self) -> None:
        """There is no such service any more: all who wait are late at the next step."""
        self.ready = {}
        for line in self.waiting.values():
            for ticket in line:
                ticket.until = -math.inf

    @staticmethod
    def _late(line: OrderedDict[Ticket, None], now: float) -> list[Ticket]:
        """From the front: who came later waits longer."""
        late: list[Ticket] = []
        while line and (first := next(iter(line))).until <= now:
            del line[first]
            first.late = True
            late.append(first)
        return late

    def _known(self, version: int) -> int:
        """The version that a request was sent for; where that is no more, the newest that is."""
        return version if version in self.ready or not self.ready else max(self.ready)

    def _free(self, version: int, now: float) -> Backend | None:
        def load(one: Backend) -> tuple[bool, int]:
            return self.suspects.get(one.replica, 0.0) > now, self.busy.get(one.replica, 0)

        free = [one for one in self.ready.get(version, ()) if self.busy.get(one.replica, 0) < self.concurrency]
        found = min(free, key=load, default=None)
        if found is not None and self.suspects.get(found.replica, 0.0) > now:
            return None
        return found

    def _take(self, backend: Backend) -> None:
        self.busy[backend.replica] = self.busy.get(backend.replica, 0) + 1

    def _release(self, ticket: Ticket) -> None:
        if ticket.backend is None:
            return
        left = self.busy.get(ticket.backend.replica, 0) - 1
        if left > 0:
            self.busy[ticket.backend.replica] = left
        else:
            self.busy.pop(ticket.backend.replica, None)
        ticket.backend = None
