"""The rooms' view models: total over what the API may answer, and true."""

from __future__ import annotations

import math
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.quantities import format_time
from penstock.base.reasons import Reason
from penstock.console.render import duration, number, relative
from penstock.fleet.page import blocks, node_card, racks, summary
from penstock.jobs.page import (
    PHASES,
    attempt_rows,
    event_row,
    how_ended,
    job_head,
    job_row,
    phase_badge,
    ranks,
    reason_badge,
    sentence,
    spark,
    spec_text,
)
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL, Phase
from penstock.jobs.timeline import MAX_LANES, timeline
from penstock.scheduling.page import cohorts
from tests.console.fleet import sample
from tests.console.operations import glance, many_nodes, queue_report, waiting_report

NOW = 1_795_000_000.0
ages = st.floats(0, 1e6)
values = st.one_of(st.floats(), st.integers(-(10**9), 10**9))


def test_phases_are_those_of_the_job() -> None:
    assert tuple(Phase) == PHASES
    assert {p for p in PHASES if phase_badge(p).word != p} == set()
    assert {Phase(p) for p in PHASES[4:]} == FINAL


def test_every_phase_and_reason_has_a_word_and_an_icon() -> None:
    for badge in [phase_badge(p) for p in PHASES] + [reason_badge(r) for r in Reason]:
        assert badge.word
        assert badge.icon
        assert badge.tone in {"wait", "run", "ok", "bad", "off", "note"}


@given(st.lists(st.tuples(values, values, values), max_size=300))
def test_a_sparkline_stays_in_its_box(rows: list[tuple[float, float, float]]) -> None:
    points = [tuple(map(float, p.split(","))) for p in spark(rows).split()]
    assert all(0 <= x <= 84.01 and 0.9 <= y <= 17.1 for x, y in points)
    finite = sum(math.isfinite(r[2]) for r in rows)
    assert len(points) == (min(finite, 42) if finite > 1 else 0)


attempts = st.lists(
    st.builds(
        lambda number, submit, start, end: {
            "number": number,
            "submitted_at": format_time(NOW - submit) if submit is not None else None,
            "started_at": format_time(NOW - start) if start is not None else None,
            "ended_at": format_time(NOW - end) if end is not None else None,
            "reason": "Failed",
            "phase": "Running",
            "ranks": [],
        },
        st.integers(1, 40),
        st.none() | ages,
        st.none() | ages,
        st.none() | ages,
    ),
    max_size=12,
)
happenings = st.lists(
    st.builds(
        lambda age, reason: {"at": format_time(NOW - age), "reason": reason},
        ages,
        st.sampled_from([str(r) for r in Reason]),
    ),
    max_size=20,
)


@given(attempts, happenings, ages, st.none() | ages, st.sampled_from(PHASES))
def test_a_timeline_stays_in_its_chart(
    tries: Any, events: Any, created: float, finished: float | None, phase: str
) -> None:
    job = {
        "created_at": format_time(NOW - created),
        "status": {"phase": phase, "finished_at": format_time(NOW - finished) if finished is not None else None},
    }
    drawn = timeline(job, tries, events, NOW)
    assert drawn.total_s > 0
    assert len(drawn.lanes) <= MAX_LANES + 1
    assert drawn.hidden == max(0, len(tries) - MAX_LANES)
    for lane in drawn.lanes:
        assert all(0 <= bar.x <= 100 and bar.width > 0 and bar.x + bar.width <= 100.3 for bar in lane.bars)
        assert all(0 <= mark.x <= 100 for mark in lane.marks)
    assert len(drawn.ticks) <= 8


def test_a_timeline_tells_the_story() -> None:
    fleet = sample(NOW)
    job = fleet.find({"project": "default", "name": "digits"})
    events = [e for e in fleet.events if e["name"] == "digits"]
    drawn = timeline(job, fleet.attempts["digits"], events, NOW)
    assert [lane.label for lane in drawn.lanes] == ["Waiting", "Attempt 1", "Attempt 2"]
    assert [bar.title for bar in drawn.lanes[0].bars] == ["Waited: 2s", "Waited: 8s"]
    assert [bar.title for bar in drawn.lanes[1].bars] == ["Starting: 2.5s", "Ran: 2m48s"]
    assert [mark.title.split(":")[0] for mark in drawn.lanes[1].marks] == ["RankExited"]
    assert [mark.title.split(":")[0] for mark in drawn.lanes[2].marks] == ["RankRestarted"]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
scalars = st.one_of(
    texts, st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
specs = st.dictionaries(
    texts,
    st.one_of(
        scalars,
        st.lists(scalars, min_size=1, max_size=4),
        st.dictionaries(texts, scalars, min_size=1, max_size=4),
        st.lists(st.dictionaries(texts, scalars, min_size=1, max_size=3), min_size=1, max_size=3),
    ),
    max_size=6,
)


@given(specs)
def test_the_shown_spec_is_yaml(spec: dict[str, Any]) -> None:
    shown = spec_text(spec)
    assert isinstance(yaml.safe_load(shown) if shown else {}, dict)


def test_the_shown_spec_reads_back() -> None:
    for job in sample(NOW).jobs:
        spec = {k: v for k, v in job["spec"].items() if v not in (None, [])}
        assert JobSpec.model_validate(yaml.safe_load(spec_text(spec))) == JobSpec.model_validate(spec)
    odd = {
        "command": ["sh", "-c", "echo: #1 & true"],
        "env": {"A": "yes", "B": "1.0", "C": "- x", "D": "null", "E": "", "F": "0"},
        "depends_on": [{"job": "a", "condition": "Finished"}],
        "nodes": 2,
    }
    assert yaml.safe_load(spec_text(odd)) == odd
    assert (
        spec_text({"environment": {"modules": []}, "priority": 0, "interactive": False, "env": {}, "workdir": None})
        == ""
    )


def test_a_bare_job_can_be_drawn() -> None:
    row = job_row({"project": "p", "name": "n"})
    assert (row.href, row.progress, row.nodes) == ("/jobs/p/n", None, ())
    assert job_head({"project": "a/b", "name": "c d"}).row.href == "/jobs/a%2Fb/c%20d"
    assert attempt_rows([{}])[0].exit is None
    assert event_row({"kind": "Node", "name": "n 1"}).href == "/nodes#n%201"
    assert node_card({"name": "n"}).gauges == ()
    assert summary([]).gauges == ()


def test_progress_is_bounded_and_finite() -> None:
    def at(**given: Any) -> Any:
        return job_row({"project": "p", "name": "n", "status": {"phase": "Running", "progress": given}}).progress

    assert at(step=30, total_steps=10).percent == 100
    assert at(step=1, total_steps=0).percent is None
    assert at(step=1, metrics={"loss": float("nan"), "ok": 1}).metrics == (("ok", 1.0),)
    assert at() is None


def test_sentences_end() -> None:
    assert sentence({"reason": "Completed"}) == "Every rank ended with exit code 0."
    assert sentence({"message": "rank 1 was killed"}) == "Rank 1 was killed."
    assert sentence({"reason": "Unheard"}) == ""


def test_exits() -> None:
    assert how_ended(None, None) is None
    ended = [how_ended(0, None), how_ended(3, None), how_ended(None, 9), how_ended(None, 42)]
    assert [e.word for e in ended if e] == ["exit 0", "exit 3", "SIGKILL (9)", "signal (42)"]


def test_ranks_to_choose_from() -> None:
    assert ranks({"nodes": 2, "procs": 2, "launcher": "torchrun"}) == ("0", "1", "2", "3", "launcher")
    assert ranks({"launcher": "none"}) == ("0",)
    assert len(ranks({"nodes": 1000, "procs": 8})) == 256


def test_nodes_say_how_they_are() -> None:
    cards = [node_card(n) for n in sample(NOW).nodes]
    assert [c.word for c in cards] == ["Ready", "Ready", "Cordoned, empty"]
    closed = node_card({"name": "n", "closed": "drained in Slurm by root", "message": "drained in Slurm by root"})
    assert (closed.word, closed.tone, closed.message) == ("Closed by its site", "wait", "drained in Slurm by root")
    assert [(g.name, g.text) for g in cards[0].gauges] == [
        ("CPU", "48 of 48"),
        ("Memory", "212Gi of 384Gi"),
        ("GPU", "8 of 8"),
    ]
    assert node_card({"name": "n", "ready": False, "cordoned": True}).word == "Not ready"


@given(st.floats())
def test_numbers_are_short(value: float) -> None:
    assert len(number(value)) <= 20
    assert number(1234567.0) == "1,234,567"
    assert number(0.000402) == "0.000402"
    assert number(float("nan")) == "-"


def test_times_in_words() -> None:
    assert [relative(s) for s in (-5, 1, 59, 60, 3599, 86400 * 3)] == [
        "now",
        "now",
        "59s ago",
        "1m ago",
        "59m ago",
        "3d ago",
    ]
    assert [duration(s) for s in (0.26, 9.94, 61, None)] == ["0.3s", "9.9s", "1m1s", "-"]


def test_queues_of_one_cohort_share_a_scale() -> None:
    ai, alone = cohorts(queue_report(), waiting_report(1e9))
    assert (ai.name, alone.name) == ("ai", None)
    assert ai.summary == "108 of 128 GPUs in use"
    research, serving = ai.queues
    gpus = research.lines[0].bar
    assert (round(gpus.own + gpus.borrowed), round(gpus.nominal or 0)) == (100, round(6400 / 88))
    assert gpus.text == "88 used of 64, 24 of it borrowed"
    lent = serving.lines[0].bar
    assert lent.nominal == gpus.nominal
    assert lent.own + lent.lent <= (lent.nominal or 0)
    assert [head.name for head in research.heads] == ["llm-70b", ""]
    assert research.heads[1].href == ""
    assert alone.queues[0].lines[0].nominal == "-"
    assert not alone.limited


FIGURE = st.floats(0, 1e15)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "queue": st.sampled_from(["a", "b", "c"]),
                "cohort": st.sampled_from([None, "x", "y"]),
                "weight": st.floats(0.1, 10),
                "flavor": st.sampled_from(["default", "h200"]),
                "resource": st.sampled_from(["gpus", "cpus", "memory"]),
                "nominal": st.none() | FIGURE,
                "used": FIGURE,
                "borrowed": FIGURE,
                "lent": FIGURE,
                "waiting": st.integers(0, 10_000),
            }
        )
    )
)
def test_any_report_of_queues_is_drawn(items: list[dict[str, Any]]) -> None:
    for cohort in cohorts({"items": items}, None):
        for queue in cohort.queues:
            for line in queue.lines:
                assert 0 <= (line.bar.nominal or 0) <= 100 + 1e-6
                assert all(math.isfinite(part) for part in (line.bar.own, line.bar.lent, line.bar.borrowed))


def test_a_rack_is_a_few_paths_however_many_gpus_it_has() -> None:
    found = racks(glance(many_nodes(2000)))
    assert len(found) == 250
    assert found[2].name == "node-16 to node-23"
    assert found[2].href == "/nodes?rack=node-16"
    assert found[2].trouble
    assert "1 cordoned" in found[2].text
    assert sum(path.count("M") for rack in found for _, path in rack.marks) == 16_000
    assert all(len(rack.marks) <= 5 for rack in found)
    assert (found[0].width, found[0].height) == (86, 86)


def test_nodes_without_gpus_have_one_cell() -> None:
    items = [
        {"name": "b", "state": "ready", "cells": "", "jobs": 1},
        {"name": "a", "state": "ready", "cells": "", "jobs": 0},
        {"name": "c", "state": "lost", "cells": "", "jobs": 0},
        {"name": "d", "state": "cordoned", "cells": "??", "jobs": 0},
    ]
    (rack,) = racks({"items": items})
    assert [node.text for node in rack.nodes] == ["a: 1 free", "b: 1 held", "c: 1 lost", "d: 2 free"]
    assert racks({"items": []}) == ()


def test_racks_and_blocks_that_are_known_are_drawn_as_they_stand() -> None:
    items = [
        {"name": f"node-{n}", "block": f"b{n // 50 + 1}", "rack": f"r{n // 5 + 1}", "state": "ready", "cells": "hf"}
        for n in range(100)
    ]
    found = racks({"items": [*reversed(items), {"name": "odd", "state": "ready", "cells": "h"}]})
    assert [rack.name for rack in found[:3]] == ["odd", "r1", "r2"]
    assert [(name, len(group)) for name, group in blocks(found)] == [("", 1), ("b1", 10), ("b2", 10)]
    tall = [{"name": f"n{n}", "rack": "r1", "state": "ready", "cells": "h"} for n in range(40)]
    assert [rack.name for rack in racks({"items": tall})] == ["r1: n0 to n35", "r1: n36 to n39"]
