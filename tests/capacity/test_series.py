from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app import main
from penstock.capacity.replay import Cluster, Outcome, Replay, TraceJob
from penstock.capacity.series import SHOWN, sparkline
from penstock.scheduling.spec import Setup

jobs = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(1, 3000), st.integers(1, 16), st.sampled_from("abcdefghijkl")),
    min_size=1,
    max_size=40,
)


@given(jobs, st.integers(1, 50))
def test_spans_hold_all_use_and_all_waits(rows: list[tuple[int, int, int, str]], samples: int) -> None:
    trace = [TraceJob(str(n), *row, line=n) for n, row in enumerate(sorted(rows))]
    ended: list[Outcome] = []
    replay = Replay(trace, Cluster(2, 8), Setup(), samples=samples, sink=ended.append)
    result = replay.run()
    assert replay.series is not None
    found, width = replay.series.to_dict(16, result.makespan), replay.series.width
    spans = len(found["at"])
    assert spans <= 2 * samples
    assert (spans - 1) * width < result.makespan <= spans * width
    assert all(len(row) == spans for what in ("gpus", "waiting", "wait_s") for row in found[what].values())
    lasts = [min(width, result.makespan - at) for at in found["at"]]
    used = sum(gpus * lasted for gpus, lasted in zip(found["all"]["gpus"], lasts, strict=True))
    assert used == pytest.approx(result.gpu_seconds, rel=0.01, abs=0.01 * result.makespan)
    assert sum(map(sum, replay.series.waited.values())) == pytest.approx(sum(one.waited for one in ended))
    assert sum(map(sum, replay.series.jobs.values())) == len(ended)
    assert len(found["gpus"]) <= SHOWN + 1
    together = [sum(row[n] for row in found["gpus"].values()) for n in range(spans)]
    assert together == pytest.approx(found["all"]["gpus"], abs=0.1)


def test_a_timeline_of_two_queues() -> None:
    trace = [TraceJob("x", 0, 4, 8, "a"), TraceJob("y", 1, 4, 4, "b")]
    replay = Replay(trace, Cluster(1, 8), Setup(), samples=4)
    result = replay.run()
    assert replay.series is not None
    assert replay.series.to_dict(8, result.makespan) == {
        "width_s": 1.0,
        "at": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        "capacity": 8,
        "gpus": {"a": [8, 8, 8, 8, 0, 0, 0, 0], "b": [0, 0, 0, 0, 4, 4, 4, 4]},
        "waiting": {"a": [0] * 8, "b": [0, 1, 1, 1, 0, 0, 0, 0]},
        "wait_s": {"a": [0, *[None] * 7], "b": [None, 3, *[None] * 6]},
        "all": {
            "gpus": [8, 8, 8, 8, 4, 4, 4, 4],
            "waiting": [0, 1, 1, 1, 0, 0, 0, 0],
            "wait_s": [0, 3, *[None] * 6],
        },
    }


def test_a_very_long_gap_takes_no_long_time() -> None:
    trace = [TraceJob("x", 0, 1, 1), TraceJob("y", 3e9, 1e9, 1)]
    replay = Replay(trace, Cluster(1, 8), Setup(), samples=10)
    result = replay.run()
    assert replay.series is not None
    assert len(replay.series.to_dict(8, result.makespan)["at"]) <= 20


def test_sparklines() -> None:
    assert sparkline([0, 0.1, None, 8], 4, 8) == " ▁ █"
    assert sparkline([1, 3, 5, 7], 2, 8) == "▂▆"
    assert sparkline([4], 3, 8) == "▄▄▄"
    assert sparkline([0, 0], 2, 0) == "  "


def test_a_table_is_to_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, queues = tmp_path / "t.csv", tmp_path / "q.yaml"
    trace.write_text("submit,duration_s,gpus,queue\n0,3600,8,a\n0,3600,8,a\n10,3600,4,b\n")
    queues.write_text(
        "cohorts: [{name: all}]\nqueues:\n- {name: a, cohort: all, quotas: {default: {gpus: 4}}}\n"
        "- {name: b, cohort: all, quotas: {default: {gpus: 4}}}\n"
    )
    command = ["capacity", "replay", str(trace), "--nodes", "1", "--gpus-per-node", "8"]
    assert main([*command, "--queues", str(queues), "-o", "table"]) == 0
    told = capsys.readouterr().out
    assert "3 jobs on 1 node of 8 GPUs, fifo-strict: all had ended after 3h" in told
    assert "GPUs in use" in told
    assert "█" in told
    assert "IDLE QUOTA" in told
    assert main([*command, "--samples", "5", "-o", "json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["timeline"]["gpus"]) == {"a", "b"}
    assert main([*command, "--samples", "0"]) == 2
    assert main([*command, "--versus", "nodes=2,policy=sjf", "-o", "table"]) == 0
    assert "makespan                   3h" in capsys.readouterr().out
    assert main([*command, "--versus", "nodes=2,policy=sjf", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["versus"]["makespan_s"] == 7200
    for wrong in ("nodes=x", "policy=", "gpus=4,odd", "policy=odd"):
        assert main([*command, "--versus", wrong]) == 2
