"""Each way in which a job can end or be held up on a real Slurm, brought about for real, in the house's words."""

from __future__ import annotations

import asyncio
import pwd
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.base.reasons import Reason
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.spec import Launch, Observation, Stage
from tests.engines.conftest import JOB_USER, World, until
from tests.engines.slurm_world import engine, slurm_world
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
Body = Callable[[World], Awaitable[None]]


@pytest.fixture
def on_slurm(data: Path, slurm_cluster: Cluster) -> Callable[..., None]:
    def run(body: Body, **config: Any) -> None:
        async def main() -> None:
            async with slurm_world(slurm_cluster, data, **config) as world:
                await body(world)

        asyncio.run(main())

    return run


def job_of(world: World, launch: Launch) -> str:
    return next(seen.engine_job for seen in world.seen if seen.attempt_id == launch.attempt_id and seen.engine_job)


def stages(world: World, launch: Launch) -> list[Stage]:
    return [seen.stage for seen in world.seen if seen.attempt_id == launch.attempt_id]


def folder_of(world: World, launch: Launch) -> Path:
    return world.data / "cluster" / launch.attempt_id


async def ended(world: World, launch: Launch) -> Observation:
    return await world.end_of(launch)


def test_cancelled_by_an_administrator(on_slurm: Callable[..., None], slurm_cluster: Cluster) -> None:
    async def body(world: World) -> None:
        launch = await world.begin("sleep", "60")
        slurm_cluster.run("scancel", job_of(world, launch))
        end = await ended(world, launch)
        assert (end.stage, end.reason) == (Stage.EXITED, "Cancelled")
        assert end.message == "cancelled in Slurm by root"

    on_slurm(body)


def test_cancelled_while_it_waits(on_slurm: Callable[..., None], slurm_cluster: Cluster) -> None:
    async def body(world: World) -> None:
        first = await world.begin("sleep", "60", cpus=8)
        held = await world.begin("sleep", "60", cpus=8, wait=False)
        seen = await until(lambda: (last := world.last(held)) and last.reason == "WaitingForResources" and last)
        await until(lambda: (last := world.last(held)) and "first in line" in last.message)
        assert seen.stage is Stage.QUEUED
        slurm_cluster.run("scancel", job_of(world, held), user=JOB_USER)
        end = await ended(world, held)
        assert (end.reason, end.message, end.started_at) == ("Cancelled", f"cancelled in Slurm by {JOB_USER}", None)
        other = await world.begin("sleep", "60", cpus=8, wait=False)
        await until(lambda: world.last(other))
        await world.engine.stop(other.attempt_id, other.run_dir, reason="Preempted", grace_s=5.0)
        end = await ended(world, other)
        assert (end.reason, end.message, end.started_at) == ("Preempted", "stopped before it began", None)
        assert world.over(first) is None

    on_slurm(body)


def test_more_memory_than_its_limit(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        hungry = "b = bytearray(900 << 20)\nimport time\ntime.sleep(60)"
        end = await world.run("python3", "-c", hungry, memory=200 << 20)
        assert end.reason == "OutOfMemory"
        assert "200Mi" in end.message
        assert "node-0" in end.message

    on_slurm(body)


def test_preempted_by_the_sites_own_rules(on_slurm: Callable[..., None], slurm_cluster: Cluster) -> None:
    async def body(world: World) -> None:
        launch = await world.begin("sleep", "60", cpus=8)
        urgent = (
            "-N1",
            "-n1",
            "-c8",
            "-w",
            "node-0",
            "-p",
            "urgent",
            "-D",
            "/tmp",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 2",
        )
        slurm_cluster.run("sbatch", *urgent, user="daemon")
        end = await ended(world, launch)
        assert end.reason == "Preempted"
        assert end.ended_at is not None

    on_slurm(body, partition="spare")


def test_requeued_it_goes_on_as_the_same_attempt(on_slurm: Callable[..., None], slurm_cluster: Cluster) -> None:
    async def body(world: World) -> None:
        script = 'echo "run ${PENSTOCK_RESUME_FROM:-first}"; [ -n "$PENSTOCK_RESUME_FROM" ] || exec sleep 60'
        launch = await world.begin("sh", "-c", script, options={"requeue": True})
        while await world.log(launch) != "run first\n":
            await asyncio.sleep(0.05)
        slurm_cluster.run("scontrol", "requeue", job_of(world, launch))
        waits = await until(lambda: (last := world.last(launch)) and last.stage is Stage.QUEUED and last)
        assert (waits.restarts, waits.reason) == (1, Reason.BackingOff), waits.message
        assert waits.ended_at is not None
        # Not at once: slurmd refuses what starts in the second in which it revoked the first run's credential.
        slurm_cluster.run("scontrol", "update", f"JobId={job_of(world, launch)}", "StartTime=now+3")
        end = await ended(world, launch)
        assert (end.reason, end.restarts) == ("Completed", 1), end
        kept = f"{world.data}/cluster/{launch.job_id}/checkpoints"
        assert (await world.log(launch)).splitlines() == ["run first", f"run {kept}"]

    on_slurm(body)


def test_a_run_folder_that_cannot_be_written_is_named(on_slurm: Callable[..., None], data: Path) -> None:
    async def body(world: World) -> None:
        (data / "cluster").chmod(0o755)
        launch = await world.begin("true", wait=False)
        end = await ended(world, launch)
        assert end.reason == "LaunchFailed", end
        assert str(folder_of(world, launch)) in end.message
        assert "--folder" in end.message

    on_slurm(body)


def test_a_limit_of_slurms_own_is_told_when_it_nears(on_slurm: Callable[..., None]) -> None:
    """Of a minute, with a grace of half of that: Slurm's signal comes at once, or as it pleases."""

    async def body(world: World) -> None:
        script = "trap 'echo told; exit 0' TERM; sleep 120 & wait"
        end = await world.run("sh", "-c", script, options={"time": 1}, grace_s=30.0)
        assert end.reason == "TimeLimit", end
        assert end.started_at is not None
        assert end.ended_at is not None
        assert 40 <= end.ended_at - end.started_at <= 60

    on_slurm(body)


def test_a_job_with_a_time_limit_ends_as_soon_as_one_without(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        took = {}
        for limit in (None, 600.0):
            spans = []
            for _ in range(5):
                end = await world.run("true", time_limit_s=limit)
                assert end.ended_at is not None
                spans.append(end.at - end.ended_at)
            took[limit] = min(spans)
        assert took[600.0] < took[None] + 0.5, took

    on_slurm(body)


def test_what_sbatch_refuses_is_told_in_its_words(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        end = await world.run("true", options={"account": "nobodys"})
        assert end.reason == "LaunchFailed"
        assert "account" in end.message.lower()

    on_slurm(body)


def test_no_text_of_a_users_is_run_and_the_folder_is_theirs(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        canary = world.data / "cluster" / "canary"
        evil = f"$(touch {canary})\n#SBATCH --wrap='touch {canary}'\n`touch {canary}` '; touch {canary}; ' \" & touch {canary}"
        where = world.data / "cluster" / "it's $(touch canary) #SBATCH"
        where.mkdir()
        where.chmod(0o777)
        launch = await world.begin(
            "sh", "-c", 'printf "%s|" "$1" "$EVIL"; pwd', "x", evil, wait=False, env={"EVIL": evil}, workdir=str(where),
            job_name="a-$(touch canary)\n#SBATCH -N2", options={"comment": evil},
        )  # fmt: skip
        assert (await ended(world, launch)).reason == "Completed"
        assert await world.log(launch) == f"{evil}|{evil}|{where}\n"
        assert not canary.exists()
        assert list(where.iterdir()) == []
        uid = pwd.getpwnam(JOB_USER or "").pw_uid
        folder = folder_of(world, launch)
        assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {uid}
        assert folder.stat().st_mode & 0o077 == 0

    on_slurm(body)


def test_tasks_of_an_array_are_one_submission(on_slurm: Callable[..., None], slurm_cluster: Cluster) -> None:
    async def body(world: World) -> None:
        tasks = [
            world.launch("sh", "-c", "echo $INDEX; [ $INDEX != 2 ] || exec sleep 60", job_name=f"t-{n}", env={"INDEX": str(n)},
                         array=("01ARRAY", n))
            for n in range(4)
        ]  # fmt: skip
        await world.engine.submit_array(tasks)
        for index in (0, 1, 3):
            assert (await ended(world, tasks[index])).reason == "Completed"
            assert await world.log(tasks[index]) == f"{index}\n"
        assert len({job_of(world, task).partition("_")[0] for task in tasks}) == 1
        await world.engine.stop(tasks[2].attempt_id, tasks[2].run_dir, reason="Cancelled", grace_s=5.0)
        assert (await ended(world, tasks[2])).reason == "Cancelled"

    on_slurm(body)


def test_one_task_of_an_array_that_waits_is_stopped_alone(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        full = await world.begin("sleep", "60", cpus=8)
        tasks = [world.launch("sleep", "1", job_name=f"t-{n}", cpus=8, array=("01ARRAY", n)) for n in range(3)]
        await world.engine.submit_array(tasks)
        await until(lambda: all(world.last(task) for task in tasks))
        await world.engine.stop(tasks[1].attempt_id, tasks[1].run_dir, reason="Cancelled", grace_s=5.0)
        assert (await ended(world, tasks[1])).reason == "Cancelled"
        assert world.over(tasks[0]) is None
        await world.engine.stop(full.attempt_id, full.run_dir, reason="Cancelled", grace_s=5.0)
        for task in (tasks[0], tasks[2]):
            assert (await ended(world, task)).reason == "Completed"

    on_slurm(body)


def test_gpus_are_told_by_index(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        offered = world.engine.nodes()[0]
        assert [(gpu.id, gpu.model) for gpu in offered.gpus] == [(str(n), "h100") for n in range(4)]
        assert offered.labels["topology/rack"] == "leaf1"
        launch = await world.begin(
            "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 60", gpus_per_node=2, gpu_models=("h100",)
        )
        seen = world.last(launch)
        assert seen is not None
        assert [(group.node, len(group.gpus)) for group in seen.groups] == [("node-0", 2)]
        assert set(seen.groups[0].gpus) <= {"0", "1", "2", "3"}
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
        end = await ended(world, launch)
        assert (end.groups, end.signal) == (seen.groups, 15)

    on_slurm(body)


def test_a_rank_that_fails_ends_those_on_other_nodes(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        script = 'if [ "$RANK" = 3 ]; then sleep 0.5; exit 9; fi; echo $RANK $MASTER_ADDR; exec sleep 60'
        end = await world.run("sh", "-c", script, nodes=("node-0", "node-1"), procs=2, cpus=2)
        assert (end.reason, end.exit_code, end.message) == ("Failed", 9, "rank 3 exited with code 9")
        assert [(rank.rank, rank.node, rank.exit_code, rank.signal) for rank in end.ranks] == [
            (0, "node-0", None, 15), (1, "node-0", None, 15), (2, "node-1", None, 15), (3, "node-1", 9, None),
        ]  # fmt: skip

    on_slurm(body)


def test_a_server_that_was_killed_finds_its_submission_by_the_tag(data: Path, slurm_cluster: Cluster) -> None:
    """Between sbatch and its answer: the record has no number, and the job is there."""

    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            launch = await world.begin("sh", "-c", "echo once; sleep 60")
            record = Path(launch.run_dir) / "slurm.json"
            text = record.read_text()
            number = job_of(world, launch)
            assert f'"{number}"' in text
            record.write_text(text.replace(f'"{number}"', '""'))
            second = World(engine(slurm_cluster, data), data)
            await second.engine.start(second.seen.append)
            found = await second.engine.adopt(launch.attempt_id, launch.run_dir)
            assert (found.stage, found.engine_job) == (Stage.RUNNING, number)
            record.write_text(text.replace(f'"{number}"', '""'))
            third = World(engine(slurm_cluster, data), data)
            await third.engine.start(third.seen.append)
            await third.engine.submit(launch)
            await until(lambda: (last := third.last(launch)) and last.stage is Stage.RUNNING)
            assert job_of(third, launch) == number
            await third.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
            assert (await third.end_of(launch)).reason == "Cancelled"
            assert await third.log(launch) == "once\n"
            await second.engine.close()
            await third.engine.close()

    asyncio.run(main())


def test_a_second_job_of_one_attempt_is_cancelled_and_never_runs_it(data: Path, slurm_cluster: Cluster) -> None:
    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            launch = await world.begin("sh", "-c", "echo once; sleep 60")
            other = await world.engine._controller.submit(_again(world, launch))
            await until(lambda: slurm_cluster.state(str(other)) == "FAILED")
            assert await world.log(launch) == "once\n"
            assert world.over(launch) is None

    asyncio.run(main())


def _again(world: World, launch: Launch) -> Any:
    from penstock.engines.slurm import script

    config, fixed = world.engine._config, world.engine._sender._fixed
    text = script.text([launch], config, config.folder, fixed)
    return script.submission([launch], config, text)


def test_slurmctld_goes_and_comes_back(data: Path, slurm_cluster: Cluster) -> None:
    """While a job runs, and while one is submitted: unknown since then, and healed; nothing lost, nothing doubled."""

    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            runs = await world.begin("sh", "-c", "echo runs; sleep 8")
            await asyncio.to_thread(slurm_cluster.stop_ctld)
            try:
                unknown = await until(lambda: (last := world.last(runs)) and last.unknown_since and last)
                assert unknown.stage is Stage.RUNNING
                assert world.engine.unknown_since is not None
                late = await world.begin("echo", "late", wait=False)
                await until(lambda: (last := world.last(late)) and last.unknown_since)
                with pytest.raises(Unreachable):
                    await world.engine.adopt(runs.attempt_id, runs.run_dir)
            finally:
                await asyncio.to_thread(slurm_cluster.start_ctld)
            assert (await ended(world, runs)).reason == "Completed"
            assert (await ended(world, late)).reason == "Completed"
            assert await world.log(late) == "late\n"
            assert world.engine.unknown_since is None
            assert sum(stage is Stage.EXITED for stage in stages(world, late)) == 1

    asyncio.run(main())


def test_a_site_that_never_answered_is_no_error(data: Path, slurm_cluster: Cluster) -> None:
    there = Path(slurm_cluster.environment["SLURM_CONF"]).read_text()

    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            conf = data / "slurm.conf"
            conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", there))
            away = World(engine(slurm_cluster, data, environment={"SLURM_CONF": str(conf)}), data)
            await away.engine.start(away.seen.append)
            assert away.engine.nodes() == []
            launch = await away.begin("true", wait=False)
            seen = await until(lambda: away.last(launch))
            assert (seen.stage, seen.unknown_since is not None) == (Stage.QUEUED, True)
            await away.engine.close()
            await world.engine.submit(launch)
            assert (await ended(world, launch)).reason == "Completed"

    asyncio.run(main())


def test_progress_is_told_while_it_runs(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        report = """printf '{"step": %s, "total_steps": 9, "loss": 0.5}\\n' $n >&$PENSTOCK_REPORT_FD"""
        launch = await world.begin("sh", "-c", f"for n in 1 2; do {report}; sleep 5; done; sleep 60")
        seen = await until(
            lambda: (last := world.last(launch)) and last.progress and last.progress["step"] == 2 and last
        )
        assert (seen.stage, seen.progress["metrics"]) == (Stage.RUNNING, {"loss": 0.5})
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
        end = await ended(world, launch)
        assert end.progress is not None
        assert end.progress["step"] == 2

    on_slurm(body)


def test_jobs_of_nobody_and_of_root_are_refused(on_slurm: Callable[..., None]) -> None:
    async def body(world: World) -> None:
        for user in (None, "root"):
            end = await world.run("true", unix_user=user)
            assert (end.reason, "never run as root" in end.message) == ("LaunchFailed", True)
        end = await world.run("true", unix_user="no-such-user")
        assert (end.reason, "'no-such-user' does not exist" in end.message) == ("LaunchFailed", True)

    on_slurm(body)


def test_a_slurmctld_that_lost_a_submission_is_given_it_again(data: Path, slurm_cluster: Cluster) -> None:
    """Killed before it saved its jobs: what it had taken and not begun is submitted again, and run once."""

    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            full = await world.begin("sleep", "300", cpus=8)
            saved = asyncio.create_task(asyncio.to_thread(slurm_cluster.wait_saved))
            while not saved.done():
                slurm_cluster.run("scontrol", "update", f"JobId={job_of(world, full)}", "Comment=a change")
                await asyncio.sleep(0.5)
            launch = await world.begin("sh", "-c", "echo once", cpus=8, wait=False)
            await until(lambda: world.last(launch))
            await asyncio.to_thread(slurm_cluster.kill_ctld)
            await asyncio.to_thread(slurm_cluster.start_ctld)
            await world.engine.stop(full.attempt_id, full.run_dir, reason="Cancelled", grace_s=5.0)
            assert (await ended(world, launch)).reason == "Completed"
            assert await world.log(launch) == "once\n"
            assert (await ended(world, full)).reason == "Cancelled"

    asyncio.run(main())
