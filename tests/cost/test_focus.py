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
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "InvoiceId", "ContractedUnitPrice"),
    *("PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice"),
)
_NUMBERS = (
    *("BilledCost", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost", "ListUnitPrice"),
    *("PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice"),
    "PricingQuantity",
)
_NEVER_HERE = ("AvailabilityZone", "RegionId", "RegionName")  # no regions, no zones
# One is null exactly where the other is.
_TOGETHER = (
    *(("CommitmentDiscountId", name) for name in ("Category", "Name", "Quantity", "Status", "Type", "Unit")),
    *(("ResourceId", name) for name in ("ResourceName", "ResourceType")),
    *(("SubAccountId", name) for name in ("SubAccountName", "SubAccountType")),
    ("CapacityReservationId", "CapacityReservationStatus"),
    ("ConsumedQuantity", "ConsumedUnit"),
)
_ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "CommitmentDiscountStatus": {"", "Used", "Unused"},
    "CommitmentDiscountCategory": {"", "Spend", "Usage"},
    "CapacityReservationStatus": {"", "Used", "Unused"},
}


def test_every_column_is_there() -> None:
    assert set(_MANDATORY) <= set(focus.COLUMNS)
    assert len(focus.COLUMNS) == 57  # all of version 1.2
    assert sorted(focus.COLUMNS) == focus.COLUMNS


@given(cases)
def test_every_row_keeps_the_rules(case: tuple[list[Interval], list[Interval], Terms, float, float]) -> None:
    used, up, terms, one, two = case
    since, until = sorted((one, two))
    bill = allocate(used, up, PRICES, terms, since=since, until=until)
    rows = list(csv.DictReader(io.StringIO(focus.export(bill, PRICES, since=since, until=until))))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(in_cents(bill.rows, bill.nanos)[1]) / 100
    skus: dict[str, tuple[object, ...]] = {}
    for row in rows:
        assert all(row[name] for name in _NEVER_NULL), row
        assert list(row) == focus.COLUMNS
        assert {name: row[name] for name in _ALLOWED if row[name] not in _ALLOWED[name]} == {}
        for leader, other in _TOGETHER:
            name = f"CommitmentDiscount{other}" if leader == "CommitmentDiscountId" else other
            assert (row[leader] == "") == (row[name] == ""), (leader, name)
        assert not any(row[name] for name in _NEVER_HERE)
        quantity = Decimal(row["PricingQuantity"])
        for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
            assert Decimal(row[price]) * quantity == Decimal(row[cost]) >= 0
            assert row[price] == row[f"PricingCurrency{price}"]
        assert row["PricingCurrencyEffectiveCost"] == row["EffectiveCost"]
        details = json.loads(row["SkuPriceDetails"])
        assert all(key in ("CoreCount", "GpuCount", "MemorySize") or key.startswith("x_") for key in details)
        said = skus.setdefault(row["SkuPriceId"], (row["SkuId"], row["SkuMeter"], row["PricingUnit"], details))
        assert said == (row["SkuId"], row["SkuMeter"], row["PricingUnit"], details)  # one price is one thing
        assert isinstance(json.loads(row["Tags"]), dict)
        for name in (*_NUMBERS, *filter(row.get, ("ConsumedQuantity", "CommitmentDiscountQuantity"))):
            assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", row[name]), (name, row[name])
        unused = row["CommitmentDiscountStatus"] == "Unused"
        assert (row["ConsumedQuantity"] == "") == unused == (row["ConsumedUnit"] == "")
        assert row["ChargeClass"] == ""
        assert Decimal(row["ListCost"]) >= 0
        assert Decimal(row["PricingQuantity"]) >= 0
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] <= row["ChargePeriodEnd"]


def test_months() -> None:
    assert focus.month_of(1795536000.0) == (1793491200.0, 1796083200.0)  # 2026-11
    assert focus.month_of(1796083200.0) == (1796083200.0, 1798761600.0)  # 2026-12, into the next year


def test_an_amount_rounded_to_a_nano_makes_no_price_of_its_own() -> None:
    """A second of a core: 0.00001 by the price, and a contracted price above the list price by the amount's rounding."""
    since = 1_796_000_000.0
    used = [Interval("n1", "cpus", 1.0, since, since + 1.7, ("p", "u", "j", "n1", "q"), "a.1/n1/cpus")]
    bill = allocate(used, [], PRICES, Terms(), since=since, until=since + 60)
    (row,) = csv.DictReader(io.StringIO(focus.export(bill, PRICES, since=since, until=since + 60)))
    assert Decimal(row["ContractedUnitPrice"]) == Decimal(row["ListUnitPrice"]) == PRICES.cpu_hour
