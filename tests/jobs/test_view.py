"""The scheduler's view of the fleet, as the rows have it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.engines.simulated.shape import Fleet, offers
from penstock.fleet import inventory
from penstock.jobs.spec import JobSpec, Placement
from penstock.jobs.view import Memory, View, to_workload
from penstock.scheduling import live
from penstock.scheduling.spec import Setup
from tests.stores import opened

SETUP = "flavors: [{name: fast, labels: {tier: fast}}]\nqueues: [{name: default}]\n"


def test_every_node_counts_and_labels_are_seen_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db") as store:
            await store.write(lambda tx: inventory.sync(tx, "simulated", offers(Fleet(20, 8))))
            await store.write(lambda tx: live.replace(tx, SETUP, actor="ann"))
            view = View(Memory())
            store.project(lambda _tx, event: view.mark(event))
            scheduler = await store.read(lambda conn: view.build(conn, 0.0))
            assert scheduler.fair.capacity["gpus"] == 160
            names = [f"node-{n}" for n in range(3)]
            labels = {"topology/rack": "rack-9", "tier": "fast"}
            await store.write(lambda tx: inventory.label(tx, names, labels, actor="ann"))
            await store.read(lambda conn: view.refresh(conn, 1.0))
            assert scheduler.fair.capacity["gpus"] == 160
            mask = scheduler.pool.node_mask(names)
            assert scheduler.pool.flavor_mask("fast") == mask
            assert scheduler.pool.domains.masks("rack")["block-1", "rack-9"] == mask
            smaller = offers(Fleet(5, 8))
            await store.write(lambda tx: inventory.sync(tx, "simulated", smaller))
            await store.read(lambda conn: view.refresh(conn, 2.0))
            assert scheduler.fair.capacity["gpus"] == 40

    asyncio.run(main())


def test_what_a_spec_says_of_its_place() -> None:
    spec = JobSpec.model_validate(
        {
            "command": ["train"],
            "resources": {"gpus": 8, "gpu_model": ["A", "B"]},
            "flavors": ["fast", "slow"],
            "exclude_nodes": ["node-7"],
            "placement": {"level": "rack", "required": True},
            "time_limit": "1h",
        }
    )
    work = to_workload(Setup(), spec, "default", "ann", speed=60)
    assert work.parts[0].ask.gpu_models == ("A", "B")
    assert (work.flavors, sorted(work.exclude), work.limit_s) == (("fast", "slow"), ["node-7"], 60.0)
    assert work.topology is not None
    assert (work.topology.level, work.topology.required) == ("rack", True)
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec


def test_a_level_is_one_that_there_is() -> None:
    for level in ("rack", "block", "host"):
        assert Placement.model_validate({"level": level}).level == level
    with pytest.raises(ValueError, match="'block', 'rack' or 'host'"):
        Placement.model_validate({"level": "rak"})
