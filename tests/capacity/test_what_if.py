"""Queues, failures and plans from the command line, to the printed figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.app import main

PHILLY = str(Path(__file__).resolve().parents[2] / "data/traces/philly_82k_jobs.csv.xz")
ROWS = """\
id,submit,duration_s,gpus,queue,user
a1,0,7200,8,a,ann
a2,0,7200,8,a,ann
b1,3600,3600,8,b,bob
c1,4000,600,2,c,eve
"""
QUEUES = """\
cohorts: [{name: all}]
queues:
- {name: a, cohort: all, quotas: {default: {gpus: 8}}}
- {name: b, cohort: all, quotas: {default: {gpus: 8}}, reclaim_within_cohort: RECLAIM}
- {name: c, cohort: all}
"""


PRICES = """\
currency: USD
cpu_hour: 0.03
memory_gib_hour: 0.004
gpu_hour: {A100: 3.0, default: 2.5}
reserved:
- {name: a, from: 2026-01-01, until: 2027-01-01, gpus: 8, model: A100, gpu_hour: 1.8}
- {name: b, from: 2026-01-01, until: 2027-01-01, gpus: 8, model: H100, gpu_hour: 1.2}
spot: {nodes: ["spot-*"], gpu_hour: {A100: 1.1}}
"""


def files(tmp_path: Path, **texts: str) -> dict[str, str]:
    found = {}
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(text)
        found[name] = str(path)
    return found


def told(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    assert main(["capacity", *command, "-o", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    for name in ("wall_s", "read_s"):
        found.pop(name, None)
    return found


def test_whose_quota_is_idle_and_what_its_return_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, trace=ROWS, never=QUEUES.replace("RECLAIM", "never"), any=QUEUES.replace("RECLAIM", "any"))
    replay = ("replay", paths["trace"], "--nodes", "2", "--gpus-per-node", "8", "--queues")
    kept = told(capsys, *replay, paths["never"])
    assert kept["evictions"] == 0
    a, b = kept["by_queue"]["a"], kept["by_queue"]["b"]
    assert (a["used_gpu_hours"], a["borrowed_gpu_hours"], a["idle_gpu_hours"]) == (32, 16, 8)
    assert (b["used_gpu_hours"], b["lent_gpu_hours"], b["mean_wait_s"]) == (8, 16, 3600)
    assert b["nominal_gpu_hours"] == 8 * kept["makespan_s"] / 3600 == b["idle_gpu_hours"] + b["used_gpu_hours"]
    taken = told(capsys, *replay, paths["any"])
    assert (taken["evictions"], taken["by_queue"]["a"]["evictions"], taken["lost_gpu_hours"]) == (1, 1, 8)
    assert taken["by_queue"]["b"]["mean_wait_s"] == 0
    assert told(capsys, *replay, paths["any"]) == taken, "the same twice, but for the time that it took"


def test_failures_of_a_file_restart_gangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(
        tmp_path, trace="id,submit,duration_s,gpus\na,0,7200,16\nb,10,600,8\n", lost="node,at_s,until_s\n1,3000,3600\n"
    )
    replay = ("replay", paths["trace"], "--nodes", "2", "--gpus-per-node", "8", "--failures", paths["lost"])
    found = told(capsys, *replay)
    assert (found["failure_restarts"], found["lost_gpu_hours"], found["makespan_s"]) == (1, 13.333, 10800)
    kept = told(capsys, *replay, "--checkpoint-interval", "20m")
    assert (kept["failure_restarts"], kept["lost_gpu_hours"], kept["makespan_s"]) == (1, 2.667, 8400)


def test_failures_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    replay = ("replay", PHILLY, "--preset", "philly", "--cluster", "6c71a0", "--first", "500", "--nodes", "16")
    drawn = (
        *replay,
        "--gpus-per-node",
        "8",
        "--mtbf",
        "200",
        "--repair",
        "2h",
        "--checkpoint-interval",
        "1h",
        "--seed",
    )
    found = told(capsys, *drawn, "4")
    assert found["failure_restarts"] > 10
    assert 0 < found["lost_gpu_hours"] < found["failure_restarts"] * 128
    assert told(capsys, *drawn, "4") == found
    assert told(capsys, *drawn, "5") != found


def test_everything_wrong_with_files_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "cohorts: [{name: x, parent: y}, {name: y, parent: x}]\nqueues:\n- {name: a, quotas: {odd: {gpus: 4}}}\n- {name: b, quotas: {default: {gpus: 99}}}\n"
    paths = files(tmp_path, trace=ROWS, bad=bad, lost="node,at_s,until_s\n7,1,2\n0,5,4\n")
    replay = ["capacity", "replay", paths["trace"], "--nodes", "2", "--gpus-per-node", "8"]
    assert main([*replay, "--queues", paths["bad"]]) == 2
    said = capsys.readouterr().err
    for word in ("circle", "'odd'", "99 gpus", "line 1", "line 3", "line 4"):
        assert word in said
    assert main([*replay, "--failures", paths["lost"]]) == 2
    said = capsys.readouterr().err
    assert "line 2" in said
    assert "line 3" in said


def test_a_plan_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{n},{n * 600},7200,8\n" for n in range(2000))
    paths = files(tmp_path, trace="id,submit,duration_s,gpus\n" + rows, queues=QUEUES.replace("RECLAIM", "any"))
    plan = ("plan", paths["trace"], "--gpus-per-node", "8", "--target")
    found = told(capsys, *plan, "p95-wait=10m")
    assert (found["nodes"], found["gpus"], found["achieved_s"]) == (12, 96, 0)
    assert found["interval"]["low"] <= 12 <= found["interval"]["high"]
    assert {trial["nodes"] for trial in found["trials"]} >= {9, 10, 11, 12, 13}
    assert found["cost"]["on_demand"]["month"] > 0
    assert main(["capacity", *plan, "p95-wait=10m", "-o", "table"]) == 0
    said = capsys.readouterr()
    assert "12 nodes (96 GPUs) are the least that keep p95-wait to 10m" in said.out
    assert not said.err, "progress is for a terminal"
    prices = files(tmp_path, prices=PRICES)["prices"]
    cost = told(capsys, *plan, "p95-wait=10m", "--prices", prices, "--gpu-model", "NVIDIA A100-SXM4-80GB")["cost"]
    assert [cost[kind]["gpu_hour"] for kind in ("on_demand", "reserved", "spot")] == [3.0, 1.8, 1.1]
    assert cost["reserved"]["month"] == pytest.approx(96 * 730 * 1.8)
    low = ("plan", paths["trace"], "--gpus-per-node", "1", "--queues", paths["queues"], "--target", "mean-wait=100d")
    assert told(capsys, *low)["nodes"] == 16, "the quotas that are promised must be there"
    for target in ("utilization=0.8", "p95-wait", "p95-wait=soon"):
        assert main(["capacity", *plan, target]) == 2
        assert "--target" in capsys.readouterr().err
