"""Sums, bars and CSV of the bill as the command line shows it; the trace of a row, and the forecast's endpoint."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.app import main
from penstock.base.errors import NotFound
from penstock.base.routes import Call
from penstock.cost import capacity
from penstock.cost.bill_commands import as_csv, bar, sparkline
from penstock.cost.bill_routes import BillRoutes, SumQuery, TraceQuery
from penstock.cost.forecast_routes import ForecastRoutes
from penstock.cost.terms import Terms
from tests.cost.test_budgets import joined
from tests.cost.test_ledger import ADMIN, PRICES, ended, ledgers, started
from tests.stores import Clock


def test_every_row_leads_to_its_usage_and_the_sums_to_the_bill(sqlite_url: str) -> None:
    async def story() -> dict[str, Any]:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            capacity.attach(store)
            await store.write(lambda tx: joined(tx, "n0"))
            await store.write(lambda tx: started(tx, "j"))
            clock.now += 3600
            await store.write(lambda tx: ended(tx, "j"))
            routes = BillRoutes(store, PRICES, Terms())
            bill = await routes.bill(Call(ADMIN, {}, SumQuery()))
            for by in ("project", "user", "queue", "job", "node"):
                rows = (await routes.bill(Call(ADMIN, {}, SumQuery(by=by))))["items"]
                assert sum(row["nanos"] for row in rows) == bill["nanos"]
                assert {row["kind"] for row in rows} == {"used", "idle"}
            for row in bill["items"]:
                query = TraceQuery(month=None, rule=None, row=row["id"])
                traced = await routes.trace(Call(ADMIN, {}, query))
                assert [each["id"] for each in traced["items"]] == row["intervals"]
                assert traced["nanos"] == row["nanos"]
            with pytest.raises(NotFound, match="has no row") as caught:
                await routes.trace(Call(ADMIN, {}, TraceQuery(month=None, rule=None, row="used/none")))
            assert "cost bill --rows" in caught.value.advice
            with pytest.raises(NotFound, match="no bill of") as caught:
                await routes.bill(Call(ADMIN, {}, SumQuery(month="2199-01")))
            assert "2026-11" in caught.value.advice
            found = await ForecastRoutes(store, PRICES).forecast(Call(ADMIN, {"project": "default"}))
            assert found["expected"] == found["spent"] > 0  # nothing runs, and no whole day has passed
            assert found["low"] is None
            return bill

    bill = asyncio.run(story())
    ids = [row["id"] for row in bill["items"]]
    assert len(ids) == len(set(ids))
    assert as_csv(bill).count("\n") == 1 + len(ids)


def test_bars_and_sparklines() -> None:
    assert (bar(1, 2), bar(0, 0), bar(-1, 2)) == ("#" * 12, "", "")
    assert sparkline([0, 1, 2]) == " ▄█"
    assert sparkline([0.0]) == " "
    assert sparkline([]) == ""


def test_no_cell_is_a_formula() -> None:
    row = {"id": "x", "kind": "used", "key": {"user": "=1+1"}, "paid": ["spot", "cpus"], "hours": 1.0, "nanos": 1}
    assert "'=1+1" in as_csv({"items": [row], "currency": "EUR"})


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["bill", "--since", "1h"], "`cost bill` does not take --since; it takes --by, --all-projects, --month"),
        (["bill", "--rows", "--by", "job"], "`cost bill --rows` does not take --by"),
        (["export", "--by", "job"], "`cost export` does not take --by"),
        (["export", "--rule", "own"], "--rule does not go with FOCUS"),
        (["forecast", "--month", "2026-11"], "`cost forecast` does not take --month; it takes nothing"),
        (["--job", "j", "--since", "1h"], "`cost report --job` does not take --since"),
        (["report", "row"], "does not take ROW"),
        (["bill", "--month", "2026-13"], "--month '2026-13' is no month: write it like 2026-11"),
    ],
)
def test_what_would_change_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], command: list[str], told: str
) -> None:
    assert main(["cost", *command, "--url", "http://127.0.0.1:1"]) == 2
    assert told in capsys.readouterr().err
