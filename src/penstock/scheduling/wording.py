"""What is asked for, and what is there, in words: of these the sentences of explain.py and never.py are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.base.quantities import format_memory
from penstock.scheduling.pool import Pool, bits
from penstock.scheduling.possible import one_of_each
from penstock.scheduling.quota import Refusal
from penstock.scheduling.state import Ask, Part

MOST_NAMED = 5


def need(parts: Sequence[Part]) -> str:
    """``2 nodes with 4 CPUs each``."""
    if len(parts) == 1 and parts[0].count == 1:
        return each(parts[0].ask)
    return " and ".join(f"{p.count} node{'s' if p.count != 1 else ''} with {each(p.ask)} each" for p in parts)


def each(ask: Ask) -> str:
    told = [f"{ask.cpus:g} CPU{'s' if ask.cpus != 1 else ''}"] if ask.cpus or not gpus_of(ask) else []
    if ask.memory:
        told.append(f"{format_memory(ask.memory)} of memory")
    return ", ".join([*told, *gpus_of(ask)])


def gpus_of(ask: Ask) -> list[str]:
    model = f" {' or '.join(ask.gpu_models)}" if ask.gpu_models else ""
    if ask.mig:
        return [f"{max(ask.gpus, 1)} {ask.mig} MIG instance{'s' if ask.gpus > 1 else ''}"]
    if ask.gpu_milli:
        return [f"{ask.gpu_milli / 1000:g} of one{model} GPU"]
    return [f"{ask.gpus}{model} GPU{'s' if ask.gpus != 1 else ''}"] if ask.gpus else []


def have(count: int) -> str:
    return "has" if count == 1 else "have"


def how_many(number: int) -> str:
    return "no node" if number == 0 else "only 1 node" if number == 1 else f"only {number} nodes"


def freest(pool: Pool, ask: Ask, mask: int) -> str:
    """The freest open node among these."""
    wants_gpus = bool(gpus_of(ask))
    mask &= pool.open
    if not mask:
        return "; no node is open"
    if wants_gpus:
        mask = next(hit for level in reversed(pool.levels) if (hit := level & mask))
    i = max(bits(mask), key=lambda i: (pool.free_cpus[i], pool.free_memory[i], -i))
    node = pool.nodes[i]
    assert node is not None
    told = [f"{max(pool.free_cpus[i], 0):g} of {node.cpus:g} CPUs"] if ask.cpus or not wants_gpus else []
    if ask.memory:
        told.append(f"{format_memory(max(pool.free_memory[i], 0))} of {format_memory(node.memory)} memory")
    if wants_gpus:
        told.append(f"{pool.free_bits[i].bit_count()} of {len(node.gpus)} GPUs")
    return f"; the freest, {node.name}, has {', '.join(told)} free"


def fleet(pool: Pool) -> str:
    nodes = one_of_each(pool)
    if not nodes:
        return "no nodes"
    cpus, memory = max(node.cpus for node in nodes), max(node.memory for node in nodes)
    gpus, number = max(len(node.gpus) for node in nodes), pool.fleet.bit_count()
    of = f"{cpus:g} CPU{'s' if cpus != 1 else ''}, {format_memory(memory)}, {gpus} GPU{'s' if gpus != 1 else ''}"
    return f"{number} node{'s' if number != 1 else ''} of up to {of}"


def amount(resource: str, value: float) -> str:
    return format_memory(int(value)) if resource == "memory" else f"{value:g}"


def quota_asked(refusal: Refusal) -> str:
    """``needs 2 GPUs of h100``."""
    asked = amount(refusal.resource, refusal.asked)
    plural = "" if asked == "1" else "s"
    unit = {"gpus": f" GPU{plural}", "cpus": f" CPU{plural}"}.get(refusal.resource, " of memory")
    return f"needs {asked}{unit} of {refusal.flavor}"


def some(names: Iterable[str]) -> str:
    """``a, b, c and 4 more``."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return ", ".join(known[:MOST_NAMED]) + more
