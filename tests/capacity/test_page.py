"""The capacity page's view models: the form's fields into a question, an answer into a comparison."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.capacity.asked import ReplayForm
from penstock.capacity.page import body, comparison, defaults, replay_row
from tests.console.operations import SOURCES, replay_record

EMPTY = {"fleet": {"nodes": 0, "gpus": 0, "gpus_per_node": 0, "gpu_model": ""}, "own": {"jobs": 0}, "traces": []}


def test_what_the_form_comes_with_can_be_asked() -> None:
    for sources in (SOURCES, EMPTY):
        asked = ReplayForm.model_validate(body(defaults(sources), sources))
        assert asked.b is not None
        assert asked.b.nodes == -(-asked.a.nodes * 12 // 10)
        assert asked.b.backfill == "easy"
        assert asked.source.kind == ("own" if sources is SOURCES else "synth")


@pytest.mark.parametrize(
    ("text", "nodes"), [("80", 80), ("+20%", 77), ("-50%", 32), ("1,000", 1000), (" + 0.1 % ", 65)]
)
def test_nodes_are_a_number_or_a_change(text: str, nodes: int) -> None:
    assert body(defaults(SOURCES) | {"a_nodes": text}, SOURCES)["a"]["nodes"] == nodes


def test_all_that_is_wrong_is_told_at_once() -> None:
    form = defaults(SOURCES) | {"source": "synth:philly", "jobs": "", "a_nodes": "x", "b_gpus": "-1"}
    with pytest.raises(InvalidInput) as refused:
        body(form, SOURCES)
    assert [p.path for p in refused.value.details] == ["jobs", "A: nodes", "B: GPUs a node"]


def test_what_the_api_would_refuse_is_told_with_the_rest() -> None:
    form = defaults(SOURCES) | {"source": "own", "days": "0", "a_nodes": "many", "a_gpus": "2000"}
    form |= {"b_nodes": "-100%", "b_gpus": "1e9", "b_mtbf": "soon", "a_mtbf": "1e9"}
    with pytest.raises(InvalidInput) as refused:
        body(form, SOURCES)
    mtbf = "mean time between failures"
    wrong = ["days", "A: nodes", "A: GPUs a node", f"A: {mtbf}", "B: nodes", "B: GPUs a node", f"B: {mtbf}"]
    assert [p.path for p in refused.value.details] == wrong
    with pytest.raises(InvalidInput, match="cannot be asked"):
        body(defaults(SOURCES) | {"b_nodes": "+9999%", "a_nodes": "19000"}, SOURCES)


@given(st.text("0123456789.-+%,hd ", max_size=12), st.sampled_from(["a_nodes", "b_nodes", "a_gpus", "b_mtbf", "days"]))
def test_what_the_form_lets_through_the_api_takes(text: str, field: str) -> None:
    with contextlib.suppress(InvalidInput):
        ReplayForm.model_validate(body(defaults(SOURCES) | {"source": "own", field: text}, SOURCES))


@given(st.dictionaries(st.sampled_from([*defaults(SOURCES), "odd"]), st.text(max_size=20)))
def test_any_form_is_a_question_or_a_refusal(given_: dict[str, str]) -> None:
    with contextlib.suppress(InvalidInput):
        assert body(defaults(SOURCES) | given_, SOURCES)["a"]["nodes"] >= 0


def test_a_bare_number_of_a_mean_time_between_failures_is_hours() -> None:
    asked = body(defaults(SOURCES) | {"a_mtbf": "500", "b_mtbf": "90d"}, SOURCES)
    form = ReplayForm.model_validate(asked)
    assert form.b is not None
    assert (form.a.mtbf, form.b.mtbf) == (500 * 3600, 90 * 86400)


def test_two_scenarios_are_compared() -> None:
    found = comparison(replay_record(1e9))
    assert found is not None
    assert found.headline == ("95% of the jobs wait at most 2h24m instead of 6h, for 189,800 USD a month more.")
    figures = {figure.name: figure for figure in found.figures}
    assert figures["P95 wait"].values == ("6h", "2h24m")
    assert (figures["P95 wait"].change, figures["P95 wait"].tone) == ("-60%", "ok")
    assert figures["GPUs"].values == ("512", "616")
    money = {figure.name: figure for figure in found.money}
    assert money["On demand, a month"].values == ("934,400", "1,124,200")
    assert "Reserved, a month" not in money
    assert [queue.name for queue in found.queues] == ["research", "serving"]
    assert "what really happened" in found.notes[0]


def test_states_of_a_replay() -> None:
    running = replay_row(replay_record(1e9, "running"))
    assert running.progress == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert running.scenarios == ("64 nodes of 8 GPUs", "77 nodes of 8 GPUs, easy backfill")
    assert not running.over
    problem = {"message": "bad", "details": [{"path": "queues[0].quotas", "message": "64 of 32 GPUs", "line": 3}]}
    failed = replay_row(replay_record(1e9, "failed", message="bad", problem=problem))
    assert failed.problems == ("queues[0].quotas: 64 of 32 GPUs",)
    assert comparison(replay_record(1e9, "failed")) is None


def test_figures_of_one_scenario_have_nothing_to_compare_with() -> None:
    record: dict[str, Any] = replay_record(1e9)
    record["asked"]["b"] = None
    record["result"]["scenarios"].pop()
    record["cost"].pop()
    found = comparison(record)
    assert found is not None
    assert {figure.change for figure in (*found.figures, *found.money)} == {""}
    assert found.headline.startswith("95% of 9,000 jobs wait at most 6h")
