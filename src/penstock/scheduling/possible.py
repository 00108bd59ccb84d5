"""Whether a workload could ever run on a fleet: on every node that is there, closed ones too, with nobody on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.scheduling.masks import bits

if TYPE_CHECKING:
    from penstock.scheduling.pool import Pool
    from penstock.scheduling.state import Workload


def could_place(pool: Pool, w: Workload) -> bool:
    """Required topology included."""
    domains = [pool.fleet]
    if w.topology is not None and w.topology.required:
        domains = next(iter(pool.domains.climb(w.topology, pool.fleet)))
    return any(_holds_empty(pool, w, mask) for mask in domains)


def _holds_empty(pool: Pool, w: Workload, mask: int) -> bool:
    for part in sorted(w.parts, key=lambda part: -part.ask.gpus):
        need = part.count
        for i in bits(mask):
            node = pool.nodes[i]
            if need and node is not None and node.name not in w.exclude:
                flavored = not w.flavors or node.flavor in w.flavors
                if flavored and pool.fits_empty(part.ask, node):
                    need -= 1
                    mask &= ~(1 << i)
            if not need:
                break
        if need:
            return False
    return True
