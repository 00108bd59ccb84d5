from __future__ import annotations

from itertools import takewhile
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.capacity import plan, slurm_conf
from penstock.capacity.failures import by_mtbf, from_file
from penstock.capacity.metrics import Metrics, answer
from penstock.capacity.plan import Trial
from penstock.capacity.replay import Cluster, Failure, Outcome, Replay, TraceJob
from penstock.capacity.synth import CLUSTERS, synthesize
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Policy


def run(
    jobs: list[TraceJob], nodes: int, setup: Setup | None = None, **keywords: object
) -> tuple[Replay, list[Outcome]]:
    ended: list[Outcome] = []
    replay = Replay(jobs, Cluster(nodes, 8), setup or Setup(), sink=ended.append, **keywords)  # type: ignore[arg-type]
    replay.run()
    return replay, ended


def test_a_gang_is_lost_together_and_starts_again_from_its_checkpoint() -> None:
    job = TraceJob("a", 0, 1000, 16)
    _, (scratch,) = run([job], 2, failures=[Failure(1, 250, 300)])
    assert (scratch.start, scratch.end, scratch.failures, scratch.lost_s, scratch.waited) == (300, 1300, 1, 250, 50)
    _, (kept,) = run([job], 2, failures=[Failure(1, 250, 300)], checkpoint_s=100)
    assert (kept.end, kept.lost_s) == (1100, 50)


def test_what_is_borrowed_is_lent_by_somebody() -> None:
    queues = {name: Queue(name, "all", {"default": {"gpus": Quota(8)}}) for name in ("a", "b")}
    setup = Setup(queues=queues, cohorts={"all": Cohort("all")})
    replay, ended = run([TraceJob("x", 0, 3600, 16, "a")], 2, setup)
    metrics = Metrics()
    metrics.add(ended[0])
    found = answer(metrics, replay, 0.0)["by_queue"]
    assert found["a"]["used_gpu_hours"] == 16
    assert found["a"]["borrowed_gpu_hours"] == 8 == found["b"]["lent_gpu_hours"]
    assert found["b"]["idle_gpu_hours"] == 8


jobs = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 300), st.integers(1, 24), st.sampled_from("ab")),
    min_size=1,
    max_size=40,
)
losses = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(1, 200)), max_size=5)


@given(
    jobs,
    losses,
    st.sampled_from(("fifo", "sjf", "fairshare")),
    st.sampled_from(("strict", "skip")),
    st.sampled_from(("none", "easy", "conservative")),
)
def test_every_job_ends_and_gpus_add_up(
    rows: list[tuple[int, int, int, str]], lost: list[tuple[int, int, int]], order: str, blocking: str, fill: str
) -> None:
    trace = [TraceJob(str(n), *row[:3], row[3], line=n) for n, row in enumerate(sorted(rows))]
    failures = [Failure(node, at, at + away) for node, at, away in lost]
    policy = Policy(order, blocking, fill)
    replay, ended = run(trace, 3, Setup(policy=policy), failures=failures)
    assert len(ended) == len(trace)
    work = sum(one.job.gpus * (one.job.duration + one.lost_s) for one in ended)
    assert replay.result.gpu_seconds == pytest.approx(work)
    assert sum(a.used for a in replay.accounts.by_queue.values()) == pytest.approx(work)
    assert all(one.start >= one.queued_at and one.waited >= 0 for one in ended)
    assert replay.result.gpu_seconds <= replay.result.capacity_gpu_seconds + 1e-6


@given(st.sets(st.integers(1, 60)), st.integers(1, 60), st.integers(1, 10))
def test_the_plan_meets_its_target_and_its_neighbours_below_do_not(good: set[int], start: int, least: int) -> None:
    def met(n: int) -> bool:
        return n in good or n > 60

    best, known = plan.size(lambda n, _: Trial(n, met(n), 1.0 if met(n) else None), start, least)
    assert best is not None
    assert met(best)
    assert best >= least
    assert not any(met(n) for n in range(max(least, best - 3), best))
    assert all(n in known for n in range(max(least, best - 3), best + 1))


def test_failures_of_a_node_do_not_depend_on_how_many_there_are() -> None:
    few, many = (list(takewhile(lambda one: one.at < 1e5, by_mtbf(n, 1000.0, 10.0, Random(1)))) for n in (2, 3))
    assert few == [one for one in many if one.node < 2]
    assert len(few) == pytest.approx(200, rel=0.3)
    assert few == sorted(few, key=lambda one: one.at)


def test_a_job_too_long_for_its_fleet_is_given_up_at_last() -> None:
    replay, ended = run([TraceJob("long", 0, 1e7, 8)], 1, failures=by_mtbf(1, 3600.0, 60.0, Random(1)))
    assert (ended, [one.failures for one in replay.result.unplaced]) == ([], [1000])


def test_a_job_that_only_a_whole_fleet_could_hold_is_given_up_at_last() -> None:
    """Nodes fail so often that they are never all there."""
    failures = by_mtbf(50, 3600.0, 3600.0, Random(1))
    replay, ended = run([TraceJob("all", 10, 3600, 400), TraceJob("one", 11, 60, 1)], 50, failures=failures)
    assert [one.job.id for one in replay.result.unplaced] + [one.job.id for one in ended] in (
        ["all", "one"], ["one", "all"],
    )  # fmt: skip


def test_a_failure_file_tells_all_its_errors() -> None:
    with pytest.raises(InvalidInput) as caught:
        list(from_file("node,at_s,until_s\n0,5,4\n9,1,2\nx,1,2\n", 2))
    assert [problem.line for problem in caught.value.details] == [2, 3, 4]


def test_slurm_conf() -> None:
    text = (
        "PriorityWeightAge=1000\nPriorityDecayHalfLife=14-0\nSchedulerParameters=bf_window=1440,bf_max_job_test=500\n"
    )
    found = slurm_conf.read(text).policy(Policy())
    assert (found.order, found.backfill, found.depth) == ("multifactor", "replan", 500)
    assert found.weights == (("age", 1000.0),)
    assert found.decay_half_life_s == 14 * 86400
    with pytest.raises(InvalidInput):
        slurm_conf.read("PriorityWeightAge=much\n")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_made_up_work_is_like_the_published(cluster: str) -> None:
    of, rows = CLUSTERS[cluster], list(synthesize(cluster, 20_000, Random(91)))
    for key, mean, median in (("duration_s", of.mean_run, of.median_run), ("gpus", of.mean_gpus, of.median_gpus)):
        values = sorted(float(str(row[key])) for row in rows)
        assert sum(values) / len(values) == pytest.approx(mean, rel=0.1)
        assert values[len(values) // 2] == pytest.approx(median, rel=0.1)
    failed = sum(row["status"] == "Failed" for row in rows) / len(rows)
    assert failed == pytest.approx(of.failed, abs=0.03)


@pytest.mark.parametrize("order", ["fifo", "sjf", "fairshare"])
def test_starts_are_foretold_where_nothing_is_promised_and_nothing_changes_by_it(order: str) -> None:
    """A limit is kept to the second in the first half and overestimated in the second: so starts are earlier than told."""
    jobs = [TraceJob(str(n), 10 * n, 1000, 8, limit=1000 if n < 20 else 4000) for n in range(40)]
    _, plain = run(jobs, 2, Setup(policy=Policy(order=order)))
    replay = Replay(jobs, Cluster(2, 8), Setup(policy=Policy(order=order)))
    replay.foretell = True
    told = replay.run().outcomes
    assert [(one.job.id, one.start) for one in told] == [(one.job.id, one.start) for one in plain]
    metrics = Metrics()
    for one in told:
        metrics.add(one)
    found = answer(metrics, replay, 0.0)["start_estimate_error"]
    assert found["jobs"] == 38
    if order == "fifo":
        assert [one.promised for one in told[2:10]] == [one.start for one in told[2:10]]
        assert found["mean_s"] <= 0
