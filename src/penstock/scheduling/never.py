"""Why a workload could never run, by what of it would have to be another: its queue, flavors, models, exclusions or size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.scheduling.models import means
from penstock.scheduling.possible import could_hold
from penstock.scheduling.rights import forbidden, usable
from penstock.scheduling.state import Ask, Part, Wait, Workload
from penstock.scheduling.wording import amount, each, fleet, how_many, need, quota_asked, some

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.pool import Pool

Words = tuple[str, tuple[str, ...]]  # a message, and what would help


def explain(view: Scheduler, w: Workload) -> Wait | None:
    """None where it may start one day, whoever holds what now."""
    if view.could_ever(w):
        return None
    message, helps = _queue(view, w) or _fleet(view.pool, w) or _quota(view, w)
    return Wait(w.id, Reason.Unschedulable, message, helps)


def _queue(view: Scheduler, w: Workload) -> Words | None:
    """What its queue takes from nobody."""
    closed = forbidden(view.setup, w.queue, w.project)
    if closed is not None:
        return closed, (f"name one of: {', '.join(usable(view.setup, w.project))}",)
    queue = view.setup.queues[w.queue]
    most = view.beyond(w)
    if most is not None:
        allowed = format_duration(most)
        states = "has no time limit" if w.limit_s is None else f"its time limit is {format_duration(w.limit_s)}"
        helps = (f"state a time limit of at most {allowed}, or use another queue",)
        return f"{states}; queue {w.queue} takes none above {allowed}", helps
    if view.quotas.limited(w.queue) and not view.flavors_for(queue, w):
        own = some(view.quotas.flavors(w.queue))
        asks = f"asks for flavor {' or '.join(w.flavors)}"
        return f"{asks}; queue {w.queue} has a quota of {own} alone", (f"name one of: {own}, or use another queue",)
    return None


def _fleet(pool: Pool, w: Workload) -> Words | None:
    """What no node has, or else the one thing without which the fleet could hold it, or else its size."""
    if pool.could_place(w):
        return None
    absent = next(_absent(pool, w), None)
    if absent is not None:
        return absent
    for without, words in _RELAXED:
        other = without(w)
        if other is not None and pool.could_place(other):
            return words(pool, w)
    return _size(pool, w)


def _absent(pool: Pool, w: Workload) -> Iterator[Words]:
    known = pool.known()
    if w.flavors and not any(map(pool.flavor_mask, w.flavors)):
        there = some(known["flavor"]) or "none"
        message = f"needs {need(w.parts)} of flavor {' or '.join(w.flavors)}; no node of the fleet is of that flavor"
        yield f"{message} (there are: {there})", ("name a flavor that nodes have, or none",)
    for part in w.parts:
        if part.ask.gpu_models and not pool.narrow(replace(part.ask, mig=""), pool.fleet):
            there = some(known["model"]) or "none at all"
            yield (
                f"needs {need(w.parts)}; no node of the fleet has such a GPU (its models: {there})",
                ("name one of the fleet's models, or none",),
            )
        if part.ask.mig and not pool.narrow(replace(part.ask, gpu_models=()), pool.fleet):
            there = some(known["mig"]) or "none at all"
            yield (
                f"needs {need(w.parts)}; no GPU of the fleet is cut into such instances (there are: {there})",
                ("ask for a profile that there is, or for whole GPUs",),
            )


def unknown(pool: Pool, w: Workload) -> list[str]:
    """What it names and no node has now: for who writes it, since it may be a slip; nodes may bring it yet."""
    known = pool.known()
    nodes = [name for name in w.exclude if pool.state(name) is None]
    models = {model for part in w.parts for model in part.ask.gpu_models}
    no_such = [name for name in sorted(models) if not any(means(name, model) for model in known["model"])]
    no_flavor = [name for name in w.flavors if name not in known["flavor"]]
    found = [f"it excludes {some(nodes)}, which the fleet does not have"] if nodes else []
    found += [
        f"no GPU of the fleet is of model {name} (its models: {some(known['model']) or 'none'})" for name in no_such
    ]
    return found + [f"no node of the fleet is of flavor {name}" for name in no_flavor]


def _no_flavors(w: Workload) -> Workload | None:
    return replace(w, flavors=()) if w.flavors else None


def _of_flavors(pool: Pool, w: Workload) -> Words:
    named = " or ".join(w.flavors)
    message = f"needs {need(w.parts)}; {how_many(_could(pool, w))} of flavor {named} could ever hold that"
    return message, (f"another flavor (there are: {some(pool.known()['flavor'])}), or ask for less",)


def _no_exclusions(w: Workload) -> Workload | None:
    return replace(w, exclude=frozenset()) if w.exclude else None


def _excluded(pool: Pool, w: Workload) -> Words:
    message = f"needs {need(w.parts)}; {how_many(_could(pool, w))} beside those that it excludes could ever hold that"
    names = some(name for name in w.exclude if pool.state(name) is not None)
    return message, (f"exclude fewer nodes (it excludes {names})",)


def _any_model(w: Workload) -> Workload | None:
    parts = tuple(Part(part.count, replace(part.ask, gpu_models=())) for part in w.parts)
    return replace(w, parts=parts) if parts != w.parts else None


def _of_models(pool: Pool, w: Workload) -> Words:
    message = f"needs {need(w.parts)}; {how_many(_could(pool, w))} of the fleet could ever hold that"
    return message, (f"another model (the fleet's: {some(pool.known()['model'])}), or ask for less",)


def _anywhere(w: Workload) -> Workload | None:
    return replace(w, topology=None) if w.topology is not None and w.topology.required else None


def _of_domain(pool: Pool, w: Workload) -> Words:
    assert w.topology is not None
    level = w.topology.level
    message = f"needs {need(w.parts)} in one {level}; no {level} of the fleet is that large"
    return message, (f"prefer the {level} instead of requiring it", _less(pool, _hardest(pool, w).ask))


def _size(pool: Pool, w: Workload) -> Words:
    ask = _hardest(pool, w).ask
    message = f"needs {need(w.parts)}; {how_many(_could(pool, w))} of the fleet could ever hold that"
    return message, (_less(pool, ask),)


_RELAXED: tuple[tuple[Callable[[Workload], Workload | None], Callable[[Pool, Workload], Words]], ...] = (
    (_no_exclusions, _excluded),
    (_no_flavors, _of_flavors),
    (_any_model, _of_models),
    (_anywhere, _of_domain),
)


def _quota(view: Scheduler, w: Workload) -> Words:
    """The fleet could hold it: what its queue may have of the fleet could not."""
    refusal = view.refused(w)
    if refusal is not None and refusal.never:
        nominal = amount(refusal.resource, refusal.nominal)
        message = f"{quota_asked(refusal)}; queue {refusal.queue} could never have that: its nominal quota is {nominal}"
        return message + ", borrowing included", ("ask for less, or for a larger quota",)
    own = some(view.flavors_for(view.setup.queues[w.queue], w))
    message = (
        f"needs {need(w.parts)}; no nodes of the flavors of which queue {w.queue} has a quota ({own}) could hold that"
    )
    return message, ("ask for less, or use another queue",)


def _less(pool: Pool, ask: Ask) -> str:
    return f"ask for less (the fleet: {fleet(pool)}), or add nodes that hold {each(ask)}"


def _hardest(pool: Pool, w: Workload) -> Part:
    """The part that lacks most nodes: the one to speak of."""
    return max(w.parts, key=lambda part: part.count - could_hold(pool, w, part.ask, pool.fleet).bit_count())


def _could(pool: Pool, w: Workload) -> int:
    return could_hold(pool, w, _hardest(pool, w).ask, pool.fleet).bit_count()
