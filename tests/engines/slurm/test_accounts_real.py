"""Real slurmctld and slurmdbd: jobs that are really held, and a queue file that is really compiled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from penstock.base.reasons import Reason
from penstock.engines.slurm.accounting import Accounts
from penstock.engines.slurm.accounts import Accounting, Action, Change, Key, Kind, limit
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.limits import find
from penstock.engines.slurm.reasons import Why, why
from penstock.engines.slurm.spec import Partition, Site, SlurmJob
from penstock.engines.slurm.transport import LocalTransport
from penstock.scheduling.compiler import Person, compiled
from penstock.scheduling.drift import Made, Plan, plan
from penstock.scheduling.spec import parse_setup
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
HOURS = Partition("all", True, "UP", None, None, ())
SHORT = Partition("short", False, "UP", 600.0, None, ())
SITE = Site("22.05.8", "test", (HOURS, SHORT), ("gpu",), "topology/tree", "", (), "select/cons_tres", {})
FIELDS = "%i|%r|%u|%a|%P|%q"
FILE = """
policy: {order: fairshare, preemption: true}
cohorts:
- {name: teams}
queues:
- {name: vision, cohort: teams, weight: 3, projects: [vision], qos: 0.5, quotas: {default: {gpus: {nominal: 12, borrowing_limit: 4}}}}
- {name: nlp, cohort: teams, projects: [nlp], quotas: {default: {gpus: 12, memory: 16Gi}}, max_time_limit: 2h}
- {name: spare-time, cohort: teams, projects: [scratch]}
"""
PEOPLE = (Person("ann", "nobody", frozenset({"vision", "scratch"})), Person("bob", "sys", frozenset({"nlp"})))


@pytest.fixture
def slurm(slurm_cluster: Cluster) -> Iterator[Cluster]:
    yield slurm_cluster
    slurm_cluster.clear()


def books(slurm: Cluster) -> Accounts:
    return Accounts(LocalTransport({"SLURM_CONF": slurm.environment["SLURM_CONF"]}))


def submit(slurm: Cluster, *words: str, account: str = "research", user: str = "nobody") -> str:
    plain = ("--parsable", "--output=/dev/null", "-D", "/tmp", f"--uid={user}", "-A", account)
    return slurm.run("sbatch", *plain, *words, "--wrap", "sleep 300").strip()


def job(slurm: Cluster, id_: str) -> SlurmJob:
    told = slurm.run("squeue", "-h", "-o", FIELDS, "-j", id_).strip().split("|")
    return SlurmJob(int(told[0]), "wrap", "PENDING", told[1], told[2], told[3], told[4], told[5])


def held(slurm: Cluster, id_: str, reason: str) -> Why:
    """What is said of it, once Slurm says ``reason``."""
    deadline = time.monotonic() + 30
    while not (found := job(slurm, id_)).reason.startswith(reason):
        assert time.monotonic() < deadline, f"{found.reason} is not {reason}"
        time.sleep(0.2)
    return why(found, SITE)


def test_jobs_that_are_really_held_are_told_in_words(slurm: Cluster) -> None:
    first = submit(slurm, "-N8", "--gres=gpu:4", "-t", "60")
    while slurm.state(first) != "RUNNING":
        time.sleep(0.1)
    waits = submit(slurm, "-N8", "--gres=gpu:1", "-t", "60")
    assert held(slurm, waits, "Resources").reason is Reason.WaitingForResources
    assert held(slurm, submit(slurm, "-N8", "--gres=gpu:1", "-t", "60"), "Priority").reason is Reason.WaitingBehind
    depends = submit(slurm, f"--dependency=afterok:{first}")
    assert held(slurm, depends, "Dependency").reason is Reason.WaitingForDependency
    own = submit(slurm, "--hold")
    assert held(slurm, own, "JobHeldUser").message == "is held by its owner"
    slurm.run("scontrol", "hold", waits)  # as root: an administrator
    told = held(slurm, waits, "JobHeldAdmin")
    assert (told.reason, told.message) == (Reason.HeldByAdministrator, "is held by an administrator of the site")
    later = submit(slurm, "--begin=now+1hour")
    assert held(slurm, later, "BeginTime").reason is Reason.BackingOff


def test_nodes_that_are_drained_are_named(slurm: Cluster) -> None:
    slurm.run("scontrol", "update", "NodeName=node-7", "State=DRAIN", "Reason=fan")
    try:
        told = held(slurm, submit(slurm, "--nodelist=node-7"), "ReqNodeNotAvail")
        assert told.reason is Reason.WaitingForResources
        assert "node-7" in told.message
        assert "sinfo -R" in told.help
    finally:
        slurm.run("scontrol", "update", "NodeName=node-7", "State=RESUME")


def test_a_partition_that_is_too_short_or_closed_is_told(slurm: Cluster) -> None:
    slurm.run("scontrol", "create", "PartitionName=short", "Nodes=node-0", "MaxTime=10", "State=UP")
    try:
        told = held(slurm, submit(slurm, "-p", "short", "-t", "60"), "PartitionTimeLimit")
        assert told.reason is Reason.Unschedulable
        assert told.message == "its time limit is longer than partition short allows (10m)"
        slurm.run("scontrol", "update", "PartitionName=short", "State=DOWN")
        told = held(slurm, submit(slurm, "-p", "short", "-t", "5"), "PartitionDown")
        assert "partition short is down" in told.message
    finally:
        slurm.clear()
        slurm.run("scontrol", "delete", "PartitionName=short")


def test_limits_of_accounts_and_qos_are_told(slurm: Cluster) -> None:
    change: Callable[..., str] = lambda *words: slurm.run("sacctmgr", "-i", "modify", *words)  # noqa: E731 - three words, five times
    change("qos", "where", "name=high", "set", "MaxJobsPU=1")
    change("account", "where", "name=interns", "cluster=test", "set", "GrpTRES=gres/gpu=16")
    try:
        submit(slurm, "--qos=high")
        told = held(slurm, submit(slurm, "--qos=high"), "QOSMaxJobsPerUserLimit")
        assert told.reason is Reason.QuotaExceeded
        assert "nobody in QoS high has no room for it within its limit of running jobs" in told.message
        big = submit(slurm, "-N6", "--gres=gpu:4", account="interns", user="mail")
        told = held(slurm, big, "AssocGrpGRES")
        assert told.reason is Reason.QuotaExceeded
        assert "account interns" in told.message
        limits = asyncio.run(books(slurm).limits())
        found = find(limits, job(slurm, big), {"gres/gpu": 24.0})
        told = why(job(slurm, big), SITE, found)
        assert told.reason is Reason.Unschedulable
        assert told.message == (
            "needs more GPUs (or another generic resource) than account interns allows: "
            "needs 24, limit 16, in use 0 (AssocGrpGRES of Slurm)"
        )
    finally:
        slurm.clear()
        change("qos", "where", "name=high", "set", "MaxJobsPU=-1")
        change("account", "where", "name=interns", "cluster=test", "set", "GrpTRES=gres/gpu=-1")


async def apply(found: Plan, made: dict[Key, Made], accounts: Accounts) -> None:
    for one in found.changes:
        await accounts.change(one, "test")
        if one.action is Action.DELETE:
            del made[one.key]
        else:
            before = made[one.key].fields if one.key in made and one.action is Action.SET else {}
            made[one.key] = Made({name: value for name, value in {**before, **one.fields}.items() if value})


def shown(accounting: Accounting, key: Key) -> dict[str, str]:
    return dict(accounting.entities[key])


def test_a_queue_file_is_compiled_changed_and_taken_back(slurm: Cluster) -> None:
    async def main() -> None:
        accounts = books(slurm)
        before = await accounts.read()
        made: dict[Key, Made] = {}
        wanted = compiled(parse_setup(FILE), PEOPLE, before, "c1")
        await apply(plan(wanted, before, made), made, accounts)
        there = await accounts.read()
        assert shown(there, Key(Kind.ACCOUNT, "vision")) == {
            "parent": "teams", "fairshare": "3", "qos": "c1-vision,normal", limit("gres/gpu"): "16",
        }  # fmt: skip
        assert shown(there, Key(Kind.ACCOUNT, "teams"))[limit("mem")] == "16384"
        assert shown(there, Key(Kind.QOS, "c1-vision")) == {"priority": "500", "preempt": "c1-spare-time"}
        again = plan(compiled(parse_setup(FILE), PEOPLE, there, "c1"), there, made)
        assert (again.changes, again.drift, again.left) == ([], [], [])

        held_by_quota = submit(slurm, "-N6", "--gres=gpu:4", "--qos=c1-vision", account="vision")
        await asyncio.to_thread(held, slurm, held_by_quota, "AssocGrpGRES")
        told = why(
            job(slurm, held_by_quota), SITE, find(await accounts.limits(), job(slurm, held_by_quota), {"gres/gpu": 24})
        )
        assert "than account vision allows: needs 24, limit 16, in use 0" in told.message
        slurm.clear()

        slurm.run("sacctmgr", "-i", "modify", "account", "where", "name=vision", "set", "GrpTRES=gres/gpu=99")
        there = await accounts.read()
        found = plan(wanted, there, made)
        assert found.changes == []
        assert [str(one) for one in found.drift] == ["account vision: limit gres/gpu is 99, changed by hand from 16"]
        await apply(plan(wanted, there, made, overwrite=True), made, accounts)

        slurm.run("sacctmgr", "-i", "add", "user", "games", "account=nlp", "cluster=test")
        there = await accounts.read()
        smaller = parse_setup(FILE.replace("qos: 0.5, ", "").replace("preemption: true", "preemption: false"))
        await apply(plan(compiled(smaller, PEOPLE, there, "c1"), there, made), made, accounts)
        there = await accounts.read()
        assert not [key for key in there.entities if key.name.startswith("c1-")]
        ended = plan(compiled(parse_setup("queues: [{name: elsewhere}]"), (), there, "c1"), there, made)
        assert "account nlp: not deleted, user games in account nlp would go with it" in ended.left
        await apply(ended, made, accounts)
        slurm.run("sacctmgr", "-i", "delete", "user", "where", "name=games", "account=nlp", "cluster=test")
        there = await accounts.read()
        ended = plan(compiled(parse_setup("queues: [{name: default}]"), (), there, "c1"), there, made)
        await apply(ended, made, accounts)
        slurm.run("sacctmgr", "-i", "delete", "account", "where", "name=default", "cluster=test")
        assert (await accounts.read()).entities == before.entities

    asyncio.run(main())


def test_sacctmgrs_refusal_is_told_in_its_words(slurm: Cluster) -> None:
    async def main() -> None:
        change = Change(Action.ADD, Key(Kind.USER, "nobody", "no-such-account"), {"fairshare": "1"})
        with pytest.raises(Refused, match="account"):
            await books(slurm).change(change, "test")

    asyncio.run(main())


def test_accounting_that_is_down_is_no_answer(slurm: Cluster) -> None:
    async def main() -> None:
        slurm.stop_dbd()
        try:
            with pytest.raises(Unreachable):
                await books(slurm).read()
            with pytest.raises(Unreachable):
                await books(slurm).runs(time.time() - 60)
        finally:
            slurm.start_dbd()
        assert (await books(slurm).read()).cluster == "test"

    asyncio.run(main())
