"""What a person sees of a rollout."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving_traffic import Traffic, Way, follow
from penstock.base.settings import Settings
from penstock.cli.output import Screen
from penstock.serving import rollout_view
from penstock.serving.commands import _name
from penstock.serving.rollout_memory import points
from penstock.serving.rollout_view import marks
from penstock.serving.spec import Rollout, Step
from tests.serving.test_rollout import SHADOW


@dataclass
class Call:
    output: Screen
    now: float = 0.0


def shown(spec: Rollout, traffic: Traffic) -> str:
    evidence: list[Any] = []
    body: dict[str, Any] = {}
    for _, decision in follow(spec, traffic, 1):
        evidence += decision.evidence
        body = {**asdict(decision), "stable": 1, "candidate": 2, "points": points(decision.memory)}
    written = io.StringIO()
    rollout_view.show(Call(Screen("table", Settings(Path("unused")), written)), body | {"evidence": evidence})  # type: ignore[arg-type]
    return written.getvalue()


def test_a_canary_that_was_taken_back_says_why() -> None:
    text = shown(Rollout(strategy="canary", steps=(Step(weight=10),)), Traffic(300, candidate=Way(median=0.03)))
    head, steps, tests, over = text.split("\n\n")
    assert head.startswith(
        "version 2 in the place of 1: RolledBack\n  version 1 serves all requests again: P50: P50 is "
    )
    first, second = steps.splitlines()[2:]
    assert first.split()[:3] == ["1", "Advanced", "10%"]
    assert second.split()[:3] == ["1", "RolledBack", "0%"]
    assert [line.split()[0] for line in tests.splitlines()[3:]] == ["P95", "P50"]
    assert tests.splitlines()[4].split()[:2] == ["P50", "fail"]
    lines = over.splitlines()
    assert lines[0].startswith("Over 1")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["errors", "candidate"], ["errors", "stable"], ["P95", "candidate"], ["P95", "stable"],
    ]  # fmt: skip
    assert "█" in lines[3]


def test_a_shadow_tells_how_many_agreed() -> None:
    assert "\nAnswers: " in shown(SHADOW, Traffic(candidate=Way(agrees=0.8)))


def test_nothing_is_a_blank_and_zero_the_lowest_mark() -> None:
    assert "".join(marks([None, 0.0, 0.5, 1.0], 1.0)) == " ▁▄█"
    assert "".join(marks([0.0], 0.0)) == "▁"


def test_a_service_is_named_as_describe_names_it() -> None:
    assert [_name(text) for text in ("digits", "service/digits", "services/digits")] == ["digits"] * 3
