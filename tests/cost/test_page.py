"""The cost page's view models, and the outlook behind them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.cost.page import after, before, bill_rows, budgets, lines, month, window
from tests.console.operations import BUDGETS, bill, outlook
from tests.system.house import house, until


def test_the_month_adds_up() -> None:
    found = month(outlook())
    assert found.month == "2026-11"
    assert sum(share.amount for share in found.shares) == pytest.approx(found.total)
    assert sum(share.percent for share in found.shares) == pytest.approx(100)
    assert len(found.bars) == 24
    assert found.bars[-1].x + found.bars[-1].width <= 100
    dearest = max(found.bars, key=lambda bar: sum(height for _, _, height in bar.parts))
    assert dearest.parts[-1][1] == pytest.approx(0)
    assert found.days_left == 6


def test_months_before_and_after() -> None:
    assert before("2026-01") == "2025-12"
    assert after("2025-12", "2026-11") == "2026-01"
    assert after("2026-11", "2026-11") is None
    assert window("2026-12") == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
    for bad in ("2026-13", "", "now", "0001-01", "9999-12"):
        with pytest.raises(InvalidInput):
            before(bad)


def test_each_line_leads_to_rows_that_add_up_to_it() -> None:
    for line in lines(bill("project"), "project", "2026-11"):
        rows, left_out = bill_rows(bill(None), "project", line.name, line.kind, "2026-11")
        if line.kind == "used":
            assert sum(row.amount for row in rows) == pytest.approx(line.amount, rel=1e-6)
            assert all(row.traced for row in rows)
        assert left_out == 0
    rows, _ = bill_rows(bill(None), "job", "vision/digits", "used", "2026-11")
    assert [row.job for row in rows] == ["digits"]


def test_many_lines_are_added_up() -> None:
    items = [{"kind": "used", "name": f"p{n}", "nanos": 1000 - n, "hours": 1.0} for n in range(500)]
    found = lines({"nanos": sum(item["nanos"] for item in items), "items": items}, "project", "2026-11")
    assert len(found) == 301
    assert found[-1].name == "200 others"
    assert sum(line.percent for line in found) == pytest.approx(100)


def test_budgets_say_how_they_stand() -> None:
    words = {budget.project: budget.word for budget in budgets(BUDGETS, {"science": {"expected": 35000.0}})}
    assert words == {
        "vision": "used up: new work is refused",
        "language": "past 80%",
        "science": "will not last the month",
    }


@given(st.dictionaries(st.sampled_from(["used", "idle", "unused"]), st.integers(0, 10**18)))
def test_any_day_is_drawn_within_its_chart(amounts: dict[str, int]) -> None:
    day = {"used": 0, "idle": 0, "unused": 0} | amounts
    told: dict[str, Any] = outlook() | day | {"nanos": sum(day.values()), "days": [{"day": "2026-11-01"} | day]}
    (bar,) = month(told).bars
    assert all(y >= -1e-6 and 0 <= height <= 100 + 1e-6 for _, y, height in bar.parts)


def test_the_outlook_of_a_server_is_its_bill() -> None:
    with house("--simulate", "4x8") as server:
        name = server.run(["sleep", "1"], resources={"gpus": 4, "cpus": 1})
        server.ended(name)
        bill_now = until(lambda: server.get("cost/bill"), "no bill")
        found = server.get("cost/outlook")
        assert found["nanos"] >= bill_now["nanos"] > 0
        assert found["used"] > 0
        assert found["used"] + found["idle"] + found["unused"] == found["nanos"]
        assert sum(day[kind] for day in found["days"] for kind in ("used", "idle", "unused")) == pytest.approx(
            found["nanos"], rel=1e-6
        )
        forecast = found["forecast"]
        assert forecast["expected"] >= found["nanos"] / 1e9
        assert forecast["low"] is None
        # One H100 and 16 CPUs for each GPU: a fleet that is seconds old costs by the hour what an old one does.
        assert forecast["per_hour"] > 32 * 3.9
        assert "what the fleet costs now at its present rate: no whole day is known yet" in forecast["method"]
