"""The export: FOCUS 1.2's null rules as we keep them, and its rows add up to the bill in cents."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal

from hypothesis import given

from penstock.cost import focus
from penstock.cost.allocation import Interval, allocate, in_cents
from penstock.cost.terms import Terms
from tests.cost.test_allocation import PRICES, cases

# The specification's mandatory columns (v1.2), and the conditional ones that may not be null in a row of usage.
_MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity"),
    *("PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
)
_NEVER_NULL = (
    *(name for name in _MANDATORY if name != "ChargeClass"),
    *("BillingAccountType", "ChargeFrequency", "ListUnitPrice", "PricingCategory", "PricingCurrency"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceId"),
)
_NUMBERS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "ListUnitPrice", "PricingQuantity")
_ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "CommitmentDiscountStatus": {"", "Used", "Unused"},
    "CommitmentDiscountCategory": {"", "Spend", "Usage"},
    "CapacityReservationStatus": {"", "Used", "Unused"},
}


def test_every_mandatory_column_is_there() -> None:
    assert set(_MANDATORY) <= set(focus.COLUMNS)
    assert sorted(focus.COLUMNS) == focus.COLUMNS


@given(cases)
def test_every_row_keeps_the_rules(case: tuple[list[Interval], list[Interval], Terms, float, float]) -> None:
    used, up, terms, one, two = case
    since, until = sorted((one, two))
    bill = allocate(used, up, PRICES, terms, since=since, until=until)
    rows = list(csv.DictReader(io.StringIO(focus.export(bill, PRICES, since=since, until=until))))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(in_cents(bill.rows, bill.nanos)[1]) / 100
    for row in rows:
        assert all(row[name] for name in _NEVER_NULL), row
        assert list(row) == focus.COLUMNS
        assert {name: row[name] for name in _ALLOWED if row[name] not in _ALLOWED[name]} == {}
        assert (row["CommitmentDiscountQuantity"] == "") == (row["CommitmentDiscountId"] == "")
        assert (row["CommitmentDiscountUnit"] == "") == (row["CommitmentDiscountId"] == "")
        assert isinstance(json.loads(row["Tags"]), dict)
        for name in (*_NUMBERS, *filter(row.get, ("ConsumedQuantity", "CommitmentDiscountQuantity"))):
            assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", row[name]), (name, row[name])
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
