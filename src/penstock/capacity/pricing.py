"""What so many GPUs cost on demand, reserved and as spot, by the price file. A price that it lacks is None, not a guess."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from penstock.cost.spec import Prices

MONTH_H = 730  # hours


def costs(gpus: int, model: str, prices: Prices) -> dict[str, Any]:
    terms = getattr(prices, "terms", None)  # older price files know on-demand prices alone
    reserved = spot = None
    if terms is not None:
        rates = [c.rate for c in terms.commitments if c.gpus and (not model or c.model == model)]
        reserved = min(rates, default=None)
        spot = terms.spot_gpu(model, prices) if terms.spot_hour else None
    return {
        "currency": prices.currency,
        "on_demand": _priced(gpus, prices.gpu(model)),
        "reserved": _priced(gpus, reserved),
        "spot": _priced(gpus, spot),
    }


def _priced(gpus: int, rate: Decimal | None) -> dict[str, float] | None:
    if rate is None:
        return None
    return {"gpu_hour": float(rate), "hour": float(rate * gpus), "month": float(rate * gpus * MONTH_H)}
