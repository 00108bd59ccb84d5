"""By which weights the queues bear what nobody used, under the idle rule ``quota``: their nominal quotas. Pure.

Of a GPU model the nominal GPUs in the flavors that name the model; where no queue has any, in the flavors that name no
model at all. Of cores and memory the nominal cores and memory, of a node that is paid for as a whole the nominal GPUs;
and where a queue file says nothing of the resource itself, all nominal GPUs. Cohorts' own quotas are nobody's, and bear
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from penstock.cost.spec import CPUS, GPUS, MEMORY
from penstock.scheduling.models import any_means
from penstock.scheduling.spec import Flavor, Setup

_MILLI = 1000
_KINDS = {CPUS: "cpus", MEMORY: "memory"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Thousandths of a unit by resource and queue; ``gpus`` of everything that nothing else has something for."""

    of: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    anything: Mapping[str, int] = field(default_factory=dict)  # GPUs of models that no flavor names
    gpus: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[tuple[str, ...], Mapping[str, int]] = field(default_factory=dict)  # by the names that flavors give

    def bearers(self, how: str, resource: str) -> Mapping[str, int]:
        """Who bears a pool that is paid ``how`` (allocation.Pool); nobody where no queue has a quota."""
        if how in ("node", "reserved"):
            return self.gpus
        if not resource.startswith(GPUS):
            return self.of.get(resource) or self.gpus
        found: Counter[str] = Counter()
        for names, amounts in self.named.items():
            if any_means(names, resource.removeprefix(GPUS)):
                found.update(amounts)
        return found or self.anything or self.gpus


def weights(setup: Setup) -> Weights:
    """Of the queues that a setup has."""
    names = sorted({flavor.gpu_models for flavor in setup.flavors.values() if flavor.gpu_models})
    return Weights(
        {resource: _sums(setup, kind, lambda _: True) for resource, kind in _KINDS.items()},
        _sums(setup, "gpus", lambda flavor: not flavor.gpu_models),
        _sums(setup, "gpus", lambda _: True),
        {one: _sums(setup, "gpus", partial(_names, one)) for one in names},
    )


def _names(names: tuple[str, ...], flavor: Flavor) -> bool:
    return flavor.gpu_models == names


def _sums(setup: Setup, kind: str, fits: Callable[[Flavor], bool]) -> dict[str, int]:
    found = {queue: sum(amounts) for queue, amounts in _amounts(setup, kind, fits)}
    return {queue: amount for queue, amount in found.items() if amount > 0}


def _amounts(setup: Setup, kind: str, fits: Callable[[Flavor], bool]) -> Iterator[tuple[str, list[int]]]:
    for queue in setup.queues.values():
        yield (
            queue.name,
            [
                round(by[kind].nominal * _MILLI)
                for flavor, by in queue.quotas.items()
                if kind in by and fits(setup.flavors.get(flavor, Flavor(flavor)))
            ],
        )
