"""What a person does with jobs, against the real server, engine and processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.system.house import House, processes_of, until


def test_a_job_runs_and_tells(house: House) -> None:
    name = house.run(["sh", "-c", "echo out; echo err >&2; exit 0"])
    job = house.ended(name)
    assert job["status"]["phase"] == "Succeeded"
    assert job["status"]["exit_code"] == 0
    assert sorted(house.logs(name).split()) == ["err", "out"]
    assert house.reasons(name) == ["Created", "AttemptStarted", "Started", "AttemptEnded", "Completed"]


@pytest.mark.parametrize(
    ("command", "reason", "says"),
    [
        (["sh", "-c", "exit 3"], "Failed", "code 3"),
        (["sh", "-c", "kill -SEGV $$"], "Failed", "SIGSEGV"),
        (["no-such-program"], "CommandNotFound", "no-such-program"),
        (["/etc/passwd"], "NotExecutable", "/etc/passwd"),
    ],
)
def test_every_end_has_its_reason(house: House, command: list[str], reason: str, says: str) -> None:
    status = house.ended(house.run(command))["status"]
    assert (status["phase"], status["reason"]) == ("Failed", reason)
    assert says in status["message"]


def test_a_missing_work_folder_is_named(house: House) -> None:
    status = house.ended(house.run(["true"], workdir="/no/such/folder"))["status"]
    assert status["reason"] == "WorkdirMissing"
    assert "/no/such/folder" in status["message"]


def test_time_limit(house: House) -> None:
    name = house.run(["sleep", "60"], time_limit="0.5s", grace_period="1s")
    assert house.ended(name)["status"]["reason"] == "TimeLimit"


def test_out_of_memory(house: House) -> None:
    eat = "x = bytearray(256 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nimport time; time.sleep(60)"
    name = house.run(["python3", "-c", eat], resources={"memory": "64Mi", "cpus": 0.5})
    status = house.ended(name)["status"]
    assert status["reason"] == "OutOfMemory", status


def test_cancel_ends_all_its_processes(house: House) -> None:
    script = "trap '' TERM; (setsid sleep 1000 &) ; sleep 1000 & echo ready; wait"
    name = house.run(["sh", "-c", script], grace_period="0.3s")
    job = house.reach(name, "Running")
    until(lambda: "ready" in house.logs(name), "it never began")
    house.client.jobs.cancel(name)
    status = house.ended(name)["status"]
    assert (status["phase"], status["reason"]) == ("Cancelled", "Cancelled")
    assert processes_of(job["id"]) == []


def test_a_waiting_job_says_why_and_is_cancelled_at_once(house: House) -> None:
    blockers = [house.run(["sleep", "60"], resources={"cpus": 1}, grace_period="1s") for _ in range(2)]
    for blocker in blockers:
        house.reach(blocker, "Running")
    name = house.run(["true"], resources={"cpus": 1})
    why = house.get(f"projects/default/jobs/{name}/why")
    assert why["reason"] == "WaitingForResources"
    assert "needs 1 CPU; 0 of 2 such nodes have room now" in why["message"]
    assert any("node-0" in line for line in why["evidence"])
    behind = house.run(["true"])
    assert house.get(f"projects/default/jobs/{behind}/why")["reason"] == "WaitingBehind"
    for each in (name, behind, *blockers):
        house.client.jobs.cancel(each)
    assert house.ended(name)["status"]["phase"] == "Cancelled"
    for blocker in blockers:
        house.ended(blocker)


def test_one_that_never_fits_blocks_nobody(house: House) -> None:
    huge = house.run(["true"], resources={"gpus": 64})
    assert house.ended(house.run(["true"]))["status"]["phase"] == "Succeeded"
    why = house.get(f"projects/default/jobs/{huge}/why")
    assert why["reason"] == "Unschedulable"
    assert why["helps"]
    house.client.jobs.cancel(huge)


def test_restarts_are_bounded_and_back_off(house: House) -> None:
    name = house.run(["sh", "-c", "echo attempt $PENSTOCK_ATTEMPT; exit 1"], max_restarts=2)
    status = house.ended(name)["status"]
    assert (status["attempt"], status["restarts"], status["reason"]) == (3, 2, "Failed")
    assert "all 2 restarts are spent" in status["message"]
    assert house.reasons(name).count("Restarting") == 2
    assert "attempt 3" in house.logs(name)
    assert "attempt 1" in house.logs(name, attempt="1")


def test_the_log_is_followed_over_attempts(house: House) -> None:
    name = house.run(["sh", "-c", "echo attempt $PENSTOCK_ATTEMPT; sleep 2; exit 1"], max_restarts=1)
    done = house.cli("logs", "-f", name)
    assert [line for line in done.stdout.splitlines() if line.startswith("attempt")] == ["attempt 1", "attempt 2"]


def test_dependencies(house: House) -> None:
    first = house.run(["sh", "-c", "sleep 0.5"], name="first-dep")
    second = house.run(["true"], depends_on=[first])
    third = house.run(["true"], depends_on=[{"job": second, "condition": "Finished"}])
    assert house.job(second)["status"]["reason"] in ("WaitingForDependency", "WaitingBehind")
    assert house.ended(third)["status"]["phase"] == "Succeeded"
    ends = [house.job(n)["status"]["finished_at"] for n in (first, second, third)]
    assert ends == sorted(ends)


def test_a_broken_dependency_ends_what_waits_for_it(house: House) -> None:
    bad = house.run(["sh", "-c", "sleep 0.3; exit 1"])
    needs = house.run(["true"], depends_on=[bad])
    chained = house.run(["true"], depends_on=[needs])
    for name in (needs, chained):
        status = house.ended(name)["status"]
        assert (status["phase"], status["reason"]) == ("Cancelled", "DependencyFailed")


def test_an_array_runs_its_tasks_a_few_at_a_time(house: House) -> None:
    command = ["sh", "-c", "echo task $PENSTOCK_ARRAY_INDEX of $PENSTOCK_ARRAY_COUNT; sleep 0.2"]
    name = house.run(command, array={"count": 5, "max_parallel": 2}, resources={"cpus": 0.1}, name="sweep")
    status = house.ended(name)["status"]
    assert status["phase"] == "Succeeded"
    assert status["array"] == {"total": 5, "succeeded": 5, "failed": 0, "cancelled": 0, "running": 0, "pending": 0}
    assert house.logs("sweep-3").strip() == "task 3 of 5"
    spans = [(t["started_at"], t["finished_at"]) for t in (house.job(f"sweep-{i}")["status"] for i in range(5))]
    assert max(sum(1 for s, e in spans if s <= begin < e) for begin, _ in spans) <= 2


def test_an_array_is_cancelled_whole(house: House) -> None:
    name = house.run(["sleep", "60"], array={"count": 4}, resources={"cpus": 0.1}, grace_period="1s")
    house.reach(name, "Running")
    house.client.jobs.cancel(name)
    assert house.ended(name)["status"]["phase"] == "Cancelled"
    assert all(house.ended(f"{name}-{i}")["status"]["phase"] == "Cancelled" for i in range(4))


def test_a_snapshot_keeps_what_was_submitted(house: House, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('as submitted')")
    os.chmod(tmp_path, 0o755)
    blocker = [house.run(["sleep", "1"], resources={"cpus": 1}) for _ in range(2)]
    done = house.cli("run", "--detach", "--workdir", str(tmp_path), "--", "python3", "script.py")
    script.write_text("print('edited later')")
    name = done.stdout.strip()
    assert house.ended(name)["status"]["phase"] == "Succeeded"
    assert house.logs(name).strip() == "as submitted"
    for each in blocker:
        house.ended(each)


def test_one_idempotency_key_makes_one_job(house: House) -> None:
    names = {
        house.cli("run", "--detach", "--no-snapshot", "--idempotency-key", "k1", "--", "true").stdout for _ in range(3)
    }
    assert len(names) == 1
    other = house.cli("run", "--detach", "--no-snapshot", "--idempotency-key", "k1", "--", "false", code=5)
    assert "was used before" in other.stderr


def test_apply_all_or_nothing(house: House, tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(
        "name: good\nspec: {command: [sleep, '30'], grace_period: 1s}\n---\nname: bad\nspec: {comand: [x]}\n"
    )
    done = house.cli("apply", "-f", str(file), code=2)
    assert "line 5" in done.stderr
    assert "comand" in done.stderr
    house.cli("get", "job", "good", code=4)
    file.write_text("name: good\nspec: {command: [sleep, '30'], grace_period: 1s}\n")
    assert "would be created" in house.cli("apply", "-f", str(file), "--dry-run").stdout
    house.cli("get", "job", "good", code=4)
    assert "created" in house.cli("apply", "-f", str(file)).stdout
    assert "unchanged" in house.cli("apply", "-f", str(file)).stdout
    file.write_text("name: good\nspec: {command: [sleep, '30'], grace_period: 1s, max_restarts: 2}\n")
    assert "updated" in house.cli("apply", "-f", str(file)).stdout
    assert house.job("good")["generation"] == 2
    file.write_text("name: good\nspec: {command: [sleep, '31'], grace_period: 1s}\n")
    house.reach("good", "Running")
    assert "cannot change under it" in house.cli("apply", "-f", str(file), code=5).stderr
    house.client.jobs.cancel("good")
    house.ended("good")


def test_a_generation_that_is_not_the_present_one_is_refused(house: House) -> None:
    name = house.run(["true"])
    house.ended(name)
    body = b'{"spec": {"command": ["false"]}, "generation": 7}'
    answer = house.cli("get", "job", name, "-o", "json")
    assert '"generation": 1' in answer.stdout
    with pytest.raises(Exception, match="is at generation 1, not 7"):
        house.client.transport.request(
            "PUT", f"/api/v1/projects/default/jobs/{name}", body=body, headers={"content-type": "application/json"}
        )


def test_progress_and_rate(house: House) -> None:
    script = (
        "import penstock, time\n"
        "for i in range(1, 21):\n"
        "    penstock.report(step=i, total_steps=20, loss=1 / i)\n"
        "    time.sleep(0.05)\n"
    )
    name = house.run(["python", "-c", script])
    until(lambda: (house.job(name)["status"]["progress"] or {}).get("step"), "no progress is shown while it runs")
    house.ended(name)
    found = house.get(f"projects/default/jobs/{name}/progress")
    assert found["latest"]["step"] == 20
    assert [p[0] for p in found["series"]["loss"]] == list(range(1, 21))
    assert house.job(name)["status"]["progress"]["step"] == 20


def test_a_plain_line_on_the_report_descriptor_is_enough(house: House) -> None:
    name = house.run(["sh", "-c", """echo '{"step": 3, "loss": 0.5}' >&$PENSTOCK_REPORT_FD"""])
    house.ended(name)
    assert house.get(f"projects/default/jobs/{name}/progress")["latest"]["step"] == 3


def test_exec_and_a_foreign_port(house: House) -> None:
    name = house.run(["sh", "-c", "export INSIDE=1; sleep 60"], env={"MARK": "yes"}, grace_period="1s")
    house.reach(name, "Running")
    done = house.cli("exec", name, "--", "sh", "-c", "echo mark=$MARK; exit 7", code=7)
    assert "mark=yes" in done.stdout
    house.client.jobs.cancel(name)
    house.ended(name)


def test_control_sequences_are_harmless(house: House) -> None:
    name = house.run(["printf", r"\033]0;owned\007\033[31mred\033[0m\n"])
    house.ended(name)
    assert house.logs(name) == "red\n"
    assert "\x1b" in house.logs(name, raw="true")


def test_cost_is_recorded(house: House) -> None:
    name = house.run(["sleep", "1"], resources={"cpus": 0.5, "memory": "256Mi"})
    house.ended(name)
    cost = house.get(f"projects/default/jobs/{name}/cost")
    assert cost["total"] > 0 or cost.get("amount", 0) > 0, cost


def test_drain_moves_a_job_and_costs_no_restart(house: House) -> None:
    name = house.run(["sleep", "60"], resources={"cpus": 1}, grace_period="1s")
    node = house.reach(name, "Running")["status"]["nodes"][0]
    house.cli("drain", node)
    other = until(
        lambda: (s := house.job(name)["status"])["attempt"] == 2 and s["phase"] == "Running" and s, "not moved"
    )
    assert other["nodes"] != [node]
    assert other["restarts"] == 0
    assert "NodeDrained" in house.reasons(name)
    house.cli("uncordon", node)
    house.client.jobs.cancel(name)
    house.ended(name)


def test_a_lost_node_ends_its_gang_which_waits_and_comes_back(house: House) -> None:
    name = house.run(["sleep", "60"], nodes=2, max_restarts=3, grace_period="1s")
    house.reach(name, "Running")
    house.cli("lose", "node-1")
    until(lambda: house.phase(name) == "Pending", "it does not wait")
    why = house.get(f"projects/default/jobs/{name}/why")
    assert "node-1 is lost" in why["message"], why
    assert "NodeLost" in str(house.get(f"projects/default/jobs/{name}/attempts"))
    house.cli("restore-node", "node-1")
    assert house.reach(name, "Running")["status"]["attempt"] == 2
    house.client.jobs.cancel(name)
    house.ended(name)


def test_audit_and_deletion(house: House) -> None:
    name = house.run(["true"], name="to-delete")
    job = house.ended(name)
    house.cli("delete", name)
    assert not (Path(house.data_dir) / "jobs" / job["id"]).exists()
    assert "ok" in house.cli("audit", "verify").stdout


@pytest.mark.parametrize("name", ["../x", "a/b", 'q"', "new\nline", "emoji😀", "", "-lead", "x" * 64])
def test_bad_names_leave_no_trace(house: House, name: str) -> None:
    before = house.get("events?limit=1&newest=true")["items"][0]["seq"]
    done = house.cli("run", "--detach", "--no-snapshot", f"--name={name}", "--", "true", code=2)
    assert "is not a name" in done.stderr
    assert house.get("events?limit=1&newest=true")["items"][0]["seq"] == before


def test_the_shell_ends_when_idle(house: House) -> None:
    name = house.run([], interactive=True, idle_timeout="1s", grace_period="1s")
    started = time.monotonic()
    status = house.ended(name)["status"]
    assert (status["phase"], status["reason"]) == ("Cancelled", "IdleTimeout")
    assert time.monotonic() - started > 0.9


def test_apply_says_beforehand_what_it_would_refuse_and_that_it_runs_again(house: House, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: again\nspec: {command: [sleep, '30'], grace_period: 1s}\n")
    house.cli("apply", "-f", str(file))
    house.reach("again", "Running")
    file.write_text("name: again\nspec: {command: [echo, changed], grace_period: 1s}\n")
    dry = house.cli("apply", "-f", str(file), "--dry-run", code=1)
    assert "cannot change under it" in dry.stdout
    house.client.jobs.cancel("again")
    house.ended("again")
    assert "it runs again" in house.cli("apply", "-f", str(file), "--dry-run").stdout
    assert "it runs again" in house.cli("apply", "-f", str(file)).stdout
    status = house.ended("again")["status"]
    assert (status["phase"], status["attempt"], status["progress"]) == ("Succeeded", 2, None)


def test_why_of_an_array_names_the_tasks_that_failed(house: House) -> None:
    name = house.run(["sh", "-c", "exit $PENSTOCK_ARRAY_INDEX"], array={"count": 3}, resources={"cpus": 0.1})
    house.ended(name)
    why = house.get(f"projects/default/jobs/{name}/why")
    assert [line.split(":")[0] for line in why["evidence"]] == [f"{name}-1", f"{name}-2"]
    assert f"penstock logs {name}-1" in why["helps"][0]
