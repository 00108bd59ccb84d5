"""How many replicas quota leaves a service, from the rows of a store."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.spec import NodeOffer
from penstock.fleet import inventory
from penstock.jobs import admission, submit
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.view import Memory, View
from penstock.scheduling import live
from penstock.serving import allowance, versions
from penstock.serving.spec import ServiceSpec
from tests.stores import Clock, opened

QUEUES = """
cohorts: [{name: all}]
queues:
- {name: a, cohort: all, quotas: {default: {cpus: 6}}}
- {name: b, cohort: all, quotas: {default: {cpus: 4}}}
"""


async def asked(path: Path, queue: str | None, queues: str, taken: dict[str, int]) -> int | None:
    """``taken``: cores that other jobs hold, by queue."""
    clock, memory = Clock(), Memory()
    spec: dict[str, Any] = {
        "runtime": "command",
        "command": ["serve", "{port}"],
        "resources": {"cpus": 2},
        "queue": queue,
    }
    scales = ServiceSpec.model_validate(spec | {"autoscaling": {"min": 1, "max": 50}})
    async with opened(f"sqlite:///{path}/store.db", clock) as store:
        view = View(memory)
        store.project(lambda _tx, event: view.mark(event))
        if queues:
            await store.write(lambda tx: live.replace(tx, queues, actor="admin"))
        await store.write(lambda tx: inventory.sync(tx, "simulated", [NodeOffer("n0", 64.0, 1 << 36, ())]))
        for name, cores in taken.items():
            other = JobSpec(command=("train.py",), resources=Resources(cpus=float(cores)), queue=name)
            await store.write(partial(submit.create, new=submit.NewJob("default", None, "ann", other)))
        await store.write(lambda tx: admission.cycle(tx, view, admission.Setting("/jobs", "simulated", 1, memory)))
        new = versions.NewService("default", "digits", versions.By("ann"), {}, scales)
        made = await store.write(lambda tx: versions.create(tx, new))
        held = await store.read(lambda conn: versions.held(conn, made))
        assert held is not None
        return await store.read(lambda conn: allowance.most(conn, held, memory, clock.now))


@pytest.mark.parametrize(
    ("queue", "queues", "taken", "most"),
    [
        ("a", QUEUES, {}, 5),  # all ten cores of the cohort, two each
        ("a", QUEUES, {"b": 4}, 3),
        ("a", QUEUES, {"a": 3}, 3),
        ("a", QUEUES, {"b": 10}, 3),  # its own six cores, though b has borrowed them
        (None, QUEUES, {}, None),
        (None, "", {}, None),
    ],
)
def test_what_quota_leaves(tmp_path: Path, queue: str | None, queues: str, taken: dict[str, int], most: int) -> None:
    assert asyncio.run(asked(tmp_path, queue, queues, taken)) == most
