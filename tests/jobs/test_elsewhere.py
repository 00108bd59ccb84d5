"""Jobs on an engine that schedules itself: handed over, waiting in its line, placed by it, taken back, let go of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.base.errors import Conflict, InvalidInput
from penstock.engines.simulated.line import QueueingEngine
from penstock.engines.simulated.shape import Fleet
from penstock.fleet import inventory
from penstock.jobs import queries
from penstock.store import events
from tests.jobs.cluster import Cluster, play
from tests.stores import NOON


def test_it_waits_in_the_engines_line_and_is_paid_for_from_the_start_there(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4, "gpus": 2})
        status = await cluster.status("first")
        assert (status["phase"], status["nodes"], status["engine"]) == ("Running", ["c1-node-0", "c1-node-1"], "c1")
        await cluster.run("second", resources={"cpus": 1})
        status = await cluster.status("second")
        assert (status["phase"], status["reason"], status["nodes"]) == ("Pending", "WaitingForResources", [])
        why = await cluster.why("second")
        assert why["helps"] == ["waits for running jobs to end"]
        assert f"in its line as {status['engine_job']}" in why["evidence"][0]
        cluster.clock.now += 600
        cluster.c1.finish(await cluster.attempt_id("first"))
        await cluster.settled()
        cluster.clock.now += 60
        assert (await cluster.status("first"))["phase"] == "Succeeded"
        assert (await cluster.status("second"))["phase"] == "Running"
        cluster.c1.finish(await cluster.attempt_id("second"), 3)
        await cluster.settled()
        used = await cluster.usage()
        assert used[await cluster.attempt_id("first")] == [(4.0, NOON, NOON + 600)] * 2
        assert used[await cluster.attempt_id("second")] == [(1.0, NOON + 600, NOON + 660)]
        assert await cluster.reasons("second") == [
            "Created", "HandedOver", "WaitingForResources", "AttemptStarted", "Started", "AttemptEnded", "Failed",
        ]  # fmt: skip
        gpus = (await cluster.attempts("first"))[0]["groups"][0]["gpus"]
        assert [gpu["model"] for gpu in gpus] == ["H100", "H100"]

    play(tmp_path, story)


def test_the_queue_may_name_the_engine_and_the_planners_have_no_part_in_it(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.queues("queues: [{name: default}, {name: cluster, engine: c1}]")
        await cluster.run("there", engine=None, queue="cluster")
        await cluster.run("here", engine=None)
        await cluster.run("said", engine="simulated", queue="cluster")
        assert [(await cluster.status(name))["nodes"] for name in ("there", "here", "said")] == [
            ["c1-node-0"], ["node-0"], ["node-0"],
        ]  # fmt: skip
        assert "engine" not in await cluster.status("here")

    play(tmp_path, story)


def test_what_is_wrong_is_said_of_the_engine_that_it_is_for(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        async def problems(**fields: object) -> list[tuple[str, str]]:
            with pytest.raises(InvalidInput) as refused:
                await cluster.run("bad", **fields)
            return [(problem.path, problem.message) for problem in refused.value.details]

        assert await problems(engine="c2") == [("spec.engine", "there is no engine 'c2' (there are: c1, simulated)")]
        wrong = {"nodes": 3, "resources": {"gpu_share": 0.5}, "reservation": "r"}
        assert {"spec.nodes", "spec.resources.gpu_share", "spec.reservation"} <= {p for p, _ in await problems(**wrong)}
        options = {"engine": None, "engine_options": {"constraint": "a100"}}
        assert await problems(**options) == [("spec.engine_options", "the simulated engine takes none")]
        await cluster.queues("queues: [{name: default, engine: c9}]")
        assert [path for path, _ in await problems(engine=None)] == ["spec.queue"]

    play(tmp_path, story)


def test_a_cancel_in_the_line_goes_through_the_engine(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4})
        await cluster.run("second")
        await cluster.cancel("second")
        status = await cluster.status("second")
        assert (status["phase"], status["reason"], cluster.c1.waiting()) == ("Cancelled", "Cancelled", ())
        assert [c["status"] for c in status["conditions"]] == ["False", "False", "True"]
        assert "CancelRequested" in await cluster.reasons("second")
        assert await cluster.attempt_id("second") not in await cluster.usage()

    play(tmp_path, story)


def test_another_specification_is_handed_over_anew(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4})
        await cluster.run("second")
        assert await cluster.change("second", command=("sleep", "5h"), nodes=2) == "update"
        status = await cluster.status("second")
        assert (status["phase"], status["attempt"], status["restarts"]) == ("Pending", 2, 0)
        assert len(cluster.c1.waiting()) == 1
        assert await cluster.change("second", max_restarts=3) == "update"
        assert (await cluster.status("second"))["attempt"] == 2  # the engine need not know
        cluster.c1.finish(await cluster.attempt_id("first"))
        await cluster.settled()
        assert len((await cluster.status("second"))["nodes"]) == 2
        with pytest.raises(Conflict):
            await cluster.change("second", nodes=1)

    play(tmp_path, story)


def test_taken_back_into_the_line_it_is_a_restart_and_costs_nothing_meanwhile(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4}, max_restarts=5)
        await cluster.run("second", nodes=2, resources={"cpus": 4})
        cluster.clock.now += 100
        cluster.c1.requeue(await cluster.attempt_id("first"))
        await cluster.settled()
        status = await cluster.status("first")
        assert (status["phase"], status["restarts"], status["attempt"], status["nodes"]) == ("Pending", 1, 1, [])
        assert (await cluster.status("second"))["phase"] == "Running"
        assert any("restart 1" in line for line in (await cluster.why("first"))["evidence"])
        cluster.clock.now += 50
        cluster.c1.finish(await cluster.attempt_id("second"))
        await cluster.settled()
        assert (await cluster.status("first"))["phase"] == "Running"
        cluster.clock.now += 7
        cluster.c1.finish(await cluster.attempt_id("first"))
        await cluster.settled()
        status = await cluster.status("first")
        assert (status["phase"], status["restarts"]) == ("Succeeded", 1)
        spans = set((await cluster.usage())[await cluster.attempt_id("first")])
        assert spans == {(4.0, NOON, NOON + 100), (4.0, NOON + 150, NOON + 157)}

    play(tmp_path, story)


def test_both_steps_of_a_requeue_may_come_at_once(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("job")
        cluster.clock.now += 10
        cluster.c1.requeue(await cluster.attempt_id("job"))  # and it is placed again at once
        await cluster.settled()
        status = await cluster.status("job")
        assert (status["phase"], status["restarts"]) == ("Running", 1)
        assert (await cluster.usage())[await cluster.attempt_id("job")] == [
            (1.0, NOON, NOON + 10), (1.0, NOON + 10, None),
        ]  # fmt: skip

    play(tmp_path, story)


def test_with_fewer_nodes_it_runs_on_those_there_are_and_has_more_at_its_next_start(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("other", resources={"cpus": 4})
        await cluster.run("job", nodes=2, min_nodes=1, resources={"cpus": 4})
        status = await cluster.status("job")
        assert (status["phase"], len(status["nodes"])) == ("Running", 1)
        cluster.clock.now += 10
        cluster.c1.finish(await cluster.attempt_id("other"))
        await cluster.settled()
        assert len((await cluster.status("job"))["nodes"]) == 1  # nobody asks it to leave
        cluster.c1.requeue(await cluster.attempt_id("job"))
        await cluster.settled()
        status = await cluster.status("job")
        assert (status["phase"], status["restarts"], len(status["nodes"])) == ("Running", 1, 2)
        assert (await cluster.usage())[await cluster.attempt_id("job")] == [
            (4.0, NOON, NOON + 10), (4.0, NOON + 10, None), (4.0, NOON + 10, None),
        ]  # fmt: skip

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("queued_at", "until"),
    [(NOON + 100, 100), (None, 300), (NOON - 1, 300), (NOON + 301, 300)],
    ids=["known", "not told", "before it ran", "after it ran again"],
)
def test_the_wait_of_a_requeue_that_nobody_saw_costs_nothing(
    tmp_path: Path, queued_at: float | None, until: float
) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("job")
        id_ = await cluster.attempt_id("job")
        cluster.clock.now += 310
        first = cluster.c1._runs[id_].seen
        cluster.reconciler.observed(replace(first, started_at=NOON + 300, restarts=1, queued_at=queued_at))
        await cluster.settled()
        status = await cluster.status("job")
        assert (status["phase"], status["restarts"]) == ("Running", 1)
        assert (await cluster.usage())[id_] == [(1.0, NOON, NOON + until), (1.0, NOON + 300, None)]

    play(tmp_path, story)


def test_two_runs_that_are_told_before_the_first_was_taken_in_are_both_billed(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.c1.cut_off("drill")
        await cluster.run("job")
        cluster.clock.now += 60
        cluster.c1.reconnect()
        await cluster.a_while_passes()
        id_ = await cluster.attempt_id("job")
        seen = cluster.c1._runs[id_].seen
        begun = seen.started_at or 0
        cluster.clock.now += 100
        cluster.reconciler.observed(seen)
        again = replace(seen, started_at=begun + 90, restarts=1, queued_at=begun + 50)
        cluster.reconciler.observed(again)
        await cluster.settled()
        assert (await cluster.usage())[id_] == [(1.0, begun, begun + 50), (1.0, begun + 90, None)]

    play(tmp_path, story)


def test_an_engine_that_does_not_answer_is_said_of_its_jobs_and_heals(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4})
        await cluster.run("second")
        cluster.c1.cut_off("connection refused")
        await cluster.settled()
        for name, phase in (("first", "Running"), ("second", "Pending")):
            status = await cluster.status(name)
            assert (status["phase"], status["reason"]) == (phase, "EngineUnreachable")
            assert status["message"] == "unknown since 11:06 UTC: connection refused"
        assert "when last heard of: WaitingForResources" in (await cluster.why("second"))["evidence"][-1]
        await cluster.run("third")  # cannot be handed over yet
        assert (await cluster.status("third"))["reason"] == "EngineUnreachable"
        cluster.clock.now += 30
        cluster.c1.finish(await cluster.attempt_id("first"))
        cluster.clock.now += 30
        cluster.c1.reconnect()
        await cluster.settled()
        assert (await cluster.status("first"))["phase"] == "Succeeded"
        assert {ended for _, _, ended in (await cluster.usage())[await cluster.attempt_id("first")]} == {NOON + 30}
        assert (await cluster.status("second"))["phase"] == "Running"

    play(tmp_path, story)


def test_a_restart_of_the_server_finds_what_waits_and_what_runs(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("first", nodes=2, resources={"cpus": 4})
        await cluster.run("second")
        cluster.clock.now += 20
        await cluster.restart()
        assert [(await cluster.status(name))["phase"] for name in ("first", "second")] == ["Running", "Pending"]
        assert len(cluster.c1.waiting()) == 1
        cluster.c1.finish(await cluster.attempt_id("first"))
        await cluster.settled()
        assert (await cluster.status("second"))["phase"] == "Running"
        assert [len(await cluster.attempts(name)) for name in ("first", "second")] == [1, 1]

    play(tmp_path, story)


def test_an_array_is_handed_over_in_one_go_as_many_as_there_are_slots(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        batches: list[int] = []
        submit_array = cluster.c1.submit_array

        async def counted(launches: list) -> None:  # type: ignore[type-arg]
            batches.append(len(launches))
            await submit_array(launches)

        cluster.c1.submit_array = counted  # type: ignore[assignment,method-assign]
        await cluster.run("sweep", array={"count": 30, "max_parallel": 20})
        assert batches == [20]
        assert (await cluster.status("sweep"))["array"]["running"] == 8
        assert (await cluster.status("sweep-25"))["reason"] == "WaitingForArraySlot"
        cluster.c1.finish(await cluster.attempt_id("sweep-0"))
        await cluster.settled()
        assert (await cluster.status("sweep-20"))["phase"] == "Pending"
        await cluster.cancel("sweep")
        assert (await cluster.status("sweep"))["phase"] == "Cancelled"
        assert (cluster.c1.waiting(), cluster.c1.running()) == ((), frozenset())

    play(tmp_path, story)


def test_a_launch_that_fails_ends_its_attempt_alone(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("bad", "sleep", "soon")
        await cluster.run("good")
        assert (await cluster.status("bad"))["reason"] == "LaunchFailed"
        assert (await cluster.status("good"))["phase"] == "Running"

    play(tmp_path, story)


def test_a_removed_engine_leaves_its_attempts_lost_and_those_to_come_told(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("runs")
        await cluster.run("waits", depends_on=({"job": "runs", "condition": "Finished"},))
        cluster.engines.remove("c1")
        await cluster.settled()
        status = await cluster.status("runs")
        assert (status["phase"], status["reason"]) == ("Failed", "SupervisorLost")
        assert "engine c1 was removed" in status["message"]
        status = await cluster.status("waits")
        assert (status["reason"], status["message"]) == ("Unschedulable", "there is no engine 'c1'")
        assert (await cluster.why("waits"))["message"] == "there is no engine 'c1'"
        cluster.engines.add(cluster.c1)
        await cluster.settled()
        assert (await cluster.status("waits"))["phase"] in ("Pending", "Running")
        assert (await cluster.status("waits"))["attempt"] == 1

    play(tmp_path, story)


def test_found_by_engine_and_by_the_engines_own_name(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("there")
        await cluster.run("here", engine=None)
        named = (await cluster.status("there"))["engine_job"]

        def found(conn: object, **only: object) -> list[str]:
            return [row.name for row in queries.listing(conn, projects=None, **only)]  # type: ignore[arg-type]

        read = cluster.store.read
        assert await read(lambda conn: found(conn, place=queries.Place(engine="c1"))) == ["there"]
        assert await read(lambda conn: found(conn, text=f"c1:{named}")) == ["there"]
        assert await read(lambda conn: found(conn, text=f"c2:{named}")) == []

    play(tmp_path, story)


def test_a_cancel_while_the_engine_does_not_answer_waits_for_it_and_asks_seldom(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.run("runs")
        cluster.c1.cut_off("drill")
        await cluster.run("waits")
        asked = []
        stop = cluster.c1.stop

        async def counted(attempt_id: str, run_dir: str, **how: object) -> None:
            asked.append(attempt_id)
            await stop(attempt_id, run_dir, **how)  # type: ignore[arg-type]

        cluster.c1.stop = counted  # type: ignore[method-assign]
        await cluster.cancel("runs")
        await cluster.cancel("waits")
        assert [(await cluster.status(name))["phase"] for name in ("runs", "waits")] == ["Stopping", "Stopping"]
        assert len(asked) <= 2
        cluster.c1.reconnect()
        await cluster.a_while_passes()
        assert [(await cluster.status(name))["phase"] for name in ("runs", "waits")] == ["Cancelled", "Cancelled"]
        assert (cluster.c1.running(), cluster.c1.waiting()) == (frozenset(), ())

    play(tmp_path, story)


def test_two_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        other = QueueingEngine(Fleet(2, 0, cpus=4.0), name="c2", clock=cluster.clock)
        cluster.engines.add(other)
        await cluster.settled()
        await cluster.run("there", engine="c2")
        assert (await cluster.status("there"))["nodes"] == ["node-0"]

        def read(conn: object) -> tuple[dict[str, str], object, list[str]]:
            said = [row.message for row in events.page(conn, after=0, limit=500, kind="Engine")]  # type: ignore[arg-type]
            return inventory.owners(conn), queries.usage(conn).get("node-0"), said  # type: ignore[arg-type]

        owners, used, said = await cluster.store.read(read)
        assert (owners["node-0"], owners["node-1"], used) == ("simulated", "c2", None)
        assert len(said) == 1
        assert said[0].startswith("node node-0 of engine c2 is left out: engine simulated has a node of that name")

    play(tmp_path, story)
