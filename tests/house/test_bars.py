"""The bars' own arithmetic, and the soak's report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bars, fuzz, soak, soak_report
from benchmarks.harness import Bar, percentile, show


@pytest.mark.parametrize(
    ("value", "direction", "ok"),
    [
        (1.0, "at most", True),
        (1.1, "at most", False),
        (1.0, "at least", True),
        (0.9, "at least", False),
        (None, "at most", False),
        (float("nan"), "at most", False),
    ],
)
def test_limits_are_inclusive_and_the_unmeasured_falls_short(value: float | None, direction: str, ok: bool) -> None:
    bar = Bar("x", value, 1.0, "s", "at least" if direction == "at least" else "at most")
    assert bar.ok is ok
    assert bar.line().endswith("ok" if ok else "falls short")


def test_exit_status_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Bar("good", 1, 2, "s"), Bar("bad", 3, 2, "s")
    assert show([good]) == 0
    assert show([good, bad]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    show([good, bad], as_json=True)
    assert [row["ok"] for row in json.loads(capsys.readouterr().out)] == [True, False]


def test_percentile_is_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile([5.0], 0.99) == 5
    assert percentile(values, 0.5) == 50


def test_a_benchmark_that_breaks_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Bar]:
        raise RuntimeError("no server")

    monkeypatch.setattr(soak, "measure", broken)
    (bar,) = bars.measure("soak")
    assert not bar.ok
    assert "no server" in bar.note


def repository(folder: Path) -> None:
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        subprocess.run(["git", "-C", str(folder), *identity, *command], check=True)


def test_the_soak_report_must_be_of_the_same_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / ".gitignore").write_text("build/\n")
    repository(tmp_path)
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    assert "no report" in soak.measure()[0].note
    report = soak_report.Report.new(soak_report.commit(tmp_path), "host", 1.0)
    measured = {"kills": 100, "jobs_lost": 0, "jobs_run_twice": 0, "wrong_statuses": 0, "broken_ledgers": 0}
    report.finish(at=2.0, exit_status=0, passed=3, failed=0, measured=measured)
    report.write(tmp_path / soak_report.PATH)
    assert all(bar.ok for bar in soak.measure())
    (tmp_path / "a").write_text("2")
    assert not any(bar.ok for bar in soak.measure())
    assert "run `make soak`" in soak.measure()[0].note


def test_the_soak_report_is_written_by_the_test_run(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "test_x.py").write_text(
        "def test_x(record_property):\n    record_property('soak:kills', 7)\ndef test_y(): assert False\n"
    )
    path = tmp_path / "soak.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--soak-report"]
    done = subprocess.run(
        [*command, str(path), "--rootdir", str(tmp_path), str(tmp_path)], cwd=root, capture_output=True, check=False
    )
    report = json.loads(path.read_text())
    assert done.returncode == 1
    assert (report["passed"], report["failed"], report["exit_status"]) == (1, 1, 1)
    assert report["measured"] == {"kills": 7}


def test_the_least_fuzzed_property_is_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / ".gitignore").write_text("build/\n")
    repository(tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    ran = {
        f"tests/{room}/test_x.py::test_{n}": {"cases": 10_000 + n, "all": False} for room in fuzz.ROOMS for n in (0, 1)
    }
    ran["tests/cost/test_x.py::test_small"] = {"cases": 12, "all": True}  # there are no more than these

    def bars_of(measured: dict[str, Any], failed: int) -> list[bool]:
        report = soak_report.Report.new(soak_report.commit(tmp_path), "host", 1.0)
        report.finish(at=2.0, exit_status=failed, passed=3, failed=failed, measured=measured)
        report.write(tmp_path / soak_report.FUZZ_PATH)
        return [bar.ok for bar in fuzz.measure()]

    assert bars_of(ran, 0) == [True] * 4
    assert bars_of(ran, 1) == [False] * 4
    assert bars_of(ran | {"tests/scheduling/test_x.py::test_2": {"cases": 9_999, "all": False}}, 0).count(False) == 1
    assert bars_of({}, 0) == [True, False, False, False]


def test_a_fuzzed_property_tells_how_many_cases_it_ran(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "test_x.py").write_text(
        "from hypothesis import given, settings, strategies as st\n"
        "@settings(max_examples=30)\n@given(st.integers())\ndef test_many(n): pass\n"
        "@given(st.booleans())\ndef test_few(n): pass\n"
        "def test_plain(): assert False\n"
    )
    path = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--fuzz"]
    subprocess.run(
        [*command, f"--soak-report={path}", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=root,
        capture_output=True,
        check=True,
    )
    measured = {name.split("::")[1]: value for name, value in json.loads(path.read_text())["measured"].items()}
    assert measured["test_many"] == {"cases": 30, "all": False}
    assert measured["test_few"]["all"]
    assert set(measured) == {"test_many", "test_few"}
