"""Why a workload waits, in words with the figures that a person would ask for next, and what would help.

Computed on demand for one workload, never in the cycle: a sentence costs more than a decision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from penstock.base.quantities import format_duration, format_memory
from penstock.base.reasons import Reason
from penstock.scheduling.pool import Pool, bits
from penstock.scheduling.possible import could_hold, one_of_each
from penstock.scheduling.state import Ask, Part, Reservation, Wait, Workload

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.quota import Refusal

A_LIMIT = "a time limit: with one it may start before its turn, where it delays nobody (backfill)"
SOON_S = 18 * 3600.0  # a time this near needs no date


def explain(view: Scheduler, w: Workload, now: float) -> Wait:
    """One queued workload, as things stand in ``view``."""
    awaiting = view.awaiting.get(w.id)
    if awaiting is not None:
        return _leaving(view, w, awaiting.victims, now)
    promise = view.promise(w.id)
    start = promise.start if promise is not None else None
    most = view.beyond(w)
    if most is not None:
        return _too_long(w, most)
    refusal = view.refused(w)
    if refusal is not None:
        return _quota(view, w, refusal, start)
    if not view.pool.could_place(w):
        return _never(view, w)
    within = view.room_within(w, now)
    if view.pool.find(w, within=within) is not None:
        return _behind(view, w, start, now)
    return _no_room(view, w, within, now, start)


def _too_long(w: Workload, most: float) -> Wait:
    allowed = format_duration(most)
    states = "has no time limit" if w.limit_s is None else f"its time limit is {format_duration(w.limit_s)}"
    helps = (f"state a time limit of at most {allowed}, or use another queue",)
    return Wait(w.id, Reason.Unschedulable, f"{states}; queue {w.queue} takes none above {allowed}", helps)


def _leaving(view: Scheduler, w: Workload, victims: Collection[str], now: float) -> Wait:
    """``2 jobs evicted for it have still to leave: low-1 (by 14:05 at the latest), low-2``."""
    held = [view.held[id_].held for id_ in sorted(victims) if id_ in view.held]
    named = ", ".join(
        one.workload.name + (f" (by {_clock(one.ready_at, now)} at the latest)" if one.ready_at else "")
        for one in held[:3]
    )
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    count = f"{len(held)} job{'s' if len(held) != 1 else ''} evicted for it {_have(len(held))} still to leave"
    return Wait(w.id, Reason.WaitingForResources, count + (f": {named}{more}" if named else ""))


def _behind(view: Scheduler, w: Workload, start: float | None, now: float) -> Wait:
    """There is room, but others come first."""
    head = view.blocked.w if view.blocked is not None else None
    if head is None or head.id == w.id:
        return Wait(w.id, Reason.WaitingBehind, "in line: it starts at the next decision", (), start)
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
    show = format_memory if refusal.resource == "memory" else "{:g}".format
    unit = {"gpus": " GPUs", "cpus": " CPUs"}.get(refusal.resource, " of memory")
    asked, free, used, nominal = (
        (show(int(x)) if refusal.resource == "memory" else show(x))
        for x in (refusal.asked, refusal.available, refusal.used, refusal.nominal)
    )
    what = f"needs {asked}{unit} of {refusal.flavor}"
    if refusal.never:
        message = (
            f"{what}; queue {refusal.queue} could never have that: its nominal quota is {nominal}, borrowing included"
        )
        return Wait(w.id, Reason.Unschedulable, message, ("ask for less, or for a larger quota",))
    message = f"{what}; queue {refusal.queue} may have {free} more now (it uses {used}, its nominal quota is {nominal})"
    lent = view.quotas.borrowers(refusal.queue, refusal.flavor, refusal.resource)[:3]
    if lent:
        message += "; borrowed by others: " + ", ".join(
            f"{show(int(amount)) if refusal.resource == 'memory' else show(amount)} by {name}" for name, amount in lent
        )
    return Wait(w.id, Reason.QuotaExceeded, message, ("waits for its queue, or its cohort, to use less",), start)


def _never(view: Scheduler, w: Workload) -> Wait:
    pool = view.pool
    part = _hardest(pool, w, pool.fleet)
    could = _could(pool, w, part).bit_count()
    less = f"ask for less (the fleet: {_fleet(pool)}), or add nodes that hold {_each(part.ask)}"
    if w.topology is not None and w.topology.required and could >= part.count:
        message = f"needs {need(w.parts)} in one {w.topology.level}; no {w.topology.level} of the fleet is that large"
        return Wait(
            w.id, Reason.Unschedulable, message, (f"prefer the {w.topology.level} instead of requiring it", less)
        )
    message = f"needs {need(w.parts)}; {_count(could)} of the fleet could ever hold that"
    return Wait(w.id, Reason.Unschedulable, message + _best(pool, part.ask, pool.fleet), (less,))


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
        message += _best(pool, part.ask, could) + _scattered(pool, w, left)
    if closed:
        message += "; " + ", ".join(f"{node.name} is {node.why_closed or 'closed'}" for node in closed)
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
        return _best(pool, w.parts[0].ask, pool.fleet)
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


def need(parts: Sequence[Part]) -> str:
    """``2 nodes with 4 CPUs each``."""
    if len(parts) == 1 and parts[0].count == 1:
        return _each(parts[0].ask)
    return " and ".join(f"{p.count} node{'s' if p.count != 1 else ''} with {_each(p.ask)} each" for p in parts)


def _each(ask: Ask) -> str:
    told = [f"{ask.cpus:g} CPU{'s' if ask.cpus != 1 else ''}"] if ask.cpus or not _gpus(ask) else []
    if ask.memory:
        told.append(f"{format_memory(ask.memory)} of memory")
    return ", ".join([*told, *_gpus(ask)])


def _gpus(ask: Ask) -> list[str]:
    model = f" {' or '.join(ask.gpu_models)}" if ask.gpu_models else ""
    if ask.mig:
        return [f"{max(ask.gpus, 1)} {ask.mig} MIG instance{'s' if ask.gpus > 1 else ''}"]
    if ask.gpu_milli:
        return [f"{ask.gpu_milli / 1000:g} of one{model} GPU"]
    return [f"{ask.gpus}{model} GPU{'s' if ask.gpus != 1 else ''}"] if ask.gpus else []


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _count(number: int) -> str:
    return "no node" if number == 0 else "only 1 node" if number == 1 else f"only {number} nodes"


def _best(pool: Pool, ask: Ask, mask: int) -> str:
    """The freest open node among these."""
    wants_gpus = bool(_gpus(ask))
    mask &= pool.open
    if not mask:
        return "; no node is open"
    if wants_gpus:
        mask = next(hit for level in reversed(pool.levels) if (hit := level & mask))
    best = max(bits(mask), key=lambda i: (pool.free_cpus[i], pool.free_memory[i], -i))
    node = pool.nodes[best]
    assert node is not None
    told = [f"{max(pool.free_cpus[best], 0):g} of {node.cpus:g} CPUs"] if ask.cpus or not wants_gpus else []
    if ask.memory:
        told.append(f"{format_memory(max(pool.free_memory[best], 0))} of {format_memory(node.memory)} memory")
    if wants_gpus:
        told.append(f"{pool.free_bits[best].bit_count()} of {len(node.gpus)} GPUs")
    return f"; the freest, {node.name}, has {', '.join(told)} free"


def _fleet(pool: Pool) -> str:
    nodes = one_of_each(pool)
    if not nodes:
        return "no nodes"
    cpus, memory = max(node.cpus for node in nodes), max(node.memory for node in nodes)
    gpus, count = max(len(node.gpus) for node in nodes), pool.fleet.bit_count()
    return f"{count} node{'s' if count != 1 else ''} of up to {cpus:g} CPUs, {format_memory(memory)}, {gpus} GPUs"
