"""What so many GPUs cost on demand, reserved and as spot, by the price file. A price that it lacks is None, not a guess."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from penstock.cost.spec import Prices
from penstock.cost.terms import Terms

MONTH_H = 730  # hours
_NONE = Decimal(-1)


def costs(gpus: int, model: str, prices: Prices, terms: Terms) -> dict[str, Any]:
    """``model`` as its nodes call it; without one, the cheapest reservation and the default price."""
    reserved: dict[str, Decimal] = {}
    for one in terms.commitments:
        if one.gpus:
            reserved[one.model] = min(one.rate, reserved.get(one.model, one.rate))
    return {
        "currency": prices.currency,
        "on_demand": _priced(gpus, prices.gpu(model)),
        "reserved": _priced(gpus, _of(model, reserved, prices)),
        "spot": _priced(gpus, _of(model, terms.spot_hour, prices)),
    }


def _of(model: str, rates: Mapping[str, Decimal], prices: Prices) -> Decimal | None:
    """Names fit as they do on demand."""
    if not model:
        return rates.get("default", min(rates.values(), default=None))
    found = Prices(prices.currency, _NONE, _NONE, rates.get("default", _NONE), rates).gpu(model)
    return None if found == _NONE else found


def _priced(gpus: int, rate: Decimal | None) -> dict[str, float] | None:
    if rate is None:
        return None
    return {"gpu_hour": float(rate), "hour": float(rate * gpus), "month": float(rate * gpus * MONTH_H)}
