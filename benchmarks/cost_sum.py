"""The sum of all cost rows (used + idle + unused reservation) is the bill, to the cent, for generated months."""

from __future__ import annotations

import random
import sys
from decimal import Decimal

from benchmarks.harness import Bar, show
from penstock.cost.allocation import Interval, allocate, in_cents, share_out
from penstock.cost.quota import Weights
from penstock.cost.spec import CPUS, GPUS, Prices
from penstock.cost.terms import Commitment, Terms
from penstock.scheduling.devices import part

MONTH = 30 * 86400.0
MONTHS = 200
_PRICES = Prices("USD", Decimal("0.04048"), Decimal("0.004445"), Decimal("2.4984"), {"H100": Decimal("3.9492")})


def month(rng: random.Random) -> tuple[list[Interval], list[Interval], Terms]:
    """16 nodes that come and go, 300 jobs, of which some overlap beyond capacity and some hold parts of a GPU;
    a pool and two nodes committed, one node by itself, two on spot."""
    names = [f"n{index}" for index in range(16)]
    up = [
        Interval(name, resource, much, rng.uniform(0, MONTH / 2), rng.uniform(MONTH / 2, MONTH))
        for name in names
        for resource, much in ((CPUS, 64.0), (GPUS + "H100", 8.0))
    ]
    used = []
    for job in range(300):
        start = rng.uniform(0, MONTH)
        key, node = (rng.choice("abcdefg"),), rng.choice(names)
        much = rng.choice(
            (float(rng.randint(1, 8)), part("H100", milli=rng.randint(1, 999)), part("H100", mig="3g.40gb"))
        )
        used.append(Interval(node, GPUS + "H100", much, start, start + rng.expovariate(1e-5), key, f"{job}.1"))
    pool = Commitment("pool", Decimal("2.13"), 0, MONTH, gpus=rng.randint(0, 160), model="H100")
    pair = Commitment("pair", Decimal("17.77"), 1e5, 2e6, nodes=("n0", "n1"))
    return used, up, Terms((pool, pair), {"n2": Decimal(20)}, ("n3", "n4"), {"H100": Decimal("1.49")})


def measure() -> list[Bar]:
    rng = random.Random(3)
    worst = 0
    rows_in_all = 0
    for _ in range(MONTHS):
        used, up, terms = month(rng)
        bill = allocate(used, up, _PRICES, terms, since=0, until=MONTH)
        for rule in ("own", "usage", "quota"):
            rows = share_out(bill, rule, quotas=Weights(gpus={"a": 3, "b": 2})).rows
            rows_in_all += len(rows)
            cents, total = in_cents(rows, bill.nanos)
            worst = max(worst, abs(sum(cents) - total), abs(sum(row.nanos for row in rows) - bill.nanos))
    note = f"{MONTHS} generated months, three rules, {rows_in_all} rows; for any input: tests/cost/test_allocation.py"
    return [Bar("sum of cost rows less the bill", float(worst), 0, "cents", note=note)]


if __name__ == "__main__":
    sys.exit(show(measure()))
