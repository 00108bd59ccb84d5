"""Composition root of a simulated fleet: its engine, and who keeps it at work. Loaded by ``penstock up --simulate`` alone."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from penstock.base.settings import Settings
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet
from penstock.jobs.feeder import Feeder
from penstock.jobs.room import Room


class Simulation:
    def __init__(self, settings: Settings, shape: tuple[int, int], clock: Callable[[], float]) -> None:
        nodes, gpus = shape
        self._load = settings.simulate_load
        self.fleet = Fleet(
            nodes,
            gpus,
            settings.simulate_gpu,
            settings.simulate_speed,
            settings.simulate_mtbf,
            settings.simulate_repair,
            cut_nodes=settings.simulate_mig[0] if settings.simulate_mig else 0,
            cut=settings.simulate_mig[1] if settings.simulate_mig else (),
        )
        self.engine = SimulatedEngine(self.fleet, clock=clock)

    def feeding(self, room: Room, jobs_dir: str, leading: Callable[[], bool]) -> list[Awaitable[None]]:
        """The made-up load, if it was asked for."""
        if not self._load:
            return []
        return [Feeder(room, self.fleet, self._load, jobs_dir, leading, random.Random()).run()]
