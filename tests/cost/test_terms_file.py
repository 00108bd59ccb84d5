"""The price file's terms: read, and refused with every error at once."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from penstock.base.errors import InvalidInput
from penstock.cost.prices import load_both
from penstock.cost.terms_file import parse

GOOD = """
reserved:
  - {name: h100, gpus: 64, model: H100, gpu_hour: 2.10, from: 2026-01-01, until: 2027-01-01}
  - {name: rack, nodes: [n1, n2], node_hour: 30, from: 2026-01-01T00:00:00Z, until: 2026-02-01}
spot: {nodes: [spot-*], gpu_hour: {H100: 1.5}}
node_hour: {login: 0.5}
idle: usage
"""
BAD = """
reserved:
  - {name: a, gpus: 4, gpu_hour: x, from: 2026-01-01, until: 2025-01-01}
  - {nodes: [n1], gpus: 2, from: soon, until: 2026-01-01, why: 1}
spot: [a]
node_hour: {n: -1}
idle: nobody
"""


def test_all_of_it() -> None:
    terms = parse(GOOD)
    assert [(c.name, c.rate, c.gpus, c.nodes) for c in terms.commitments] == [
        ("h100", Decimal("2.1"), 64, ()),
        ("rack", Decimal(30), 0, ("n1", "n2")),
    ]
    assert (terms.idle, terms.is_spot("spot-7"), terms.is_spot("n1")) == ("usage", True, False)
    assert terms.commitments[1].start == 1767225600.0


def test_every_error_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(BAD)
    assert {problem.path for problem in caught.value.details} == {
        "reserved[0].until",
        "reserved[0].model",
        "reserved[0].gpu_hour",
        "reserved[1].why",
        "reserved[1].from",
        "reserved[1].until",
        "reserved[1].name",
        "reserved[1]",
        "spot",
        "node_hour.n",
        "idle",
    } - {"reserved[1].until"}


def test_each_error_has_its_line() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(BAD)
    lines = {problem.path: problem.line for problem in caught.value.details}
    assert lines["reserved[0].gpu_hour"] == lines["reserved[0].model"] == 3
    assert lines["reserved[1].why"] == lines["reserved[1]"] == 4
    assert (lines["spot"], lines["node_hour.n"], lines["idle"]) == (5, 6, 7)
    assert list(lines.values()) == sorted(lines.values(), key=lambda line: line or 0)


def test_a_date_that_no_calendar_has() -> None:
    with pytest.raises(InvalidInput):
        parse("reserved: [{from: 2026-13-45}]")


def test_the_file_that_ships() -> None:
    assert load_both(None)[1].commitments == ()


def test_both_parts_errors_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("currency: dollars\ncpu_hour: 1\nmemory_gib_hour: 1\ngpu_hour: {default: 1}\nidle: nobody\n")
    with pytest.raises(InvalidInput) as caught:
        load_both(str(file))
    assert [problem.path for problem in caught.value.details] == ["currency", "idle"]


def test_a_date_that_no_calendar_has_hides_nothing(tmp_path: Path) -> None:
    text = BAD.replace("from: 2026-01-01", "from: 2026-13-01").replace(
        "until: 2025-01-01", "until: 2025-02-30T00:00:00Z"
    )
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    found = {(problem.path, problem.line) for problem in caught.value.details}
    assert {("reserved[0].from", 3), ("reserved[0].until", 3), ("spot", 5), ("node_hour.n", 6), ("idle", 7)} <= found
