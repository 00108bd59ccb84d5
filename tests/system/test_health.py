"""`penstock health` on a terminal, against a real server; which is killed while a check is waited for."""

from __future__ import annotations

import json
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.base.quantities import format_time
from tests.system.house import House, until

XID = {"name": "error_xid", "health": "Unhealthy", "reason": "XID 79 (GPU has fallen off the bus) detected on GPU-1"}


@pytest.fixture
def house() -> Iterator[House]:
    with House("--simulate", "16x8") as one:
        yield one


def test_from_another_programs_finding_to_the_vendors_evidence(house: House, tmp_path: Path) -> None:
    def said(*words: str, code: int = 0) -> str:
        done = house.cli("health", *words, code=code)
        return done.stdout + done.stderr

    assert "nothing is known to be wrong with any of 16 nodes" in said()
    states = tmp_path / "states.json"
    now = format_time(time.time())  # what is told later than a quarter of an hour is not acted on
    states.write_text(json.dumps([{"component": "accelerator-nvidia-error-xid", "states": [XID | {"time": now}]}]))
    assert "1 findings, 1 of them new" in said("take", "gpud", "--file", str(states), "--node", "node-3")
    assert "none.json cannot be read" in said(
        "take", "gpud", "--file", str(tmp_path / "none.json"), "--node", "node-3", code=2
    )
    until(lambda: "drained" in said(), "the node is not drained")
    assert "drain: Xid 79" in said()

    assert "asked for no check" in said("check", "node-3")
    assert "node-3 is asked for clock, fio" in said("check", "node-3", "clock", "fio")
    house.end(signal.SIGKILL)
    house.start()
    assert "node-3 is asked for clock, fio" in said("check", "node-3")
    assert "asked for checks already" in said("check", "node-3", "clock", code=5)
    assert "must be one of" in said("check", "node-3", "magic", code=2)

    incident = said("incidents", "node-3")
    assert incident.startswith("# Incident: node-3")
    assert "XID 79 (GPU has fallen off the bus)" in incident
    assert "no incident of node-4" in said("incidents", "node-4")
    (one,) = json.loads(house.cli("health", "incidents", "node-3", "--output", "json").stdout)["items"]
    assert all(isinstance(owed["since"], str) for owed in one["owed"])

    place = tmp_path / "evidence.zip"
    assert "manifest.json has each file's hash" in said("evidence", "node-3", "--file", str(place))
    assert "manifest.json" in zipfile.ZipFile(place).namelist()
    assert "is there already" in said("evidence", "node-3", "--file", str(place), code=2)
    assert "say of which node" in said("evidence", code=2)
