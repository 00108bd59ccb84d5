"""The policy: its tables, and a site's own file over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.base.errors import InvalidInput
from penstock.health import shipped
from penstock.health.rule import Answer, Scope
from penstock.health.state import Verb
from penstock.telemetry.conditions import GROWTHS, LEVELS
from penstock.telemetry.kernel_lines import LINE_RULES


def test_the_tables_have_every_xid_and_what_each_source_says() -> None:
    policy = shipped.load(None)
    assert sum(rule == "Xid" for rule, _ in policy.rules) == 110
    assert sum(rule == "SXid" for rule, _ in policy.rules) == 92
    off_the_bus = policy.of("Xid", "79")
    assert off_the_bus is not None
    assert (off_the_bus.scope, off_the_bus.answer) == (Scope.NODE, Answer(Verb.DRAIN, Verb.REBOOT))
    assert off_the_bus.sources["nvidia"] == "reboot the host"
    retired = policy.of("Xid", "63")
    assert retired is not None
    assert retired.answer.do == Verb.OBSERVE
    assert retired.sources["gpud"].startswith("reboot")
    always_fatal = policy.of("SXid", "12020")
    assert always_fatal is not None
    assert always_fatal.answer == Answer(Verb.DRAIN, Verb.REBOOT)


def test_an_unknown_xid_has_no_rule_and_another_rule_holds_for_all_its_codes() -> None:
    policy = shipped.load(None)
    assert policy.of("Xid", "999") is None
    assert policy.of("LinkFlap", "mlx5_0") is policy.of("LinkFlap", "")


def test_a_site_says_only_what_it_wants_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "xid:\n  63: {do: drain, advise: reboot, why: ours died within a day}\n"
        "rules:\n  LinkFlap: {within: 2m, after: 3}\n  HouseRule: {do: drain}\nbudget: {share: 25%}\n"
    )
    before, policy = shipped.load(None), shipped.load(str(file))
    retired, flap, house = policy.of("Xid", "63"), policy.of("LinkFlap", ""), policy.of("HouseRule", "")
    assert retired is not None
    assert flap is not None
    assert house is not None
    assert (retired.answer, retired.sticky, retired.lasts_s) == (Answer(Verb.DRAIN, Verb.REBOOT), True, 0.0)
    assert retired.sources["site"] == "ours died within a day"
    assert (flap.after, flap.within_s, flap.answer.do) == (3, 120.0, Verb.CORDON)
    assert house.shadow
    assert (policy.budget.share, policy.budget.least) == (0.25, before.budget.least)
    assert str(file) in policy.version
    assert policy.of("Xid", "79") == before.of("Xid", "79")


def test_every_error_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "xid:\n  79: {do: nothing}\n  abc: {do: drain}\nrules:\n  LinkFlap: {after: 3}\n  lower: {do: drain, hold: 1m}\n"
        "  Xid: {do: drain}\nbudget: {share: 200%}\n"
    )
    with pytest.raises(InvalidInput) as refused:
        shipped.load(str(file))
    told = [(problem.line, problem.path) for problem in refused.value.details]
    assert told == [
        (2, "xid.79.do"),
        (3, "xid.abc"),
        (5, "rules.LinkFlap.after"),
        (6, "rules.lower.hold"),
        (6, "rules.lower"),
        (7, "rules.Xid"),
        (8, "budget.share"),
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        shipped.load(str(tmp_path / "none.yaml"))


def test_whatever_an_agent_finds_has_a_rule() -> None:
    policy = shipped.load(None)
    told = {one.rule for one in LEVELS} | {one.rule for one in GROWTHS} | {one.rule for one in LINE_RULES}
    told -= {"Xid", "SXid"}
    assert {rule for rule in told if policy.of(rule, "") is None} == set()
