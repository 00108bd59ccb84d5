"""Composition root, last part: what most starts of the server do without, loaded when it is first asked for.

Bills and replays are asked for now and then; with the simulated fleet (simulation.py) they cost a start some 40 ms.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from penstock.base.errors import Conflict, PenstockError
from penstock.base.routes import Endpoint
from penstock.base.settings import Settings
from penstock.capacity import routes as capacity_routes
from penstock.capacity.replays import Replays
from penstock.cost import bill_routes, outlook, outside, service_routes
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.diagnosis import nodes as node_history
from penstock.diagnosis import routes as diagnosis_routes
from penstock.diagnosis import step_routes
from penstock.diagnosis.injecting import routes as injecting_routes
from penstock.engines.slurm.accounting import Accounted
from penstock.fleet import engine_routes, inventory, registry
from penstock.fleet.attached import Attached
from penstock.health import evidence_routes
from penstock.health.room import Health
from penstock.jobs import hardware, history
from penstock.scheduling import compiling, live
from penstock.serving import routes as serving_routes
from penstock.serving.room import Serving
from penstock.store.store import Store, Tx
from penstock.telemetry import routes as telemetry_routes
from penstock.telemetry.room import Telemetry

log = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class Rooms:
    endpoints: Sequence[Endpoint]
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Early:
    """Rooms that are at work from the start; their endpoints come late."""

    telemetry: Telemetry
    serving: Serving | None = None
    health: Health | None = None


def rooms(
    settings: Settings,
    store: Store,
    rates: Prices,
    terms: Terms,
    attached: Attached,
    job_user: str | None,
    early: Early,
) -> Rooms:
    """Bills, the months to come, replays, and the engines that were added. ``job_user``: of users who are mapped to none."""

    async def accounting(name: str) -> compiling.Engine:
        engine = attached.engines.named(name)
        if not isinstance(engine, Accounted):
            raise Conflict(
                f"the engine {name!r} has no accounts of its own: the queue file holds there as it is",
                hint="Name one that schedules itself; `penstock engines` lists them.",
            )
        managed = await store.read(lambda conn: registry.managed(conn, name))
        return compiling.Engine(engine.name, engine.accounts, managed, job_user)

    replays = Replays(store, settings.data_dir, history.trace, live.text, inventory.gpus_by_node)
    what_if = capacity_routes.Room(store, replays, rates, terms, history.extent)
    return Rooms(
        (
            *bill_routes.endpoints(store, rates, terms),
            *outlook.endpoints(store, rates, terms),
            *capacity_routes.endpoints(what_if),
            *engine_routes.endpoints(attached),
            *compiling.endpoints(store, accounting),
            *telemetry_routes.endpoints(early.telemetry),
            *(evidence_routes.endpoints(early.health, early.telemetry.series) if early.health is not None else ()),
            *(_served(settings, store, rates, early.serving, early.telemetry) if early.serving is not None else ()),
            *(hardware.endpoints(early.serving.room, early.telemetry) if early.serving is not None else ()),
        ),
        replays.close,
    )


def _served(
    settings: Settings, store: Store, rates: Prices, serving: Serving, telemetry: Telemetry
) -> Sequence[Endpoint]:
    return (
        *serving_routes.endpoints(serving),
        *service_routes.endpoints(store, rates, serving),
        *diagnosis_routes.endpoints(serving.room, node_history.history(store, telemetry)),
        *step_routes.endpoints(serving.room),
        *injecting_routes.endpoints(serving.room, settings.production),
    )


async def look_outside(store: Store, attached: Attached, fence: Callable[[Tx], object], silent: dict[str, str]) -> None:
    """Take jobs that were submitted to engines themselves into the ledger; what does not answer is asked again. ``silent``:
    why, by engine, as it was told last: it is not told every minute.
    """
    for engine in list(attached.engines):
        if isinstance(engine, Accounted):
            try:
                await outside.look(store, outside.Source(engine.name, engine.accounts, engine.node_prefix), fence)
                silent.pop(engine.name, None)
            except PenstockError as error:
                if silent.get(engine.name) != error.message:
                    log.warning("jobs from outside on %s are not known for now: %s", engine.name, error)
                silent[engine.name] = error.message
