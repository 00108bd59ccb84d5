"""A month's bill in the columns of FOCUS 1.2 (FinOps Open Cost and Usage Specification). Pure.

Amounts of rows are cents by the largest remainder, so that BilledCost adds up to the bill. A commitment for GPUs of a
model is blended into that model's rows (all bear one price), which therefore say ``Standard``; only its unused part, and
nodes committed as a whole, carry the commitment's id.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from penstock.cost.allocation import KEY, Row, Statement, in_cents
from penstock.cost.spec import CPUS, GPUS, MEMORY, Prices

COLUMNS = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
]


@dataclass(frozen=True, slots=True)
class Account:
    id: str = "penstock"
    name: str = "Penstock"


def month_of(time: float) -> tuple[float, float]:
    """The calendar month (UTC) that a time lies in: its first second, and that of the next."""
    first = datetime.fromtimestamp(time, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first.timestamp(), following.timestamp()


def month_named(text: str) -> tuple[float, float]:
    """The month that "2026-11" names."""
    return month_of(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).timestamp())


def export(statement: Statement, prices: Prices, *, since: float, until: float, account: Account = Account()) -> str:
    """CSV text; ``since`` and ``until`` lie in one calendar month."""
    cents, _ = in_cents(statement.rows, statement.nanos)
    start, end = month_of(since)
    period = {
        "BillingPeriodStart": _time(start),
        "BillingPeriodEnd": _time(end),
        "ChargePeriodStart": _time(since),
        "ChargePeriodEnd": _time(until),
        "BillingAccountId": account.id,
        "BillingAccountName": account.name,
        "BillingAccountType": "Penstock server",
        "BillingCurrency": prices.currency,
        "PricingCurrency": prices.currency,
    }
    return _csv(period | _row(row, cent, prices) for row, cent in zip(statement.rows, cents, strict=True))


def _csv(rows: Iterable[Mapping[str, str]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _row(row: Row, cents: int, prices: Prices) -> dict[str, str]:
    how, resource = row.pool
    billed = f"{Decimal(cents) / 100:f}"
    unit = _unit(row)
    said = {
        **dict.fromkeys(("BilledCost", "EffectiveCost", "ContractedCost"), billed),
        "ListCost": _list_cost(row, prices, billed),
        "ListUnitPrice": _list_price(row, prices, billed),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{row.kind}: {resource}",
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": {"spot": "Dynamic", "reserved": "Committed"}.get(how, "Standard"),
        "PricingQuantity": f"{row.hours:.9f}",
        "PricingUnit": unit,
        "ServiceCategory": "Compute",
        "ServiceSubcategory": "Virtual Machines",
        "ServiceName": "GPU cluster",
        "SkuId": f"{how}/{resource}",
        "SkuMeter": unit,
        "SkuPriceId": f"{how}/{resource}",
        "Tags": json.dumps({"kind": row.kind, **dict(zip(KEY, row.key, strict=False))}, sort_keys=True),
        **dict.fromkeys(("ProviderName", "PublisherName", "InvoiceIssuerName"), "Penstock"),
    }
    if row.kind != "unused":  # an unused commitment consumes nothing: both must be null
        said |= {"ConsumedQuantity": f"{row.hours:.9f}", "ConsumedUnit": unit}
    return said | _where(row) | _commitment(row)


def _where(row: Row) -> dict[str, str]:
    if row.kind != "used":
        return {}
    named = dict(zip(KEY, row.key, strict=False))
    said = {"SubAccountId": named["project"], "SubAccountName": named["project"], "SubAccountType": "Project"}
    resource = f"{named['project']}/{named.get('job', '')}"
    return said | {"ResourceId": resource, "ResourceName": named.get("job", ""), "ResourceType": "Job"}


def _commitment(row: Row) -> dict[str, str]:
    if row.pool[0] != "reserved" and row.kind != "unused":
        return {}
    name = row.pool[1].rsplit("/", 1)[0]
    status = "Unused" if row.kind == "unused" else "Used"
    return {
        "PricingCategory": "Committed",
        "CommitmentDiscountId": name,
        "CommitmentDiscountName": name,
        "CommitmentDiscountCategory": "Usage",
        "CommitmentDiscountType": "Reserved",
        "CommitmentDiscountQuantity": f"{row.hours:.9f}",
        "CommitmentDiscountUnit": _unit(row),
        "CommitmentDiscountStatus": status,
        "CapacityReservationId": name,
        "CapacityReservationStatus": status,
    }


def _unit(row: Row) -> str:
    how, resource = row.pool
    if how in ("node", "reserved"):
        return "Node Hours" if row.kind == "unused" else "GPU Hours"
    return {CPUS: "Core Hours", MEMORY: "GiB Hours"}.get(resource, "GPU Hours")


def _list_rate(row: Row, prices: Prices) -> Decimal | None:
    """The list price on demand; None of what is paid for as a whole node, which has no other price than its own."""
    how, resource = row.pool
    if how in ("node", "reserved"):
        return None
    rate = {CPUS: prices.cpu_hour, MEMORY: prices.memory_gib_hour}.get(resource)
    return prices.gpu(resource.removeprefix(GPUS)) if rate is None else rate


def _list_price(row: Row, prices: Prices, billed: str) -> str:
    """For an hour of one unit; of a whole node its share, so that price and quantity make the cost."""
    rate = _list_rate(row, prices)
    if rate is not None:
        return f"{rate:f}"
    hours = Decimal(f"{row.hours:.9f}")
    return f"{(Decimal(billed) / hours).quantize(Decimal('1e-9')):f}" if hours else "0"


def _list_cost(row: Row, prices: Prices, billed: str) -> str:
    rate = _list_rate(row, prices)
    if rate is None:
        return billed
    return f"{(Decimal(f'{row.hours:.9f}') * rate).quantize(Decimal('0.000001'), ROUND_HALF_EVEN):f}"
