"""A month's bill in the columns of FOCUS 1.2 (FinOps Open Cost and Usage Specification). Pure.

Amounts of rows are cents by the largest remainder, so that BilledCost adds up to the bill, whose month is the invoice. A commitment for GPUs of a
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
from decimal import Decimal

from penstock.cost.allocation import KEY, Row, Statement, in_cents
from penstock.cost.spec import CPUS, GPUS, MEMORY, Prices

COLUMNS = [  # all that the specification has
    *("AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType"),
    *("BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "CapacityReservationId"),
    *("CapacityReservationStatus", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId"),
    *("CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType"),
    *("CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice"),
    *("EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory"),
    *("PricingCurrency", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost"),
    *("PricingCurrencyListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName"),
    *("RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName"),
    *("SubAccountType", "Tags"),
]
_PRICE = Decimal("1e-9")
_WHOLE = {"gpus": "GPU Hours", "cpus": "Core Hours", "nodes": "Node Hours"}


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
        "InvoiceId": f"{account.id}-{_time(start)[:7]}",
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
        **_amounts(row, billed, prices),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{row.kind}: {resource}",
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": {"spot": "Dynamic", "reserved": "Committed"}.get(how, "Standard"),
        "PricingUnit": unit,
        "ServiceCategory": "Compute",
        "ServiceSubcategory": "Virtual Machines",
        "ServiceName": "GPU cluster",
        "SkuId": f"{how}/{resource}",
        "SkuMeter": unit,
        "SkuPriceDetails": json.dumps(_details(row), sort_keys=True),
        "SkuPriceId": "/".join(filter(None, (how, resource, row.per))),
        "Tags": json.dumps({"kind": row.kind, **dict(zip(KEY, row.key, strict=False))}, sort_keys=True),
        **dict.fromkeys(("ProviderName", "PublisherName", "InvoiceIssuerName"), "Penstock"),
    }
    if row.kind != "unused":  # an unused commitment consumes nothing: both must be null
        said |= {"ConsumedQuantity": f"{row.hours:.9f}", "ConsumedUnit": unit}
    return said | _where(row) | _commitment(row)


def _amounts(row: Row, billed: str, prices: Prices) -> dict[str, str]:
    """Billed and effective in cents, which add up to the bill; list and contracted are exactly price times quantity."""
    hours = Decimal(f"{row.hours:.9f}")
    paid = (Decimal(row.nanos) / 10**9 / hours).quantize(_PRICE) if hours else Decimal(0)
    rate = _list_rate(row, prices)
    if rate is not None and abs(Decimal(row.nanos) / 10**9 - rate * hours) <= (2 + rate) * _PRICE:
        paid = rate  # all that is between them is the rounding of the amount, and of the hours
    listed = paid if rate is None else rate
    return {
        **dict.fromkeys(("BilledCost", "EffectiveCost", "PricingCurrencyEffectiveCost"), billed),
        **dict.fromkeys(("ContractedUnitPrice", "PricingCurrencyContractedUnitPrice"), f"{paid:f}"),
        **dict.fromkeys(("ListUnitPrice", "PricingCurrencyListUnitPrice"), f"{listed:f}"),
        "ContractedCost": f"{paid * hours:f}",
        "ListCost": f"{listed * hours:f}",
        "PricingQuantity": f"{hours:f}",
    }


def _details(row: Row) -> dict[str, int | str]:
    """What one unit of the price is, in the specification's words; ours begin with ``x_``."""
    resource = row.pool[1]
    if row.per:
        count = {"gpus": "GpuCount", "cpus": "CoreCount"}.get(row.per)
        return {**({count: 1} if count else {}), "x_Node": resource.rsplit("/", 1)[-1]}
    if resource.startswith(GPUS):
        return {"GpuCount": 1, "x_GpuModel": resource.removeprefix(GPUS)}
    return {"CoreCount": 1} if resource == CPUS else {"MemorySize": 1}


def _where(row: Row) -> dict[str, str]:
    if row.kind != "used":
        return {}
    named = dict(zip(KEY, row.key, strict=False))
    said = {"SubAccountId": named["project"], "SubAccountName": named["project"], "SubAccountType": "Project"}
    job = named.get("job")
    if not job:
        return said
    return said | {"ResourceId": f"{named['project']}/{job}", "ResourceName": job, "ResourceType": "Job"}


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
    if row.per:
        return _WHOLE[row.per]
    return {CPUS: "Core Hours", MEMORY: "GiB Hours"}.get(row.pool[1], "GPU Hours")


def _list_rate(row: Row, prices: Prices) -> Decimal | None:
    """The list price on demand; None of what is paid for as a whole node, which has no other price than its own."""
    how, resource = row.pool
    if how in ("node", "reserved"):
        return None
    rate = {CPUS: prices.cpu_hour, MEMORY: prices.memory_gib_hour}.get(resource)
    return prices.gpu(resource.removeprefix(GPUS)) if rate is None else rate
