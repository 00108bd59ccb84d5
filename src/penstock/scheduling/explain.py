"""Why a workload waits, in words with the figures that a person would ask for next, and what would help.

Computed on demand for one workload, never in the cycle: a sentence costs more than a decision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from penstock.base.reasons import Reason
from penstock.scheduling import never
from penstock.scheduling.pool import Pool, bits
from penstock.scheduling.possible import could_hold
from penstock.scheduling.state import Ask, Part, Reservation, Wait, Workload
from penstock.scheduling.wording import amount, freest, have, need, quota_asked

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.quota import Refusal

A_LIMIT = "a time limit: with one it may start before its turn, where it delays nobody (backfill)"
IN_LINE = "in line: it starts at the next decision"
SOON_S = 18 * 3600.0  # a time this near needs no date


def explain(view: Scheduler, w: Workload, now: float) -> Wait:
    """One queued workload, as things stand in ``view``."""
    awaiting = view.awaiting.get(w.id)
    if awaiting is not None:
        return _leaving(view, w, awaiting.victims, now)
    promise = view.promise(w.id)
    start = promise.start if promise is not None else None
    hopeless = never.explain(view, w)  # before its quota: to wait for that would be in vain
    if hopeless is not None:
        return hopeless
    refusal = view.refused(w)
    if refusal is not None:
        return _quota(view, w, refusal, start)
    within = view.room_within(w, now)
    if view.pool.find(w, within=within) is not None:
        return _behind(view, w, start, now)
    return _no_room(view, w, within, now, start)


def _leaving(view: Scheduler, w: Workload, victims: Collection[str], now: float) -> Wait:
    """``2 jobs evicted for it have still to leave: low-1 (by 14:05 at the latest), low-2``."""
    held = [view.held[id_].held for id_ in sorted(victims) if id_ in view.held]
    named = ", ".join(
        one.workload.name + (f" (by {_clock(one.ready_at, now)} at the latest)" if one.ready_at else "")
        for one in held[:3]
    )
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    count = f"{len(held)} job{'s' if len(held) != 1 else ''} evicted for it {have(len(held))} still to leave"
    return Wait(w.id, Reason.WaitingForResources, count + (f": {named}{more}" if named else ""))


def _behind(view: Scheduler, w: Workload, start: float | None, now: float) -> Wait:
    """There is room, but others come first."""
    entry = view.lines.entries.get(w.id)
    if entry is not None and entry.line.head is not entry and id(entry.line) in view.out_of_quota:
        first = entry.line.head.w
        message = f"waits behind {first.name}, which is first in the line of queue {w.queue}, needs {need(first.parts)} and lacks quota"
        return Wait(w.id, Reason.WaitingBehind, message, (), start)
    head = view.blocked.w if view.blocked is not None else None
    if head is None or head.id == w.id:
        return Wait(w.id, Reason.WaitingBehind, IN_LINE, (), start)
    message = f"waits behind {head.name}, which is first in line"
    if w.priority != head.priority:
        message += f" by its priority ({head.priority}, its own is {w.priority})" if head.priority > w.priority else ""
    elif view.policy.order == "fairshare":
        message += _turn(view, head, w, now)
    message += f" and needs {need(head.parts)}"
    helps: tuple[str, ...] = ()
    if view.backfills and w.limit_s is None:
        helps = (A_LIMIT,)
    return Wait(w.id, Reason.WaitingBehind, message, helps, start)


def _turn(view: Scheduler, head: Workload, w: Workload, now: float) -> str:
    """Who of the two has used less, where their accounts part: ``: queue a has used 12% of the fleet, its own 40%``."""
    first, own = view.path_of(head), view.path_of(w)
    ranks = zip(first, own, view.fair.rank(first, now), view.fair.rank(own, now), strict=False)
    for one, other, less, more in ranks:
        if one != other:
            return f": by fair share it is the turn of {one} ({less:.0%} of the fleet, lately and by its weight; {other}: {more:.0%})"
    return ""


def _quota(view: Scheduler, w: Workload, refusal: Refusal, start: float | None) -> Wait:
    free, used, nominal = (amount(refusal.resource, x) for x in (refusal.available, refusal.used, refusal.nominal))
    message = f"{quota_asked(refusal)}; queue {refusal.queue} may have {free} more now (it uses {used}, its nominal quota is {nominal})"
    lent = view.quotas.borrowers(refusal.queue, refusal.flavor, refusal.resource)[:3]
    if lent:
        message += "; borrowed by others: " + ", ".join(f"{amount(refusal.resource, x)} by {name}" for name, x in lent)
    return Wait(w.id, Reason.QuotaExceeded, message, ("waits for its queue, or its cohort, to use less",), start)


def _no_room(view: Scheduler, w: Workload, within: int | None, now: float, start: float | None) -> Wait:
    pool = view.pool
    left = pool.open if within is None else within
    part = _hardest(pool, w, left)
    could = _could(pool, w, part)
    room = _fitting(pool, part.ask) & pool.candidates(w, left)
    fitting = room.bit_count()
    shut = could & ~pool.open
    closed = [node for i in islice(bits(shut), 3) if (node := pool.nodes[i]) is not None]
    message = f"needs {need(w.parts)}; {fitting} of {could.bit_count()} such nodes {'has' if fitting == 1 else 'have'} room now"
    if w.topology is not None and w.topology.required:
        message = f"needs {need(w.parts)} in one {w.topology.level}" + _best_domain(pool, w, _unpromised(view, w, now))
    elif not fitting:
        message += freest(pool, part.ask, could) + _scattered(pool, w, left)
    if closed:
        message += "; " + ", ".join(f"{node.name} is {node.why_closed or 'closed'}" for node in closed)
    if w.least:
        message += f"; it takes {w.least} to {w.parts[0].count}" + (
            f", fewer than all from {_clock(w.shrink_at, now)} on" if now < w.shrink_at else ""
        )
    message += _kept_for_others(view, w, now)
    helps = ["waits for running jobs to end"] if (could & pool.open).bit_count() >= part.count else []
    if view.backfills and w.limit_s is None and any(id_ != w.id for id_ in view.windows):
        helps.append(A_LIMIT)
    helps += [f"`penstock uncordon {node.name}`" for node in closed if "cordoned" in node.why_closed]
    return Wait(w.id, Reason.WaitingForResources, message, tuple(helps), start)


def _unpromised(view: Scheduler, w: Workload, now: float) -> int:
    """Nodes that are its to use but for what is promised there, of which the sentence speaks by itself."""
    found = view.room_within(w, now, promises=False)
    return view.pool.open if found is None else found


def _scattered(pool: Pool, w: Workload, left: int) -> str:
    """Where enough GPUs are free, and none in one place."""
    asked = sum(part.count * part.ask.gpus for part in w.parts if not part.ask.mig)
    usable = pool.candidates(w, left)
    free = pool.free_gpus(usable)
    if not asked or free < asked:
        return ""
    on = sum(1 for i in bits(usable) if pool.free_bits[i])
    return f"; {free} GPUs are free in all, on {on} nodes, too few on each"


def _hardest(pool: Pool, w: Workload, mask: int) -> Part:
    """The part that lacks most nodes now: the one to speak of."""
    return max(w.parts, key=lambda part: part.count - (_fitting(pool, part.ask) & mask).bit_count())


def _fitting(pool: Pool, ask: Ask) -> int:
    """Open nodes with room for one such group now."""
    mask = pool.narrow(ask, pool.open)
    if not ask.mig:
        mask = pool.with_free(ask.gpus, mask)
    return sum(1 << i for i in bits(mask) if pool.fits(ask, i))


def _could(pool: Pool, w: Workload, part: Part) -> int:
    """Nodes that could hold one group of it if nobody used them, closed ones included."""
    return could_hold(pool, w, part.ask, pool.fleet)


def _best_domain(pool: Pool, w: Workload, mask: int) -> str:
    """The domain with most free GPUs (or nodes with room, where none are asked for), by its path."""
    assert w.topology is not None
    if w.topology.level == "host":
        return freest(pool, w.parts[0].ask, pool.fleet)
    asked = sum(part.count * part.ask.gpus for part in w.parts)
    best = max(
        ((_free(pool, w.parts, domain & mask), path) for path, domain in pool.domains.masks(w.topology.level).items()),
        key=lambda one: one[0],
        default=None,
    )
    if best is None:
        return f"; no node says which {w.topology.level} it is in"
    what = f"{best[0]} GPUs free" if asked else f"{best[0]} nodes with room"
    return f"; the best {w.topology.level}, {'/'.join(filter(None, best[1]))}, has {what}"


def _free(pool: Pool, parts: Sequence[Part], domain: int) -> int:
    if any(part.ask.gpus for part in parts):
        return pool.free_gpus(domain)
    return (_fitting(pool, parts[0].ask) & domain).bit_count()


def _kept_for_others(view: Scheduler, w: Workload, now: float) -> str:
    """Promises, reservations and evictions that take from it what is free."""
    told = ""
    promised = [window.promise for id_, window in view.windows.items() if id_ != w.id]
    if promised:
        first = min(promised, key=lambda promise: promise.start)
        gpus = sum(share.ask.gpus for share in first.shares)
        what = f"{gpus} GPU{'s' if gpus != 1 else ''}" if gpus else f"{len(first.shares)} places"
        entry = view.lines.entries.get(first.id)
        name = entry.w.name if entry is not None else first.id
        told += f"; {what} {'is' if what == '1 GPU' else 'are'} promised to job {name} at {_clock(first.start, now)}"
    told += "".join(
        f"; {_kept(view, one, w, now)}" for one in view.reservations.on(w, now, view.pool.candidates(w))[:2]
    )
    return told


def _kept(view: Scheduler, one: Reservation, w: Workload, now: float) -> str:
    """``node-3 is kept from 14:05 to 15:05 by maintenance dimm-swap``; and whether a time limit would help."""
    names = sorted(name for name in one.nodes if view.pool.state(name) is not None)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    span = (
        f"until {_clock(one.end, now)}"
        if one.start <= now
        else f"from {_clock(one.start, now)} to {_clock(one.end, now)}"
    )
    said = f"{shown} {'is' if len(names) == 1 else 'are'} kept {span} by {one.kind} {one.name}"
    return said + (", and it has no time limit" if one.start > now and w.limit_s is None else "")


def _clock(at: float, now: float) -> str:
    """``14:05``; with the day where it is not soon."""
    when = datetime.fromtimestamp(at, UTC)
    return f"{when:%H:%M}" if abs(at - now) < SOON_S else f"{when:%d %b %H:%M}"
