"""What may overtake a blocked head without delaying what was promised.

EASY (Lifka, JSSPP'95): the head alone is promised a start: the earliest time at which, by the limits of what runs, its
place is free. Conservative (Mu'alem and Feitelson, TPDS'01): every blocked workload within the depth is promised one.
Others start only if by their limit they end before a promise begins, or leave its nodes what it needs then. A promise
names nodes, is kept from cycle to cycle, and is only ever replaced by an earlier one while limits are kept and its
nodes are there. Work without a limit is endless: nothing waits for its end, and it overtakes only beside promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from penstock.scheduling.pool import EPSILON, Pool, bits
from penstock.scheduling.state import Ask, Promise, Share, Workload

OVERRUN_S = 1.0  # what should have ended by now is taken to end within this
Room = tuple[int, float, int]  # GPUs, CPUs, memory
Closed = Callable[[float], int]  # nodes that a workload starting then may not have


@dataclass(slots=True)
class Window:
    """One promise: until when it holds its nodes, and per node what is left there at its start for others."""

    promise: Promise
    end: float
    mask: int
    spare: dict[int, Room]

    def admits(self, ask: Ask, node: int) -> bool:
        return _holds(self.spare[node], ask)

    def use(self, shares: Iterable[Share], pool: Pool) -> None:
        """Something that runs into the window was started: what it holds is spare no more."""
        for share in shares:
            i = pool.index(share.node)
            if i in self.spare:
                self.spare[i] = _less(self.spare[i], share.ask)


def _whole(ask: Ask) -> int:
    return ask.gpus + (1 if ask.gpu_milli else 0)


def _holds(room: Room, ask: Ask) -> bool:
    return room[0] >= _whole(ask) and room[1] + EPSILON >= ask.cpus and room[2] >= ask.memory


def _less(room: Room, ask: Ask) -> Room:
    return room[0] - _whole(ask), room[1] - ask.cpus, room[2] - ask.memory


def _more(room: Room, ask: Ask) -> Room:
    return room[0] + _whole(ask), room[1] + ask.cpus, room[2] + ask.memory


def _room(pool: Pool, i: int) -> Room:
    return pool.free_bits[i].bit_count(), pool.free_cpus[i], pool.free_memory[i]


class Outlook:
    """Capacity along time: what is free now, plus what ends, less what was promised and is not there yet."""

    def __init__(self, pool: Pool, ending: Iterable[tuple[float, str]], now: float, windows: Sequence[Window]) -> None:
        self.pool = pool
        self.now = now
        self.windows = windows
        self._ending = ending

    def changes(self) -> Iterable[tuple[float, int, Ask, bool]]:
        """(time, node, ask, freed) in order of time."""
        if not self.windows:
            yield from self._ends()
            return
        planned: list[tuple[float, int, Ask, bool]] = []
        for one in self.windows:
            for share in one.promise.shares:
                i = self.pool.index(share.node)
                planned.append((one.promise.start, i, share.ask, False))
                if one.end != math.inf:
                    planned.append((one.end, i, share.ask, True))
        yield from sorted([*self._ends(), *planned], key=lambda change: (change[0], not change[3]))

    def _ends(self) -> Iterable[tuple[float, int, Ask, bool]]:
        held, now = self.pool.held, self.now
        for end, id_ in self._ending:
            if end == math.inf:
                return
            at = end if end > now else now + OVERRUN_S
            for placed in held.get(id_, ()):
                yield at, placed.index, placed.share.ask, True

    def earliest(self, w: Workload, mask: int, closed: Closed | None = None) -> Promise | None:
        """The first time at which all of ``w`` has a place on nodes of ``mask`` for as long as its limit; None: never."""
        if w.topology is not None and w.topology.required:
            found = [
                self._earliest(w, domain, closed) for domain in next(iter(self.pool.domains.climb(w.topology, mask)))
            ]
            return min((one for one in found if one is not None), key=lambda one: one.start, default=None)
        return self._earliest(w, mask, closed)

    def _earliest(self, w: Workload, mask: int, closed: Closed | None) -> Promise | None:
        pool = self.pool
        asks = sorted(w.parts, key=lambda part: (-_whole(part.ask), -part.ask.cpus, -part.ask.memory))
        fitting = [_fitting(pool, part.ask, mask) for part in asks]
        rooms: dict[int, Room] = {}
        fresh, time = True, self.now
        for at, i, ask, freed in self.changes():
            if fresh and at > time:
                shares = self._choose(w, fitting, time, closed)
                if shares is not None:
                    return Promise(w.id, time, shares)
                fresh = False
            time = at
            if not mask >> i & 1 or pool.nodes[i] is None:
                continue
            room = rooms[i] = (_more if freed else _less)(rooms.get(i) or _room(pool, i), ask)
            bit = 1 << i
            for n, part in enumerate(asks):
                fits = _holds(room, part.ask)
                if fits != bool(fitting[n] & bit):
                    fitting[n] ^= bit
                    fresh = True
        shares = self._choose(w, fitting, time, closed)
        return None if shares is None else Promise(w.id, time, shares)

    def _choose(
        self, w: Workload, fitting: Sequence[int], start: float, closed: Closed | None
    ) -> tuple[Share, ...] | None:
        """Distinct nodes for every group, among those that also stay clear of windows that begin while it runs."""
        parts = sorted(w.parts, key=lambda part: (-_whole(part.ask), -part.ask.cpus, -part.ask.memory))
        end = math.inf if w.limit_s is None else start + w.limit_s
        taken = closed(start) if closed is not None else 0
        later = [one for one in self.windows if start < one.promise.start < end]
        shares: list[Share] = []
        for part, mask in zip(parts, fitting, strict=True):
            need = part.count
            for i in bits(mask & ~taken):
                if need and all(i not in one.spare or one.admits(part.ask, i) for one in later):
                    need -= 1
                    taken |= 1 << i
                    shares.append(Share(self.pool.nodes[i].name, part.ask))  # type: ignore[union-attr]  # fits: there
                if not need:
                    break
            if need:
                return None
        return tuple(shares)

    def window(self, promise: Promise, limit_s: float | None) -> Window:
        """The promise with what it leaves on its nodes at its start."""
        spare = {self.pool.index(share.node): _room(self.pool, self.pool.index(share.node)) for share in promise.shares}
        for at, i, ask, freed in self.changes():
            if at > promise.start:
                break
            if i in spare:
                spare[i] = (_more if freed else _less)(spare[i], ask)
        end = math.inf if limit_s is None else promise.start + limit_s
        found = Window(promise, end, sum(1 << i for i in spare), spare)
        found.use(promise.shares, self.pool)
        return found


def _fitting(pool: Pool, ask: Ask, mask: int) -> int:
    """Nodes of ``mask`` that could take one such group now."""
    mask = pool.narrow(ask, mask)
    if ask.cpus or ask.memory:
        return sum(1 << i for i in bits(mask) if _holds(_room(pool, i), ask))
    found = 0
    for level in range(_whole(ask), len(pool.levels)):
        found |= pool.levels[level]
    return found & mask


def allowed(w: Workload, now: float, windows: Iterable[Window], mask: int) -> int:
    """Of ``mask``, the nodes on which ``w`` could start now without touching what was promised to others."""
    end = math.inf if w.limit_s is None else now + w.limit_s
    for one in windows:
        if one.promise.id == w.id or end <= one.promise.start:
            continue
        for i in bits(one.mask & mask):
            if not all(one.admits(part.ask, i) for part in w.parts):
                mask &= ~(1 << i)
    return mask
