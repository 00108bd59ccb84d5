"""Whether a workload could ever run on a fleet: on every node that is there, closed ones too, with nobody on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import islice
from operator import or_
from typing import TYPE_CHECKING

from penstock.scheduling.masks import bits

if TYPE_CHECKING:
    from penstock.scheduling.pool import Pool
    from penstock.scheduling.state import Ask, NodeState, Workload


def could_place(pool: Pool, w: Workload, within: int | None = None) -> bool:
    """Required topology included; ``within``: on these nodes alone."""
    fleet = pool.fleet if within is None else pool.fleet & within
    domains = [fleet]
    if w.topology is not None and w.topology.required:
        domains = next(iter(pool.domains.climb(w.topology, fleet)), [])
    return any(_holds_empty(pool, w, mask) for mask in domains)


def _holds_empty(pool: Pool, w: Workload, mask: int) -> bool:
    for part in sorted(w.parts, key=lambda part: -part.ask.gpus):
        fitting = could_hold(pool, w, part.ask, mask)
        if fitting.bit_count() < part.count:
            return False
        for i in islice(bits(fitting), part.count):
            mask &= ~(1 << i)
    return True


def could_hold(pool: Pool, w: Workload, ask: Ask, mask: int) -> int:
    """Of these nodes, those that could hold one such group of it, which is found out once for all that are alike."""
    if w.flavors:
        mask &= reduce(or_, map(pool.flavor_mask, w.flavors))
    if w.exclude:
        mask &= ~pool.node_mask(w.exclude)
    found = 0
    for node, alike in _kinds(pool):
        if alike & mask and pool.fits_empty(ask, node):
            found |= alike & mask
    return found


def one_of_each(pool: Pool) -> list[NodeState]:
    """A node of each kind that the fleet has."""
    return [node for node, _ in _kinds(pool)]


def _kinds(pool: Pool) -> Iterator[tuple[NodeState, int]]:
    for alike in pool.alike.values():
        node = pool.nodes[alike.bit_length() - 1] if alike else None
        if node is not None:
            yield node, alike


def capacity(node: NodeState) -> tuple[object, ...]:
    """What alike nodes have in common; ids of GPUs are no part of it."""
    return node.cpus, node.memory, tuple([(gpu.model, gpu.mig) for gpu in node.gpus])
