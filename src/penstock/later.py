"""Composition root, last part: what most starts of the server do without, loaded when it is first asked for.

Bills and replays are asked for now and then; with the simulated fleet (simulation.py) they cost a start some 40 ms.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from penstock.base.routes import Endpoint
from penstock.base.settings import Settings
from penstock.capacity import routes as capacity_routes
from penstock.capacity.replays import Replays
from penstock.cost import bill_routes, outlook
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.fleet import engine_routes, inventory
from penstock.fleet.attached import Attached
from penstock.jobs import history
from penstock.scheduling import live
from penstock.store.store import Store


@dataclass(frozen=True, slots=True)
class Rooms:
    endpoints: Sequence[Endpoint]
    close: Callable[[], Awaitable[None]]


def rooms(settings: Settings, store: Store, rates: Prices, terms: Terms, attached: Attached) -> Rooms:
    """Bills, the months to come, replays, and the engines that were added."""
    replays = Replays(store, settings.data_dir, history.trace, live.text, inventory.gpus_by_node)
    what_if = capacity_routes.Room(store, replays, rates, terms, history.extent)
    return Rooms(
        (
            *bill_routes.endpoints(store, rates, terms),
            *outlook.endpoints(store, rates, terms),
            *capacity_routes.endpoints(what_if),
            *engine_routes.endpoints(attached),
        ),
        replays.close,
    )
