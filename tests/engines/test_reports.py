"""A rank's lines: steps and events, checked and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.local.logreader import points
from penstock.engines.local.loop import Loop
from penstock.engines.local.reports import Progress
from penstock.engines.reports import parse
from penstock.engines.slurm.logs import reports
from penstock.engines.slurm.pace import Pace

EVENT = b'{"at":1.0,"rank":0,"event":"checkpoint","data":{"state":"saved","step":4,"ids":["a","b"],"x":{"y":1}}}'
jsonable = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


def test_an_event_is_no_step() -> None:
    assert parse(EVENT, 2, 5.0) == {
        "at": 5.0,
        "rank": 2,
        "step": None,
        "total_steps": None,
        "metrics": {},
        "event": "checkpoint",
        "data": {"state": "saved", "step": 4, "ids": ["a", "b"], "x": None},
    }


@given(st.dictionaries(st.sampled_from(["event", "data", "step", "metrics", "x"]), jsonable))
def test_whatever_a_rank_writes_stays_plain(body: dict[str, Any]) -> None:
    found = parse(json.dumps(body).encode(), 0, 1.0)
    json.dumps(found, allow_nan=False)


def test_what_watch_says_ends_no_supervisor_whose_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    progress = Progress(str(tmp_path / "progress"), Loop(), lambda _: None)
    progress.take(0, [b'{"event":"steps","data":{"step":[1]}}'])
    progress.close()


def test_events_are_kept_among_many_steps(tmp_path: Path) -> None:
    """Steps are thinned out, in a batch and in the file; events are not, and the newest step stays the newest."""
    told: list[dict[str, Any]] = []
    progress = Progress(str(tmp_path / "progress"), Loop(), told.append)
    step = 0
    for _ in range(1000):
        lines = []
        for _ in range(120):
            step += 1
            lines.append(b'{"step":%d,"metrics":{"loss":0.5,"%s":1}}' % (step, b"x" * 40))
        progress.take(0, [*lines[:60], EVENT, *lines[60:]])
    progress.take(0, [EVENT])
    progress.close()
    kept = [json.loads(line) for line in (tmp_path / "progress").read_bytes().splitlines()]
    assert (tmp_path / "progress").stat().st_size < 2 << 20
    assert sum("event" in each for each in kept) == 1001
    summary = progress.summary()
    assert summary is not None and summary["step"] == step


def test_on_slurm_too() -> None:
    steps = b"".join(b'{"at":%d,"step":%d}\n' % (n, n) for n in range(20_000))
    found = list(reports(steps + EVENT + b"\n" + steps[-20:], 0, 30_000.0))
    assert sum("event" in each for each in found) == 1 and len(found) < 4100
    pace = Pace()
    assert pace.take(b'{"step":3}', 1.0) and not pace.take(EVENT, 2.0) and pace.summary["step"] == 3


def test_of_very_many_reports_a_choice_of_every_rank_is_read(tmp_path: Path) -> None:
    """Ranks that take turns, as ranks in step do: none of them is left out, nor the newest, nor an event."""
    lines = [b'{"at":%d,"rank":%d,"step":%d}' % (n, n % 8, n // 8) for n in range(24_000)]
    (tmp_path / "progress").write_bytes(b"\n".join([*lines[:5000], EVENT, *lines[5000:]]) + b"\n")
    found = points(str(tmp_path / "progress"))
    assert 4000 <= len(found) <= 4300 and found[-1]["at"] == 23_999
    assert sum("event" in each for each in found) == 1
    counts = [sum(each["rank"] == rank for each in found if "event" not in each) for rank in range(8)]
    assert min(counts) > 450
