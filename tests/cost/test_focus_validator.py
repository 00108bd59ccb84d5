"""The export before the FinOps Foundation's own validator: what fails is listed here, each with whose fault it is.

focus-validator 1.0.0 is the newest that runs on Python 3.11, and knows the specification up to 1.0. It pins old libraries,
so it gets an environment of its own, made once beneath build/.
"""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from penstock.cost import focus
from penstock.cost.allocation import Interval, allocate
from penstock.cost.spec import CPUS, GIB, GPUS, MEMORY
from penstock.cost.terms import Commitment, Terms
from tests.cost.test_allocation import HOUR, PRICES

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "focus-validator-1.0.0"
NOVEMBER = 1793491200.0
# Rules of its 1.0 set that no data can pass: the specification's 1.0 and 1.2 texts alike say ProviderName, PublisherName,
# InvoiceIssuerName and ResourceId, and know no ChargeType. The Foundation's own sample of 1.0 data fails the first three.
ITS_FAULTS = {
    "InvoiceIssuer_Required": "asks for InvoiceIssuer, a name of version 0.5",
    "Provider_Required": "asks for Provider, a name of version 0.5",
    "Publisher_Required": "asks for Publisher, a name of version 0.5",
    "ResourceID_Required": "asks for ResourceID, a name of version 0.5",
    "SkuPriceId_Nullable": "reads a column ChargeType, of version 0.5, and breaks off: KeyError",
}


@pytest.fixture(scope="module")
def validator() -> Path:
    program = HOME / "bin" / "focus-validator"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
        wanted = ("focus-validator==1.0.0", "multimethod<2", "setuptools<81", "wheel")
        subprocess.run([str(HOME / "bin" / "pip"), "install", "--quiet", *wanted], check=True)
    return program


def bill() -> str:
    """A month with everything in it: on demand, spot, a node by itself, GPUs and nodes committed, used, idle and unused."""
    h100 = GPUS + "H100"
    used = [
        Interval(node, resource, much, NOVEMBER + HOUR, NOVEMBER + 5 * HOUR, ("vision", "ann", job, node, queue), job)
        for node, resource, much, job, queue in (
            ("n0", h100, 4, "train", "prod"),
            ("n0", CPUS, 16, "train", "prod"),
            ("n0", MEMORY, 64 * GIB, "train", "prod"),
            ("spot-0", h100, 8, "tune", "research"),
            ("r0", h100, 2, "serve", "prod"),
            ("w0", CPUS, 2, "prepare", "default"),
        )
    ]
    up = [
        Interval(node, resource, much, NOVEMBER, NOVEMBER + 10 * HOUR)
        for node, resource, much in (
            *((node, h100, 8) for node in ("n0", "spot-0", "r0")),
            *((node, CPUS, 64) for node in ("n0", "spot-0", "r0", "w0")),
            ("n0", MEMORY, 512 * GIB),
        )
    ]
    until = NOVEMBER + 500 * HOUR
    deals = (
        Commitment("pool", Decimal("2.1"), NOVEMBER, until, gpus=12, model="H100"),
        Commitment("pair", Decimal("17.7"), NOVEMBER, until, nodes=("r0", "r1")),
    )
    terms = Terms(deals, {"w0": Decimal(3)}, ("spot-*",), {"H100": Decimal("1.5")})
    statement = allocate(used, up, PRICES, terms, since=NOVEMBER, until=until)
    assert {row.kind for row in statement.rows} == {"used", "idle", "unused"}
    return focus.export(statement, PRICES, since=NOVEMBER, until=until)


@pytest.mark.real
def test_nothing_fails_but_what_cannot_pass(validator: Path, tmp_path: Path) -> None:
    data = tmp_path / "bill.csv"
    data.write_text(bill())
    # It looks for its list of currencies beneath the folder that it is started in.
    (beside,) = (HOME / "lib").glob("python*/site-packages")
    command = [str(validator), "--data-file", str(data), "--validate-version", "1.0"]
    done = subprocess.run(command, cwd=beside, capture_output=True, text=True, timeout=300, check=False)
    failed = re.findall(r"^(\w+) failed:", done.stdout, re.MULTILINE)
    assert set(failed) == set(ITS_FAULTS), done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.real
def test_it_would_find_what_is_wrong(validator: Path, tmp_path: Path) -> None:
    data = tmp_path / "bill.csv"
    data.write_text(bill().replace(",Usage,", ",Rent,").replace(",USD,", ",Gold,"))
    (beside,) = (HOME / "lib").glob("python*/site-packages")
    command = [str(validator), "--data-file", str(data), "--validate-version", "1.0"]
    done = subprocess.run(command, cwd=beside, capture_output=True, text=True, timeout=300, check=False)
    found = set(re.findall(r"^(\w+) failed:", done.stdout, re.MULTILINE)) - set(ITS_FAULTS)
    assert {"BillingCurrency_IsCurrencyCode"} < found, done.stdout[-3000:]
