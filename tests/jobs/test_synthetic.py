"""Made-up work: whatever chance says, it is a job that the fleet could run."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.simulated.script import Script
from penstock.jobs import synthetic
from penstock.jobs.spec import JobSpec
from penstock.scheduling.spec import parse_setup


@given(st.integers(1, 3000), st.integers(0, 16), st.integers(), st.booleans())
def test_every_job_fits_the_fleet(nodes: int, gpus: int, seed: int, begun: bool) -> None:
    made = synthetic.make(nodes, gpus, Random(seed), begun=begun)
    spec = JobSpec.model_validate(made.spec)
    assert 1 <= spec.nodes <= min(nodes, synthetic.MOST_NODES)
    assert 0 <= spec.resources.gpus <= gpus
    assert made.gpus >= spec.nodes * spec.resources.gpus
    assert made.gpus >= 1
    assert Script.parse(spec.command, 0.0).run_s >= 1
    assert made.user in synthetic.TEAMS[made.project][0]


@given(st.integers(1, 100_000), st.sampled_from(["gpus", "cpus"]))
def test_the_queues_promise_what_there_is(units: int, resource: str) -> None:
    setup = parse_setup(synthetic.queue_file(units, resource), capacity={"default": {resource: float(units)}})
    assert sum(queue.quotas["default"][resource].nominal for queue in setup.queues.values()) == units
    assert {project for queue in setup.queues.values() for project in queue.projects} == set(synthetic.TEAMS)


def test_the_load_swings_about_its_mean() -> None:
    day = [synthetic.wanted(0.9, 100, 3600.0 * hour, 0.0, 1.0) for hour in range(24)]
    assert abs(sum(day) / 24 - 90) < 1e-6
    assert min(day) < 70
    assert max(day) > 110
