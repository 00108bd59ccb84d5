"""What may start though a workload before it cannot: one step of the cycle, under the promises of backfill.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.scheduling.backfill import Outlook, Window
from penstock.scheduling.state import Admit

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.lines import Entry


def run(view: Scheduler, now: float, candidates: Iterator[Entry] | None, admitted: list[Admit]) -> None:
    """Backfill behind the blocked head."""
    head = view.blocked
    assert head is not None
    if view.policy.backfill == "conservative":
        _conservative(view, now, admitted)
        return
    for id_ in [id_ for id_ in view.windows if id_ != head.w.id]:
        del view.windows[id_]
    _promise(view, head, now, ())
    failed: set[int] = set()
    for depth, entry in enumerate(_behind(view, head) if candidates is None else candidates):
        if depth >= view.policy.depth:
            break
        if entry.kind in failed or entry.w.id in view.awaiting or entry.w.id not in view.lines.entries:
            continue
        if not _fill(view, entry, now, admitted) and not _room_for(view, entry, now):
            failed.add(entry.kind)


def _room_for(view: Scheduler, entry: Entry, now: float) -> bool:
    """Whether one of its kind might fit if it were shorter: then the kind is not given up."""
    return view.pool.find(entry.w, within=view.open_to(entry.w, now, ())) is not None


def _behind(view: Scheduler, head: Entry) -> Iterator[Entry]:
    """A copy of the first in line, since starting one takes it out."""
    found: list[Entry] = []
    for entry in view.lines.in_order():
        if entry is not head:
            found.append(entry)
        if len(found) >= view.policy.depth:
            break
    return iter(found)


def _fill(view: Scheduler, entry: Entry, now: float, admitted: list[Admit]) -> bool:
    found = view.admit(entry, now, tuple(view.windows.values()))
    if not isinstance(found, Admit):
        return False
    view.lines.remove(entry.w.id)
    admitted.append(replace(found, backfilled=True))
    return True


def _conservative(view: Scheduler, now: float, admitted: list[Admit]) -> None:
    """Each in order starts where no promise is touched, or is promised a start of its own."""
    head = view.blocked
    assert head is not None
    for entry in [head, *_behind(view, head)]:
        if entry.w.id in view.awaiting:
            continue
        if entry is not head and _fill(view, entry, now, admitted):
            continue
        others = tuple(window for id_, window in view.windows.items() if id_ != entry.w.id)
        _promise(view, entry, now, others)


def _promise(view: Scheduler, entry: Entry, now: float, others: tuple[Window, ...]) -> None:
    """Keep what it was promised, unless it is overdue or, something having ended early, an earlier one is there."""
    w = entry.w
    kept = view.windows.get(w.id)
    if kept is not None and kept.promise.start > now and not view.freed_early:
        return
    outlook = Outlook(view.pool, view.ends, now, others)
    mask = _promisable(view, entry)
    closed = (lambda start: view.reservations.blocked(w, start)) if view.reservations.known else None
    found = outlook.earliest(w, mask, closed)
    if found is not None and (kept is None or found.start < kept.promise.start or kept.promise.start <= now):
        view.windows[w.id] = outlook.window(found, w.limit_s)


def _promisable(view: Scheduler, entry: Entry) -> int:
    mask = view.pool.candidates(entry.w)
    queue = view.setup.queues.get(entry.w.queue)
    if queue is None or not view.quotas.limited(queue.name):
        return mask
    allowed = 0
    for flavor in view.flavors_for(queue, entry.w):
        allowed |= view.pool.flavor_mask(flavor)
    return mask & allowed
