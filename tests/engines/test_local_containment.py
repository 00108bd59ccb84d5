"""Nothing of a job outlives it, whatever it does, and whatever happens to those who watch it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pwd
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from penstock.engines.local import cgroups, folder, procs
from penstock.engines.local.engine import LocalConfig, LocalEngine
from penstock.engines.local.spawner import Spawner
from penstock.engines.spec import Launch, Stage
from tests.engines.conftest import JOB_USER, MACHINE, World, until

Local = Callable[..., None]


def left(launch: Launch) -> list[int]:
    return procs.marked(launch.attempt_id)


def groups_left(launch: Launch) -> list[str]:
    layout = cgroups.discover()
    bases = {layout.unified, layout.freezer, *layout.limits.values()} - {None}
    return [f"{base}/{launch.attempt_id}" for base in bases if os.path.exists(f"{base}/{launch.attempt_id}")]


def touch(path: str) -> None:
    Path(path).touch()


def text(path: str) -> str:
    return Path(path).read_text()


async def alive_inside(world: World, launch: Launch, mark: str) -> None:
    """Wait until the job has printed ``mark``."""

    def printed() -> bool:
        path = Path(launch.run_dir, "logs", "0")
        return any(mark.encode() in log.read_bytes() for log in path.glob("*.log"))

    await until(printed)


def test_daemons_double_forks_and_new_sessions_end_with_the_job(local: Local) -> None:
    script = "(setsid sleep 300 &) ; (sleep 300 &) ; nohup sleep 300 >/dev/null 2>&1 & echo started"

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", script, wait=False)
        ended = await world.end_of(launch)
        assert ended.reason == "Completed"
        assert left(launch) == []
        assert groups_left(launch) == []
        assert await world.log(launch) == "started\n"

    local(body)


def test_a_fork_bomb_is_bounded_and_ends(local: Local) -> None:
    bomb = "echo lit; b() { b | b & b; }; b; sleep 300"

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", bomb)
        await alive_inside(world, launch, "lit")
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=0.3)
        assert (await world.end_of(launch)).reason in ("Cancelled", "Failed")  # a shell that cannot fork may give up
        assert left(launch) == []
        assert groups_left(launch) == []

    local(body, max_pids=60)


def test_a_killed_supervisor_takes_its_job_with_it(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", "setsid sleep 300 & echo up; sleep 300")
        await alive_inside(world, launch, "up")
        os.kill(_supervisor(launch), signal.SIGKILL)
        ended = await world.end_of(launch)
        assert (ended.stage, ended.reason) == (Stage.LOST, "SupervisorLost")
        assert left(launch) == []
        assert groups_left(launch) == []
        again = await world.engine.adopt(launch.attempt_id, launch.run_dir)
        assert (again.stage, again.reason, again.ended_at) == (ended.stage, ended.reason, ended.ended_at)

    local(body)


def _let_go(run_dir: str) -> bool:
    return folder.open_lock(run_dir) is not None


def test_a_supervisor_sees_to_one_attempt_after_another(local: Local) -> None:
    async def body(world: World) -> None:
        pids = []
        for number in range(12):
            launch = await world.begin("sh", "-c", f"(setsid sleep 300 &); echo {number}; exit {number}", wait=False)
            ended = await world.end_of(launch)
            assert (ended.exit_code, await world.log(launch)) == (number, f"{number}\n")
            assert not left(launch)
            assert not groups_left(launch)
            # nobody holds an ended attempt's lock; its supervisor lets it go just after it has told the end
            await until(partial(_let_go, launch.run_dir))
            pids.append(_supervisor(launch))
        assert len(set(pids)) < len(pids)
        fds = Path(f"/proc/{pids[-1]}/fd")
        await until(lambda: len(list(fds.iterdir())) <= 5)  # stdio, the notes, the line to the spawner
        await until(lambda: not os.path.exists(f"/proc/{pids[-1]}"))  # and is let go when nothing comes

    local(body)


def test_a_free_supervisor_that_dies_loses_nothing(local: Local) -> None:
    async def body(world: World) -> None:
        first = await world.begin("true", wait=False)
        await world.end_of(first)
        os.kill(_supervisor(first), signal.SIGKILL)
        assert (await world.run("sh", "-c", "exit 3")).exit_code == 3
        ended = [await world.begin("true", wait=False) for _ in range(20)]
        for launch in ended:
            with contextlib.suppress(ProcessLookupError, TypeError, FileNotFoundError):
                os.kill(_supervisor(launch), signal.SIGKILL)  # at work, free, or gone
        for launch in ended:
            seen = await until(partial(world.last, launch))
            assert seen.stage in (Stage.EXITED, Stage.LOST, Stage.ABSENT)
            assert not left(launch)
            assert not groups_left(launch)

    local(body)


def test_a_job_keeps_nothing_of_who_started_it(local: Local) -> None:
    """No privilege, no descriptor, no group: also where no process of ours stands between."""
    script = (
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; umask; ls /proc/self/fd | wc -l"
    )

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", script, wait=False)
        assert (await world.end_of(launch)).reason == "Completed"
        lines = (await world.log(launch)).splitlines()
        told = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines if ":" in line}
        entry = pwd.getpwnam(JOB_USER) if JOB_USER else pwd.getpwuid(os.geteuid())
        assert told["Uid"] == [str(entry.pw_uid)] * 4
        assert told["Gid"] == [str(entry.pw_gid)] * 4
        assert "0" not in told["Groups"]
        if JOB_USER:
            assert {int(value, 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") for value in told[name]} == {0}
        own = 1 << 31 | 1 << 32  # glibc's posix_spawn leaves the two signals that it keeps for itself ignored
        assert int(told["SigIgn"][0], 16) & ~own == int(told["SigBlk"][0], 16) == 0
        assert lines[-2:] == ["0022", "5"]  # 0, 1, 2, reports, and the folder that ls reads

    local(body)


def test_without_control_groups_the_subreaper_alone_contains(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "discover", lambda: cgroups.Layout(None, {}, None))

    async def body(world: World) -> None:
        launch = await world.begin(
            "sh", "-c", "(setsid sleep 300 &); setsid sh -c 'sleep 300 & sleep 300' & echo up; sleep 300"
        )
        await alive_inside(world, launch, "up")
        assert len(left(launch)) >= 4
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=0.1)
        await world.end_of(launch)
        assert left(launch) == []
        struck = await world.begin("sh", "-c", "setsid sleep 300 & echo up; sleep 300")
        await alive_inside(world, struck, "up")
        os.kill(_supervisor(struck), signal.SIGKILL)
        assert (await world.end_of(struck)).stage is Stage.LOST
        assert left(struck) == []

    local(body)  # forks its spawner after the patch


def test_a_freezer_ends_a_group_where_there_is_no_cgroup_kill(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cgroups.discover()
    monkeypatch.setattr(cgroups, "discover", lambda: cgroups.Layout(None, real.limits, real.freezer))

    async def body(world: World) -> None:
        launch = await world.begin(
            "sh", "-c", "setsid sh -c 'trap : TERM; while :; do sleep 0.05; done' & echo up; wait"
        )
        await alive_inside(world, launch, "up")
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=0.1)
        assert (await world.end_of(launch)).reason == "Cancelled"
        assert left(launch) == []
        assert groups_left(launch) == []

    local(body)


def test_mounts_are_read_as_they_are(tmp_path: Path) -> None:
    """A hybrid machine, with a v2 hierarchy that has no controllers: each duty goes to the hierarchy that can do it."""
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    for name in ("unified/user.slice", "cpu,cpuacct", "pids"):
        (tmp_path / name).mkdir(parents=True)
    mounts.write_text(
        f"cgroup2 {tmp_path}/unified cgroup2 rw 0 0\ncgroup {tmp_path}/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        f"cgroup {tmp_path}/pids cgroup rw,pids 0 0\ncgroup {tmp_path}/memory cgroup rw,memory 0 0\n"
    )
    own.write_text("3:cpu,cpuacct:/\n2:pids:/\n1:memory:/\n0::/user.slice\n")
    (tmp_path / "memory").write_text("no folder: nothing can be made here")
    layout = cgroups.discover(str(mounts), str(own))
    assert layout.unified == f"{tmp_path}/unified/user.slice/penstock"
    assert layout.limits == {"cpu": f"{tmp_path}/cpu,cpuacct/penstock", "pids": f"{tmp_path}/pids/penstock"}
    assert cgroups.discover("/nowhere", str(own)).contains is False


def test_empty_groups_of_the_dead_are_swept_and_young_ones_left(tmp_path: Path) -> None:
    for name in ("old", "old/0", "full", "full/task"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/task/process").touch()  # as a group with a process, it cannot be removed
    layout = cgroups.Layout(str(tmp_path), {"cpu": str(tmp_path)}, None)
    assert cgroups.sweep(layout) == 0
    cgroups.sweep(layout, older_than_s=-1.0)
    cgroups.sweep(layout, older_than_s=-1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_killed_spawner_is_replaced_and_harms_nobody(local: Local) -> None:
    async def body(world: World) -> None:
        running = await world.begin("sleep", "300")
        os.kill(world.engine._spawner.pid, signal.SIGKILL)
        after = await world.run("sh", "-c", "exit 4")
        assert after.exit_code == 4
        assert world.over(running) is None
        os.kill(_supervisor(running), signal.SIGKILL)  # no child of the new spawner: found all the same
        assert (await world.end_of(running)).reason == "SupervisorLost"

    local(body)


def test_jobs_outlive_their_server_and_are_found_again(local: Local, data: Path) -> None:
    async def body(world: World) -> None:
        goes_on = await world.begin(
            "sh", "-c", "echo before; while [ ! -e $PENSTOCK_CKPT_DIR/go ]; do sleep 0.05; done; exit 5"
        )
        ends_between = await world.begin("sh", "-c", "sleep 0.3; exit 6")
        await world.engine.close()
        await until(lambda: os.path.exists(f"{ends_between.run_dir}/exit.json"))
        second = World(LocalEngine(Spawner.fork(), LocalConfig({}), machine=lambda: MACHINE), data)
        await second.engine.start(second.seen.append)
        found = await second.engine.adopt(goes_on.attempt_id, goes_on.run_dir)
        assert found.stage is Stage.RUNNING
        missed = await second.engine.adopt(ends_between.attempt_id, ends_between.run_dir)
        assert (missed.stage, missed.exit_code) == (Stage.EXITED, 6)
        touch(f"{goes_on.job_dir}/checkpoints/go")
        assert (await second.end_of(goes_on)).exit_code == 5
        world.engine = second.engine  # closed by the fixture
        world.seen.extend(second.seen)

    local(body)


def test_a_memory_limit_is_told_from_other_kills(local: Local) -> None:
    expected = "OutOfMemory" if "memory" in cgroups.discover().limits else "Completed"
    eat = "x = bytearray(256 << 20)"

    async def body(world: World) -> None:
        ended = await world.run(sys.executable, "-S", "-c", eat, memory=64 << 20)
        assert ended.reason == expected
        if expected == "Completed":
            return
        assert "64Mi" in ended.message
        gang = await world.run("sh", "-c", f"[ $PENSTOCK_NODE_RANK = 0 ] || exec {sys.executable} -S -c '{eat}'; sleep 30",
                               memory=64 << 20, nodes=("node-0", "node-1"), grace_s=0.2)  # fmt: skip
        assert gang.reason == "OutOfMemory"
        assert "node-1" in gang.message
        killed = await world.run("sh", "-c", "kill -9 $$", memory=64 << 20)
        assert (killed.reason, killed.signal) == ("Failed", 9)
        assert "SIGKILL" in killed.message

    local(body, local_nodes=2)


def test_cpu_limits_reach_the_control_group(local: Local) -> None:
    base = cgroups.discover().limits.get("cpu")

    async def body(world: World) -> None:
        launch = await world.begin("sleep", "300", cpus=0.5)
        if base is not None:
            group = Path(base, launch.attempt_id)
            v2 = group / "cpu.max"
            quota = v2.read_text().split()[0] if v2.exists() else (group / "cpu.cfs_quota_us").read_text()
            assert int(quota) == 50_000

    local(body)


def test_the_grace_is_for_saving(local: Local) -> None:
    script = "trap 'sleep 0.2; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done"

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", script)
        await alive_inside(world, launch, "ready")
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Preempted", grace_s=20)
        ended = await world.end_of(launch)
        assert (ended.reason, ended.exit_code) == ("Preempted", 0)
        assert "saved" in await world.log(launch)

    local(body)


def test_ranks_bring_each_other_down_with_grace(local: Local) -> None:
    script = "trap 'echo told; exit 0' TERM; [ $RANK = 1 ] && sleep 0.2 && exit 9; while :; do sleep 0.05; done"

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", script, wait=False, procs=3)
        ended = await world.end_of(launch)
        assert (ended.reason, ended.exit_code, ended.message) == ("Failed", 9, "rank 1 exited with code 9")
        assert [rank.exit_code for rank in ended.ranks] == [0, 9, 0]
        assert (await world.log(launch, rank="2")).endswith("told\n")
        assert {h["rank"] for seen in world.seen for h in seen.happened if h["reason"] == "RankExited"} == {1}

    local(body)


def _supervisor(launch: Launch) -> int:
    return int(json.loads(Path(launch.run_dir, "started.json").read_text())["pid"])


def test_exit_records_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk delays the record; it never loses it."""
    tries = 0
    real = os.fsync

    def full(fd: int) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.ENOSPC, "full")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    folder.write_exit(str(tmp_path / "exit.json"), {"reason": "Completed"})
    assert folder.read_json(str(tmp_path / "exit.json")) == {"reason": "Completed"}


def test_two_servers_race_for_attempts_and_each_runs_once(local: Local, data: Path) -> None:
    """Both submit, both adopt at once (which clears dead claims) and submit again what they are told is absent."""

    async def body(world: World) -> None:
        other = World(LocalEngine(Spawner.fork(), LocalConfig({}), machine=lambda: MACHINE), data)
        await other.engine.start(other.seen.append)

        async def press(engine: LocalEngine, launch: Launch) -> None:
            await engine.submit(launch)
            while not folder.ended(launch.run_dir):
                seen = await engine.adopt(launch.attempt_id, launch.run_dir)
                if seen.stage is Stage.ABSENT:
                    await engine.submit(launch)

        launches = [world.launch("sh", "-c", "echo x >>$PENSTOCK_CKPT_DIR/runs") for _ in range(25)]
        await asyncio.gather(*(press(e, launch) for launch in launches for e in (world.engine, other.engine)))
        for launch in launches:
            assert text(f"{launch.job_dir}/checkpoints/runs") == "x\n"
            record = folder.read_json(f"{launch.run_dir}/exit.json")
            assert record is not None
            assert record["reason"] == "Completed"
        await other.engine.close()

    local(body)


def test_a_claim_that_died_young_is_cleared_and_may_be_run(local: Local) -> None:
    async def body(world: World) -> None:
        launch = world.launch("sh", "-c", "exit 7")
        lock = folder.claim(launch.run_dir)
        assert lock is not None
        assert (await world.engine.adopt(launch.attempt_id, launch.run_dir)).stage is Stage.STARTING
        os.close(lock)
        lost = await world.end_of(launch)  # the sweep sees the free lock
        assert (lost.stage, lost.reason, "before it began" in lost.message) == (Stage.LOST, "SupervisorLost", True)
        world.seen.clear()
        assert (await world.engine.adopt(launch.attempt_id, launch.run_dir)).stage is Stage.ABSENT
        await world.engine.submit(launch)
        assert (await world.end_of(launch)).exit_code == 7

    local(body)


def test_a_restart_of_the_machine_is_a_lost_node(local: Local) -> None:
    async def body(world: World) -> None:
        launch = world.launch("true")
        lock = folder.claim(launch.run_dir)
        assert lock is not None
        started = {"format": 1, "pid": 1, "start_time": 1, "boot_id": "another-boot", "at": 12.0}
        folder.write_new_json(f"{launch.run_dir}/started.json", started)
        os.close(lock)
        seen = await world.engine.adopt(launch.attempt_id, launch.run_dir)
        assert (seen.stage, seen.reason, seen.started_at) == (Stage.LOST, "NodeLost", 12.0)

    local(body)
