"""A history that a real Slurm 22.05 wrote (benchmarks/slurm_history.py, seed 3, 2026-11-25), replayed as it was set up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import slurm_history
from penstock.capacity import slurm_conf, traces
from penstock.capacity.replay import Cluster, TraceJob
from penstock.capacity.scenario import Scenario, Source, replayed
from penstock.capacity.traces import Findings, Selection
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Policy

HERE = Path(__file__).parent / "data/slurm"
SACCT, SITE = str(HERE / "sacct.txt.xz"), (HERE / "site.txt").read_text()
HEAD = slurm_history.FIELDS.replace(",", "|") + "\n"


def rows(path: Path, *lines: str, head: str = HEAD) -> tuple[list[TraceJob], Findings]:
    path.write_text(head + "".join(line + "\n" for line in lines))
    findings = Findings()
    return list(traces.read(str(path), "slurm-sacct", Selection(), findings)), findings


def test_every_row_is_a_job_or_told() -> None:
    findings = Findings()
    jobs = list(traces.read(SACCT, "slurm-sacct", Selection(), findings))
    assert (findings.rows, len(jobs), findings.rejected) == (493, 244, {})
    assert findings.noted == {"job step": 247, "asks no GPU": 1, "part of the job above": 1, "unsorted": 6}
    assert {job.queue for job in jobs} == {"production", "research", "interns"}
    assert {job.partition for job in jobs} == {"gpu", "urgent"}
    assert {job.qos for job in jobs} == {"normal", "high"}
    ids = [job.id for job in jobs]
    assert sorted({id_ for id_ in ids if ids.count(id_) > 1}), "those that were requeued ran twice"
    (suspended,) = (job for job in jobs if job.id == "142")
    assert suspended.duration == 10, "for four seconds of them it stood still, and kept its GPU"
    (het,) = (job for job in jobs if "+" in job.id)
    assert (het.gpus, het.nodes, het.cpus) == (4, 2, 2)
    assert {job.duration > 60 for job in jobs if job.limit == 60} == {False}, "one that ran out of time ran longer"
    assert sum(job.limit == float("inf") for job in jobs) == 1


def test_the_replay_comes_near_the_waits_that_really_happened() -> None:
    scenario = Scenario(4, 4, cpus_per_node=8, slurm_conf=SITE)
    found = replayed(scenario, Source(SACCT, "slurm-sacct"), lambda: 0.0)
    reality = found["reality"]
    assert reality["jobs"] == 244
    assert reality["mean_error"] < 0.15
    assert reality["p95_error"] < 0.10
    assert not found["not_modelled"]
    other = replayed(Scenario(4, 4, cpus_per_node=8), Source(SACCT, "slurm-sacct"), lambda: 0.0)["reality"]
    assert other["p50_error"] > 1.5 * reality["p50_error"], "its own policy is what makes it come near"


def test_the_site_is_read_as_slurm_prints_it() -> None:
    site = slurm_conf.read(SITE)
    policy = site.policy(Policy())
    assert (policy.order, policy.blocking, policy.backfill, policy.depth) == ("multifactor", "strict", "replan", 500)
    assert policy.weights == (("age", 3000.0), ("fairshare", 1500.0))
    assert (policy.decay_half_life_s, policy.max_age_s) == (120, 300)
    assert (policy.rescore_s, policy.replan_s) == (60, 2)
    setup = site.setup(Setup())
    assert {name: queue.weight for name, queue in setup.queues.items()} == {
        "root": 1, "production": 5, "research": 3, "interns": 1,
    }  # fmt: skip
    assert setup.queues["research"].user_weights == {"games": 1, "man": 1, "sys": 3}
    assert setup.queues["interns"].quotas["default"]["gpus"].nominal == 4
    assert site.partitions["gpu"].max_s == 3600


def test_what_a_job_brings_to_its_priority() -> None:
    """Figures of ``sprio`` in that run: 500 for size and 1500 for the partition, 1 GPU and 2 CPUs of 4 nodes."""
    fitted = slurm_conf.read(SITE).job(Cluster(4, 4, 8))
    job = TraceJob("a", 0, 10, 1, nodes=1, cpus=2, partition="gpu", qos="normal", limit=float("inf"))
    assert (fitted(job).priority, fitted(job).limit) == (78 + 375, 3600)
    urgent = TraceJob("a", 0, 10, 1, nodes=1, cpus=2, partition="urgent", qos="high", limit=float("inf"))
    assert (fitted(urgent).priority, fitted(urgent).limit) == (78 + 1500 + 1000, float("inf"))


def test_accounts_below_accounts_and_what_is_not_followed() -> None:
    site = slurm_conf.read(
        "PriorityDecayHalfLife=0\nPreemptType=preempt/qos\nPriorityFlags=NO_FAIR_TREE\nPriorityWeightTRES=cpu=5,GRES/gpu=100\n"
        "SchedulerParameters=bf_max_job_user=4\nPartitionName=DEFAULT MaxTime=2-0 PriorityTier=1\n"
        "PartitionName=a Nodes=x PriorityTier=3\nAccount|ParentName|User|Share|GrpTRES\nroot|||1|\nlab|root||4|\n"
        "vision|lab||2|cpu=9,gres/gpu=8\nvision||ann|parent|\nlab||eve|3|\n"
    )
    setup = site.setup(Setup())
    assert setup.cohorts["lab"].weight == 4
    assert {name: queue.cohort for name, queue in setup.queues.items()} == {"root": None, "lab": "lab", "vision": "lab"}
    assert setup.queues["vision"].quotas["default"]["gpus"].borrowing_limit == 0
    assert list(site.not_modelled()) == ["PreemptType=preempt/qos", "PriorityFlags=NO_FAIR_TREE", "bf_max_job_user"]
    assert site.partitions["a"].max_s == 2 * 86400
    job = site.job(Cluster(2, 8, 16))(TraceJob("a", 0, 10, 8, cpus=16, partition="a"))
    assert job.priority == 2e10 + 50 + 2.5 - 0.5
    assert site.policy(Policy()).decay_half_life_s > 3e9


def test_odd_rows(tmp_path: Path) -> None:
    job = "{id}|ann|lab|gpu|normal|{submit}|{submit}|{start}|{end}|{ran}|{limit}|{state}|{alloc}|{req}|2"

    def row(id_: str, **other: str) -> str:
        usual = {
            "submit": "2026-01-01T00:00:00", "start": "2026-01-01T01:00:00", "end": "2026-01-01T02:00:00",
            "ran": "01:00:00", "limit": "UNLIMITED", "state": "COMPLETED", "req": "",
            "alloc": "billing=4,cpu=4,gres/gpu:a100=2,mem=1.50T,node=2",
        }  # fmt: skip
        return job.format(id=id_, **(usual | other))

    jobs, found = rows(
        tmp_path / "s",
        row("1"),
        row("1.0"),
        row("1.extern"),
        row("12_[3-9%2]", start="None", end="2026-01-01T02:00:00", state="CANCELLED by 1000"),
        row("13+0"),
        row("13+1", alloc="gres/gpu=1"),
        row("14", ran="00:40:00", state="COMPLETED"),  # suspended for twenty minutes
        row("15", start="2026-01-01T03:00:00"),
        row("16", state="COMPLETED|stray"),
        row("17", alloc="gres/gpu=many"),
        row("18", alloc="cpu=4"),
        row("19", submit="Unknown"),
        row('20"', limit="Partition_Limit"),
    )
    assert [(one.id, one.gpus, one.duration) for one in jobs] == [
        ("1", 2, 3600), ("13+0", 3, 3600), ("14", 2, 3600), ('20"', 2, 3600),
    ]  # fmt: skip
    assert jobs[0].memory == int(1.5 * 1024**4)
    assert found.rejected == {
        "never started": 1, "negative duration": 1, "wrong number of columns": 1, "not a quantity": 1, "no submission": 1,
    }  # fmt: skip
    assert [problem.line for problem in found.problems] == [5, 9, 10, 11, 13]
    assert found.noted == {"job step": 2, "part of the job above": 1, "asks no GPU": 1}


def test_the_document_tells_a_site_these_commands() -> None:
    told = (Path(__file__).resolve().parents[2] / "docs/capacity.md").read_text()
    for command in (slurm_history.SACCT, *slurm_history.SITE):
        assert re.search(re.escape(" ".join(command)), told), command


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.needs("slurmdbd", "root")
def test_a_history_made_now(tmp_path: Path) -> None:
    """Some four minutes. Waits of seconds, which fair share moves about from minute to minute: within a third."""
    slurm_history.record(tmp_path, jobs=130, seconds=75, seed=5)
    source = Source(str(tmp_path / "sacct.txt"), "slurm-sacct")
    scenario = Scenario(4, 4, cpus_per_node=8, slurm_conf=(tmp_path / "site.txt").read_text())
    found = replayed(scenario, source, lambda: 0.0)
    trace = found["trace"]
    assert trace["rows"] > 200
    assert set(trace["rejected_by_reason"]) <= {"never started"}
    assert trace["noted_by_reason"]["job step"] > 100
    assert trace["noted_by_reason"]["part of the job above"] == 1
    assert found["reality"]["p95_error"] < 0.34
    assert found["reality"]["mean_error"] < 0.34
