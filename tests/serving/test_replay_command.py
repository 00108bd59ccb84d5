"""``penstock serving replay``, to the printed figure; and the goldens of the traces that ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.app import main

DATA = Path(__file__).resolve().parents[2] / "data/serving"
CURVE = {"points": [{"concurrency": 1, "throughput": 1, "p95": 1.0}], "cold_start": 10}
WRONG: list[dict[str, object]] = [
    {"engine": 3},
    {"engine": {"speed": 1}},
    {"engine": {}, "points": []},
    {"engine": {}, "cold_start": -1},
]
ROWS = "at\n" + "".join(f"{second}\n" for second in range(100))


def _files(tmp_path: Path, trace: str = ROWS, curve: object = CURVE) -> list[str]:
    (tmp_path / "trace.csv").write_text(trace)
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    return [str(tmp_path / "trace.csv"), "--curve", str(tmp_path / "curve.json")]


def _told(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    assert main(["serving", "replay", *command, "-o", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_request_a_second_keeps_one_replica_of_one_a_second_busy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _told(capsys, *_files(tmp_path), "--policy", "fixed=1", "--objective", "p95=1500ms")
    (row,) = found["policies"]
    assert (row["misses"], row["reversals"], row["most_replicas"]) == (0, 0, 1)
    assert row["latency"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert row["replica_seconds"] == pytest.approx(100, abs=2)
    assert (found["cold_start_s"], found["begin"]) == (10, 1)


def test_a_table_with_load_replicas_and_p95(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*_files(tmp_path, ROWS + "nonsense\n-1\n"), "--objective", "p95=3s", "--policy", "penstock,fixed=2"]
    assert main(["serving", "replay", *command]) == 0
    told = capsys.readouterr()
    assert "all of an answer in 3s" in told.out
    assert [line.split()[0] for line in told.out.splitlines() if line.startswith(("penstock ", "fixed=2 "))] == [
        "penstock",
        "fixed=2",
        "penstock",
        "penstock",
        "fixed=2",
        "fixed=2",
    ]
    assert "2 of 102 lines left out" in told.err
    assert "line 102: at 'nonsense' is no time" in told.err


def test_what_ships_is_read_whole_and_the_policies_differ_as_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    found = _told(capsys, str(DATA / "azure_llm_2023_code.csv.xz"), "--objective", "ttft=20s", "--cold-start", "60s")
    assert (found["trace"]["requests"], found["trace"]["bad_lines"]) == (8819, 0)
    own, kpa, hpa = found["policies"]
    assert own["misses"] <= kpa["misses"]
    assert own["replica_seconds"] <= 0.9 * kpa["replica_seconds"]
    assert 3 * own["reversals"] <= hpa["reversals"]
    mooncake = _told(
        capsys, str(DATA / "mooncake_fast25_conversation.jsonl.xz"), "--first", "500", "--policy", "fixed=9"
    )
    assert mooncake["policies"][0]["requests"] == 500
    assert mooncake["policies"][0]["unanswered"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "magic"], "'magic' is none of penstock, kpa, hpa, fixed=N"),
        (["--policy", "fixed=99"], "fixed=N"),
        (["--policy", "fixed"], "fixed=N"),
        (["--min", "5", "--max", "2"], "is more than max"),
        (["--min", "-1", "--flaps", "5000"], "--flaps"),
        (["--objective", "p95=soon"], "soon"),
        (["--objective", "ttft=3s"], "write p95=TIME"),
        (["--cold-start", "-5s"], "--cold-start"),
        (["--first", "0"], "--first"),
        (["--curve", "/nowhere"], "cannot be read"),
    ],
)
def test_a_wrong_option_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["serving", "replay", *_files(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ([1], "no JSON object"),
        ({"points": []}, "points"),
        ({"engine": {"prefill": 1}}, "whose requests have tokens"),
    ],
)
def test_a_wrong_curve_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], curve: object, words: str
) -> None:
    assert main(["serving", "replay", *_files(tmp_path, ROWS, curve)]) == 2
    assert words in capsys.readouterr().err


def test_an_engine_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = "at,prompt,output\n" + "".join(f"{second},100,1\n" for second in range(50))
    engine = {"engine": {"prefill": 1000, "attention": 1e12, "chunk": 100}, "cold_start": 5}
    found = _told(capsys, *_files(tmp_path, trace, engine), "--policy", "fixed=1", "--objective", "ttft=1s,tpot=1s")
    (row,) = found["policies"]
    assert row["ttft"]["p50"] == pytest.approx(0.1, rel=0.01)
    assert row["misses"] == 0
    for wrong in WRONG:
        assert main(["serving", "replay", *_files(tmp_path, trace, wrong)]) == 2


def test_a_trace_without_tokens_needs_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serving", "replay", _files(tmp_path)[0]]) == 2
    assert "--curve FILE" in capsys.readouterr().err


def test_an_objective_that_nothing_holds_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serving", "replay", *_files(tmp_path), "--objective", "p95=10ms"]) == 0
    assert "no number of replicas holds it" in capsys.readouterr().out
