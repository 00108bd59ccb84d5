"""`penstock causes`: the knowledge base in a terminal, without a server."""

from __future__ import annotations

import json

from penstock.diagnosis.knowledge.catalogue import CAUSES
from tests.cli.conftest import Cli


def test_all_causes_are_listed(cli: Cli) -> None:
    ran = cli("causes", "-o", "json")
    assert ran.code == 0
    assert [item["id"] for item in json.loads(ran.out)["items"]] == list(CAUSES)


def test_those_of_one_layer(cli: Cli) -> None:
    ran = cli("causes", "--layer", "job")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == ["ID", "restart_loop"]


def test_one_cause_with_what_to_do(cli: Cli) -> None:
    ran = cli("causes", "cgroup_throttle")
    assert ran.code == 0
    assert ran.out.startswith("cgroup_throttle: CPU quota too small")
    assert "\nWhat to do:\n  1. Raise the job's CPU limit" in ran.out
    assert "cpu_contention: There throttled time does not grow." in ran.out


def test_one_cause_as_json(cli: Cli) -> None:
    found = json.loads(cli("causes", "sdc", "-o", "json").out)
    assert found["severity"] == "critical"
    assert {"cause", "how"} == set(found["look_alikes"][0])


def test_a_misspelt_cause_is_named(cli: Cli) -> None:
    ran = cli("causes", "cgroup_throttel")
    assert ran.code == 4
    assert "did you mean 'cgroup_throttle'?" in ran.err
