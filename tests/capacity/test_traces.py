from __future__ import annotations

import gzip
import lzma
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app import main
from penstock.base.errors import InvalidInput
from penstock.capacity import traces
from penstock.capacity.presets import slurm_seconds
from penstock.capacity.replay import TraceJob
from penstock.capacity.traces import Findings, Selection

CSV = "id,submit,duration_s,gpus,queue\n"
SACCT = (
    "JobID|User|Partition|Submit|Eligible|Start|End|Elapsed|Timelimit|State|AllocTRES|NNodes\n"
    "7|ann|gpu|2026-01-01T00:00:00|2026-01-01T00:00:00|2026-01-01T01:00:00|2026-01-02T02:00:00|1-01:00:00|2-00:00:00|"
    "COMPLETED|billing=16,cpu=64,gres/gpu=16,gres/gpu:a100=16,mem=512G,node=2|2\n"
    "7.batch|||2026-01-01T00:00:00|||||||cpu=1|1\n"
    "8_3|bob|gpu|2026-01-01T00:00:00|Unknown|2026-01-01T00:10:00|Unknown|00:30:00|UNLIMITED|RUNNING|gres/gpu:h100=4|1\n"
    "9|bob|gpu|2026-01-01T00:00:00|2026-01-01T00:00:00|Unknown|Unknown|00:00:00|01:00:00|PENDING||1\n"
)


def read(
    path: Path, text: str, preset: str = "csv", select: Selection | None = None
) -> tuple[list[TraceJob], Findings]:
    path.write_text(text)
    findings = Findings()
    return list(traces.read(str(path), preset, select or Selection(), findings)), findings


def test_bad_rows_are_named_by_line_and_counted(tmp_path: Path) -> None:
    text = (
        CSV + "a,5,10,1,q\nb,1,-4,1,q\nc,x,10,1,q\nd,3,10,99,q\ne,2\na,5,10,1,q\nf,4,10,0,q\ng,6,nan,1,q\nh,0,7,0.5,q\n"
    )
    jobs, found = read(tmp_path / "t.csv", text, select=Selection(pool_gpus=8))
    assert [job.id for job in jobs] == ["h", "a"]
    assert jobs[0].gpu_milli == 500
    assert found.rows == 9
    assert found.rejected == {
        "negative duration_s": 1,
        "not a time": 1,
        "wrong number of columns": 1,
        "larger than the pool": 1,
        "duplicate": 1,
        "not a number": 1,
    }
    assert found.noted == {"asks no GPU": 1, "unsorted": 2}
    assert {problem.line for problem in found.problems} == {3, 4, 5, 6, 7, 9}


def test_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / "t.csv", "id,submit\n")
    assert {problem.path for problem in caught.value.details} == {"duration_s", "gpus"}


def test_sacct(tmp_path: Path) -> None:
    jobs, found = read(tmp_path / "s", SACCT, "slurm-sacct")
    array, big = jobs if jobs[0].id == "8_3" else jobs[::-1]
    assert (big.gpus, big.nodes, big.duration, big.limit, big.user, big.memory) == (
        16,
        2,
        90000,
        172800,
        "ann",
        512 << 30,
    )
    assert big.started is not None
    assert big.started - big.submit == 3600
    assert (array.gpus, array.ongoing, array.limit) == (4, True, math.inf)
    assert found.rejected == {"never started": 1}
    assert found.noted["job step"] == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784), ("02:03:04", 7384), ("03:04", 184), ("UNLIMITED", None), ("Partition_Limit", None)],
)
def test_slurm_times(text: str, seconds: float | None) -> None:
    assert slurm_seconds(text) == seconds


@pytest.mark.parametrize("end", [".xz", ".gz", ""])
def test_compressed(tmp_path: Path, end: str) -> None:
    data = (CSV + "a,5,10,1,q\n").encode()
    path = tmp_path / f"t.csv{end}"
    path.write_bytes(lzma.compress(data) if end == ".xz" else gzip.compress(data) if end == ".gz" else data)
    assert [job.id for job in traces.read(str(path), "csv", Selection(), Findings())] == ["a"]


def test_a_cut_file_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress((CSV + "a,5,10,1,q\n" * 1000).encode())[:-20])
    with pytest.raises(InvalidInput):
        list(traces.read(str(path), "csv", Selection(), Findings()))


def test_long_traces_are_sorted_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "CHUNK", 10)
    jobs, _ = read(tmp_path / "t.csv", CSV + "".join(f"{n},{n * 37 % 101},5,1,q\n" for n in range(101)))
    assert [job.submit for job in jobs] == list(range(101))


def test_a_job_that_lay_on_disk_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SACCT + SACCT.partition("\n")[2].replace("7|ann", "17|ann")
    pods = "name,num_gpu,gpu_milli,creation_time,deletion_time,gpu_spec\n" + "".join(
        f"p{n},1,500,{9 - n},20,V100|A100\n" for n in range(9)
    )
    for preset, trace in (("slurm-sacct", text), ("openb", pods)):
        before, _ = read(tmp_path / "t.csv", trace, preset)
        with monkeypatch.context() as patch:
            patch.setattr(traces, "CHUNK", 2)
            after, _ = read(tmp_path / "t.csv", trace, preset)
        assert before == after
        assert before


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(CSV + text, "utf-8", "replace")
    findings = Findings()
    try:
        jobs = list(traces.read(str(path), "csv", Selection(), findings))
    except InvalidInput:
        return
    assert len(jobs) + findings.left_out + findings.noted.get("asks no GPU", 0) == findings.rows


def test_times_beyond_any_calendar_are_rejected_by_name(tmp_path: Path) -> None:
    rows = "a,1,1e308,1,q\nb,1e30,10,1,q\nc,nan,10,1,q\nd,1,10,1,q\ne,-1e12,5,1,q\n"
    jobs, found = read(tmp_path / "t.csv", CSV + rows)
    assert [job.id for job in jobs] == ["d"]
    assert found.rejected == {"run time above 100 years": 1, "not in the years 1 to 9999": 3}
    _, found = read(tmp_path / "t.csv", "submit,duration_s,gpus,limit_s,start\n1,2,1,99999999999,\n1,2,1,,1e30\n")
    assert found.rejected == {"time limit above 100 years": 1, "not in the years 1 to 9999": 1}


@pytest.mark.parametrize("what", [["replay", "--nodes", "2"], ["plan", "--target", "p95-wait=1h"]])
def test_a_selection_of_nothing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    trace = tmp_path / "t.csv"
    command = ["capacity", what[0], str(trace), "--gpus-per-node", "8", *what[1:]]
    trace.write_text(CSV + "a,1,10,1,vision\nb,2,10,1,nlp\n")
    assert main([*command, "--cluster", "nosuch"]) == 2
    told = capsys.readouterr().err
    assert "'nosuch'" in told
    assert "nlp, vision" in told
    trace.write_text(CSV + "a,1,1e308,1,vision\n")
    assert main(command) == 2
    assert "no row that can be replayed; 1 of 1 left out: run time above 100 years" in capsys.readouterr().err
    trace.write_text(CSV)
    assert main(command) == 2
    assert "the trace has no row" in capsys.readouterr().err
