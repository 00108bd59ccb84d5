"""The export: FOCUS 1.2's null rules as we keep them, and its rows add up to the bill in cents."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

from hypothesis import given

from penstock.cost import focus
from penstock.cost.allocation import Interval, allocate, in_cents
from penstock.cost.terms import Terms
from tests.cost.test_allocation import PRICES, cases


@given(cases)
def test_every_row_keeps_the_rules(case: tuple[list[Interval], list[Interval], Terms, float, float]) -> None:
    used, up, terms, one, two = case
    since, until = sorted((one, two))
    bill = allocate(used, up, PRICES, terms, since=since, until=until)
    rows = list(csv.DictReader(io.StringIO(focus.export(bill, PRICES, since=since, until=until))))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(in_cents(bill.rows, bill.nanos)[1]) / 100
    for row in rows:
        unused = row["CommitmentDiscountStatus"] == "Unused"
        assert (row["ConsumedQuantity"] == "") == unused == (row["ConsumedUnit"] == "")
        assert (row["CommitmentDiscountId"] == "") == (row["CommitmentDiscountStatus"] == "")
        assert (row["CapacityReservationId"] == "") == (row["CapacityReservationStatus"] == "")
        assert row["ChargeClass"] == ""
        assert Decimal(row["ListCost"]) >= 0
        assert Decimal(row["PricingQuantity"]) >= 0
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] <= row["ChargePeriodEnd"]


def test_months() -> None:
    assert focus.month_of(1795536000.0) == (1793491200.0, 1796083200.0)  # 2026-11
    assert focus.month_of(1796083200.0) == (1796083200.0, 1798761600.0)  # 2026-12, into the next year
