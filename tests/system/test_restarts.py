"""The server is killed while others leave for somebody, and while promises stand: the next one goes on from there."""

from __future__ import annotations

import json
import signal

from tests.system.house import House, until


def queues(order: str, backfill: str) -> bytes:
    return (
        f"policy: {{order: {order}, backfill: {backfill}, preemption: true}}\n"
        "cohorts: [{name: all}]\n"
        "queues:\n"
        "- {name: default, cohort: all, preempt_within_queue: lower_priority}\n"
        "- {name: other, cohort: all}\n"
    ).encode()


def whole(house: House) -> float:
    return float(min(node["capacity"]["cpus"] for node in house.get("nodes")["items"]))


def test_a_kill_while_victims_leave_evicts_nobody_again() -> None:
    with House("--local-nodes", "2") as house:
        house.client.apply_queues(queues("fifo", "none"))
        cpus = whole(house)
        script = ["sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"]
        low = [house.run(script, resources={"cpus": cpus}, grace_period="6s") for _ in range(2)]
        for name in low:
            house.reach(name, "Running")
        high = house.run(["sleep", "60"], resources={"cpus": cpus}, priority=9)
        until(lambda: any(house.phase(name) == "Stopping" for name in low), "nobody is evicted")
        later = house.run(["sleep", "60"], resources={"cpus": cpus}, priority=8, time_limit="1s")
        house.end(signal.SIGKILL)
        house.start()
        house.reach(high, "Running")
        told = [name for name in low if "Preempted" in house.reasons(name)]
        assert len(told) <= 2
        first = house.job(high)["status"]["nodes"]
        assert house.get(f"projects/default/jobs/{high}/attempts")["items"][0]["nodes"] == first
        for name in low:
            assert house.reasons(name).count("Preempted") <= 1
        assert later


def test_a_kill_moves_no_promise_and_forgets_no_use() -> None:
    with House("--local-nodes", "2") as house:
        house.client.apply_queues(queues("fairshare", "easy"))
        cpus = whole(house)
        for name in [house.run(["sleep", "600"], resources={"cpus": cpus}, time_limit="20m") for _ in range(2)]:
            house.reach(name, "Running")
        head = house.run(["true"], resources={"cpus": cpus}, nodes=2)

        def promised() -> str:
            lines = house.get(f"projects/default/jobs/{head}/why")["evidence"]
            return next((line for line in lines if line.startswith("it is promised")), "")

        before = until(promised, "nothing is promised")
        used = house.get("queues")["items"]
        house.end(signal.SIGKILL)
        house.start()
        assert until(promised, "nothing is promised any more") == before
        assert json.dumps(house.get("queues")["items"]) == json.dumps(used)
