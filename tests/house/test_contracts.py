"""The import contracts hold, each fails when it is broken, and none is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tools import break_contracts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/penstock"
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("breach", break_contracts.BREAKS, ids=lambda breach: f"{breach.contract}: {breach.what}")
def test_contract_fails_when_broken(breach: break_contracts.Break) -> None:
    assert break_contracts.seen_to_fail(breach) == ""


def test_every_contract_is_broken_by_something() -> None:
    assert {breach.contract for breach in break_contracts.BREAKS} == set(break_contracts.contracts())


def test_every_room_with_tables_keeps_them_private() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/tables.py")}
    private = {contract["id"].removeprefix("tables-") for contract in CONFIG if contract["id"].startswith("tables-")}
    assert rooms == private


def test_every_room_has_something_in_it() -> None:
    for room in (path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert [path for path in room.rglob("*.py") if path.name != "__init__.py"], f"{room.name} is empty"
