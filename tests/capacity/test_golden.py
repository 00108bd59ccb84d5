"""The seven published replays of Philly, to the printed digit (data/traces; docs/decisions/0004 on the fourth)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.capacity import figures, traces
from penstock.capacity import scenario as scenario_module
from penstock.capacity.scenario import Scenario, Source, replayed
from penstock.capacity.traces import Selection

PHILLY = str(Path(__file__).resolve().parents[2] / "data/traces/philly_82k_jobs.csv.xz")
VC = "6c71a0"

CASES: list[tuple[str, Selection, Scenario, tuple[int, float, float, float | None, float]]] = [
    ("fifo", Selection(VC, 2000), Scenario(16, 8), (2000, 40604.5, 8161.0, 83960, 3050648)),
    ("sjf", Selection(VC, 2000), Scenario(16, 8, "sjf"), (2000, 37670.8, 5227.3, 59282, 3050648)),
    ("up to 8", Selection(VC, 2000, 8), Scenario(16, 8), (1997, 40661.5, 8173.3, 83960, 3050648)),
    ("skip", Selection(VC, 2000, 8), Scenario(16, 8, blocking="skip"), (1997, 39299.1, 6810.8, None, 3050648)),
    ("one pool", Selection(), Scenario(80, 8), (82247, 124485.4, 111349.5, 222759, 9408754)),
    ("one pool, sjf", Selection(), Scenario(60, 8, "sjf"), (82247, 29018.7, 15882.8, 37230, 11176931)),
    ("whole cluster", Selection(VC), Scenario(16, 8), (9953, 17867.9, 1832.4, 2210, 7749024)),
]


def replay(select: Selection, scenario: Scenario) -> dict[str, Any]:
    return replayed(scenario, Source(PHILLY, "philly", select), lambda: 0.0)


@pytest.mark.parametrize(("select", "scenario", "want"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_golden(select: Selection, scenario: Scenario, want: tuple[int, float, float, float | None, float]) -> None:
    found = replay(select, scenario)
    p95 = found["p95_wait_s"] if want[3] is not None else None
    assert (found["jobs"], found["mean_completion_s"], found["mean_wait_s"], p95, found["makespan_s"]) == want


def test_streamed_from_disk_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replay(Selection(VC, 2000), Scenario(16, 8))
    for module, name in ((traces, "CHUNK"), (scenario_module, "AHEAD"), (figures, "RUN")):
        monkeypatch.setattr(module, name, 100)
    assert replay(Selection(VC, 2000), Scenario(16, 8)) == whole


def test_the_same_replay_twice_is_the_same() -> None:
    scenario = Scenario(16, 8, "fairshare", backfill="easy", mtbf_s=100 * 3600.0, checkpoint_s=3600.0, seed=3)
    assert replay(Selection(VC, 500), scenario) == replay(Selection(VC, 500), scenario)
