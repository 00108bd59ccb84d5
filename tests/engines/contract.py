"""What every engine must do, whoever runs the processes. Each function takes a World whose engine has two nodes.

Commands are those that both a shell and the simulated engine understand: ``words`` translates.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.base.errors import InvalidInput, NotFound
from penstock.engines.spec import JobNeeds, SessionRequest, Stage
from tests.engines.conftest import World, until

Words = Callable[..., tuple[str, ...]]


async def completes(world: World, words: Words) -> None:
    ended = await world.run(*words("exit 0"))
    assert (ended.stage, ended.reason, ended.exit_code, ended.signal) == (Stage.EXITED, "Completed", 0, None)
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.started_at <= ended.ended_at
    assert [(rank.rank, rank.node, rank.exit_code) for rank in ended.ranks] == [(0, "node-0", 0)]


async def fails_with_its_code(world: World, words: Words) -> None:
    ended = await world.run(*words("exit 3"))
    assert (ended.reason, ended.exit_code) == ("Failed", 3)
    assert "code 3" in ended.message


async def running_is_seen(world: World, words: Words) -> None:
    launch = await world.begin(*words("sleep 30"))
    seen = world.last(launch)
    assert seen is not None
    assert seen.stage is Stage.RUNNING
    assert seen.started_at is not None
    await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
    assert (await world.end_of(launch)).reason == "Cancelled"


async def submit_twice_runs_once(world: World, words: Words) -> None:
    launch = world.launch(*words("echo once"))
    await world.engine.submit(launch)
    await world.engine.submit(launch)
    await world.end_of(launch)
    await world.engine.submit(launch)
    assert await world.log(launch) == "once\n"
    assert sum(seen.stage is Stage.EXITED for seen in world.seen) == 1


async def gpus_are_sampled_where_there_are_any(world: World, words: Words) -> None:
    launch = await world.begin(*words("sleep 30"))
    offered = {(offer.name, gpu.id) for offer in world.engine.nodes() for gpu in offer.gpus}
    for sample in await world.engine.gpu_samples():
        assert (sample.node, sample.gpu) in offered
        assert 0 <= sample.utilization <= 100
    await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)


async def stop_keeps_its_reason(world: World, words: Words) -> None:
    for reason in ("Preempted", "NodeDrained"):
        launch = await world.begin(*words("sleep 30"))
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason=reason, grace_s=5.0)
        ended = await world.end_of(launch)
        assert (ended.reason, ended.signal) == (reason, 15)


async def grace_then_kill(world: World, words: Words) -> None:
    launch = await world.begin(*words("sleep 30", ignore_term=True))
    while await world.log(launch) != "ready\n":  # before that the command may not have said what it ignores
        await asyncio.sleep(0.01)
    await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=0.2)
    ended = await world.end_of(launch)
    assert (ended.reason, ended.signal) == ("Cancelled", 9)


async def time_limit(world: World, words: Words) -> None:
    ended = await world.run(*words("sleep 30"), time_limit_s=0.2)
    assert ended.reason == "TimeLimit"
    assert "0.2 s" in ended.message


async def stop_before_submit_prevents_it(world: World, words: Words) -> None:
    launch = world.launch(*words("echo never"))
    await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=1.0)
    await world.engine.submit(launch)
    seen = await world.engine.adopt(launch.attempt_id, launch.run_dir)
    assert (seen.stage, seen.reason) == (Stage.EXITED, "Cancelled")
    assert await world.log(launch) == ""


async def stop_twice_is_harmless(world: World, words: Words) -> None:
    launch = await world.begin(*words("sleep 30"))
    for _ in range(2):
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
    await world.end_of(launch)
    await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Preempted", grace_s=5.0)
    assert (await world.engine.adopt(launch.attempt_id, launch.run_dir)).reason == "Cancelled"


async def adopt_tells_what_is(world: World, words: Words) -> None:
    absent = world.launch(*words("exit 0"))
    assert (await world.engine.adopt(absent.attempt_id, absent.run_dir)).stage is Stage.ABSENT
    running = await world.begin(*words("sleep 30"))
    assert (await world.engine.adopt(running.attempt_id, running.run_dir)).stage is Stage.RUNNING
    await world.engine.stop(running.attempt_id, running.run_dir, reason="Cancelled", grace_s=5.0)
    await world.end_of(running)
    gone = await world.engine.adopt(running.attempt_id, running.run_dir)
    assert (gone.stage, gone.reason) == (Stage.EXITED, "Cancelled")


async def lose_and_restore_a_node(world: World, words: Words) -> None:
    struck = await world.begin(*words("sleep 30"), nodes=("node-1",))
    other = await world.begin(*words("sleep 30"), nodes=("node-0",))
    await world.engine.lose("node-1")
    ended = await world.end_of(struck)
    assert (ended.reason, ended.signal) == ("NodeLost", 9)
    assert "node-1" in ended.message
    assert world.over(other) is None
    assert [offer.ready for offer in world.engine.nodes()] == [True, False]
    late = await world.begin(*words("sleep 30"), wait=False, nodes=("node-1",))
    assert (await world.end_of(late)).reason == "NodeLost"
    await world.engine.restore("node-1")
    assert all(offer.ready for offer in world.engine.nodes())
    with pytest.raises(NotFound):
        await world.engine.lose("node-9")


async def a_gang_over_two_nodes(world: World, words: Words) -> None:
    ended = await world.run(*words("exit 0"), nodes=("node-0", "node-1"))
    assert [(rank.rank, rank.node) for rank in ended.ranks] == [(0, "node-0"), (1, "node-1")]
    struck = await world.begin(*words("sleep 30"), nodes=("node-0", "node-1"), grace_s=0.2)
    await world.engine.lose("node-0")
    assert (await world.end_of(struck)).reason == "NodeLost"


async def validate_names_the_field(world: World, words: Words) -> None:
    assert world.engine.validate(JobNeeds("none", 1, 1, {})) == []
    problems = world.engine.validate(JobNeeds("mpirun", 1, 99, {}))
    assert sorted(problem.path for problem in problems) == ["launcher", "nodes"]


async def sessions_need_a_running_job(world: World, words: Words) -> None:
    launch = world.launch(*words("exit 0"))
    with pytest.raises(NotFound):
        await world.engine.session(launch.attempt_id, launch.run_dir, SessionRequest(("true",)))
    with pytest.raises(InvalidInput):
        await world.engine.session(launch.attempt_id, launch.run_dir, SessionRequest())


async def a_followed_log_is_complete_at_the_end(world: World, words: Words) -> None:
    launch = await world.begin(*words("echo all of it"), wait=False)
    assert await world.log(launch, follow=True) == "all of it\n"
    await until(lambda: world.over(launch))


CONTRACT: dict[str, Callable[[World, Words], Awaitable[Any]]] = {
    name: clause
    for name, clause in list(globals().items())
    if inspect.iscoroutinefunction(clause) and clause.__module__ == __name__
}
