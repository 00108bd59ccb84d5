"""The queued workloads in their order of service: lines whose heads compete.

All who wait for the same thing stand in one line, so that a blocked head speaks for everybody behind it: a line per
queue; per user of it under fair share; and, where blocked workloads are skipped, per kind of request too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace, merge

from sortedcontainers import SortedKeyList

from penstock.scheduling.state import Policy, Workload

Key = tuple[float, ...]
Turn = tuple[tuple[float, ...], Key]  # ranks from the root down, then the head's key


@dataclass(slots=True)
class Entry:
    """A queued workload with what was worked out about it once."""

    w: Workload
    key: Key
    kind: int  # workloads of one kind fit in the same places
    asked: dict[str, float]
    line: Line
    tried_at: int = -1  # the pool's state in which evicting for it was last found useless


@dataclass(slots=True)
class Line:
    queue: str
    path: tuple[str, ...]  # of its account, from the root cohort to the user
    entries: SortedKeyList = field(default_factory=lambda: SortedKeyList(key=_key))

    @property
    def head(self) -> Entry:
        found: Entry = self.entries[0]
        return found


def _key(entry: Entry) -> Key:
    return entry.key


class Lines:
    """``rank`` orders lines before their heads' keys do: fair share; None: keys alone."""

    def __init__(self, policy: Policy, score: Callable[[Workload], float]) -> None:
        self._policy = policy
        self._score = score
        self._by_user = policy.order == "fairshare"
        self._by_kind = policy.blocking == "skip"
        self._by_limit = False
        self.entries: dict[str, Entry] = {}
        self.lines: dict[tuple[object, ...], Line] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, w: Workload) -> Key:
        order = self._policy.order
        if order == "sjf":
            estimate = w.estimate_s if w.estimate_s is not None else w.limit_s
            return (-w.priority, estimate if estimate is not None else float("inf"), w.queued_at, w.seq)
        if order == "multifactor":
            return (-self._score(w), w.queued_at, w.seq)
        return (-w.priority, w.queued_at, w.seq)

    def add(self, w: Workload, kind: int, asked: dict[str, float], path: tuple[str, ...]) -> Entry:
        line = self._line(w, kind, path)
        entry = self.entries[w.id] = Entry(w, self.key(w), kind, asked, line)
        line.entries.add(entry)
        return entry

    def _line(self, w: Workload, kind: int, path: tuple[str, ...]) -> Line:
        limit = w.limit_s if self._by_limit else None
        name = (w.queue, w.user if self._by_user else "", kind if self._by_kind else 0, limit)
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line(w.queue, path)
        return line

    def tell_limits_apart(self) -> None:
        """Before a window a short one may start where a long one of its kind may not: it does not speak for the other."""
        if not self._by_kind or self._by_limit:
            return
        self._by_limit = True
        self.lines = {}
        for entry in self.entries.values():
            entry.line = self._line(entry.w, entry.kind, entry.line.path)
            entry.line.entries.add(entry)

    def remove(self, id_: str) -> Entry | None:
        entry = self.entries.pop(id_, None)
        if entry is not None:
            rows = entry.line.entries
            if rows[0] is entry:
                del rows[0]
            else:
                rows.remove(entry)
        return entry

    def active(self) -> list[Line]:
        return [line for line in self.lines.values() if line.entries]

    def shared_path(self) -> int:
        """How many accounts, from the root down, all who wait have in common."""
        paths = [line.path for line in self.lines.values() if line.entries]
        if len(paths) < 2:
            return 0
        least, most = min(paths), max(paths)  # what these two share, all between them share
        return next(
            (at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most))
        )

    def rescore(self) -> None:
        """Multifactor priorities change with time: sort anew."""
        for line in self.lines.values():
            entries = list(line.entries)
            for entry in entries:
                entry.key = self.key(entry.w)
            line.entries = SortedKeyList(entries, key=_key)

    def in_order(self) -> Iterator[Entry]:
        """All of them by their keys."""
        lines = self.active()
        return iter(lines[0].entries) if len(lines) == 1 else merge(*(line.entries for line in lines), key=_key)


def turns(lines: Iterable[Line], turn: Callable[[Line], Turn]) -> Iterator[Line]:
    """Whose turn it is, again and again; a line whose head is still the same after its turn has no more of them.

    To serve a line only moves it, and those that share its account, backward. So a heap of turns that may be out of date,
    each worked out again before it is taken, is in order.
    """
    waiting = [line for line in lines if line.entries]
    if len(waiting) == 1:
        yield from _while_served(waiting[0])
        return
    heap = [(turn(line), n, line) for n, line in enumerate(waiting)]
    heapify(heap)
    while heap:
        before, n, line = heap[0]
        now = turn(line)
        if now > before:
            heapreplace(heap, (now, n, line))
            continue
        head = line.head
        yield line
        if line.entries and line.head is not head:
            heapreplace(heap, (turn(line), n, line))
        else:
            heappop(heap)


def _while_served(line: Line) -> Iterator[Line]:
    while line.entries:
        head = line.head
        yield line
        if line.entries and line.head is head:
            return
