"""Queue files: what is taken, and every error of one at once, with its path and line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.scheduling.spec import Quota, Setup, parse_setup
from penstock.scheduling.state import Policy

EXAMPLE = Path(__file__).parents[2] / "examples/queues/queues.yaml"


def problems(text: str, capacity: dict[str, dict[str, float]] | None = None) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse_setup(text, path="queues.yaml", capacity=capacity)
    assert "wrong with queues.yaml" in caught.value.message or "no document" in caught.value.message
    return [str(problem) for problem in caught.value.details]


def test_the_example() -> None:
    fleet = {"h100": {"gpus": 128.0}, "a100": {"gpus": 32.0}}
    setup = parse_setup(EXAMPLE.read_text(), capacity=fleet)
    assert setup.queues["research"].quotas["h100"]["gpus"] == Quota(64.0, 32.0, 48.0)
    assert setup.queues["vision"].quotas["h100"]["memory"] == Quota(4 * 1024.0**4)
    assert setup.queues["vision"].max_limit_s == 3 * 86400
    assert setup.cohorts["lab"].parent == "company"
    assert setup.policy == Policy("fairshare", backfill="easy", preemption=True)
    (window,) = setup.reservations
    assert window.start == datetime(2026, 12, 5, 6, tzinfo=UTC).timestamp()


def test_nothing_but_a_policy_is_one_queue() -> None:
    text = "policy: {order: multifactor, weights: {age: 1000, fairshare: 10000}, max_age: 14d}"
    setup = parse_setup(text)
    assert setup.queues == Setup().queues
    assert setup.policy.weights == (("age", 1000.0), ("fairshare", 10000.0))
    assert setup.policy.max_age_s == 14 * 86400


def test_several_documents_are_put_together() -> None:
    setup = parse_setup("queues:\n- name: a\n---\nqueues:\n- name: b\n")
    assert list(setup.queues) == ["a", "b"]
    assert problems("queues:\n- name: a\n---\npolicy: {}\nqueues:\n- name: a\n---\npolicy: {depth: 0}\n") == [
        "line 6: [1].queues[0].name: 'a' is the name of [0].queues[0] already",
        "line 8: [2].policy: stands here a second time",
        "line 8: [2].policy.depth: input should be greater than or equal to 1",
    ]


BAD = """\
policy: {order: lifo}
flavors:
  - name: h100
  - {name: h100}
cohorts:
  - {name: a, parent: c}
  - {name: b, parent: a}
  - {name: c, parent: b}
  - {name: d, parent: nowhere}
queues:
  - name: q
    cohort: z
    colour: red
  - name: r
    cohort: nobody
    weight: 0
  - name: s
    cohort: a
    projects: [x]
    quotas:
      h100: {gpus: {nominal: 4, lending_limit: 5}, cpus: -1}
      b200: {gpus: 1}
  - name: t
    projects: [x]
    quotas:
      h100: {gpus: {nominal: 64, borrowing_limit: 1}, memory: lots, tpus: 3}
  - name: d
    quotas: {h100: {gpus: 65}}
reservations:
  - {name: w, start: 2026-12-05T18:00:00Z, end: 2026-12-05T06:00:00Z, nodes: [n]}
  - {name: v, start: 2026-12-05T18:00:00, end: 5, nodes: []}
surplus: 1
"""


def test_everything_wrong_is_told_at_once() -> None:
    found = problems(BAD, {"h100": {"gpus": 64}})
    expected = [
        "line 1: policy.order: ",
        "line 4: flavors[1].name: 'h100' is the name of flavors[0] already",
        "line 6: cohorts[0].parent: cohorts go round in a circle: a -> c -> b -> a",
        "line 9: cohorts[3].parent: there is no cohort 'nowhere'",
        "line 13: queues[0].colour: is not a field here",
        "line 12: queues[0].cohort: there is no cohort 'z'",
        "line 15: queues[1].cohort: there is no cohort 'nobody'",
        "line 16: queues[1].weight: ",
        "line 22: queues[2].quotas.b200: there is no flavor 'b200'",
        "line 24: queues[3].projects: project 'x' is in queue 's' already",
        "line 21: queues[2].quotas.h100.cpus.nominal: ",
        "line 26: queues[3].quotas.h100.memory.nominal: ",
        "line 26: queues[3].quotas.h100.tpus",
        "line 28: queues[4].quotas.h100.gpus: with this, 65 gpus of flavor h100 are promised; the fleet has 64",
        "line 27: queues[4].name: 'd' is the name of cohorts[3] already",
        "line 30: reservations[0]: must end after it starts",
        "line 31: reservations[1].start: say the time zone too",
        "line 31: reservations[1].nodes: ",
        "line 32: surplus: is not a field here",
    ]
    missing = [one for one in expected if not any(line.startswith(one) for line in found)]
    assert not missing, found
    assert len(found) == len(expected), found


def test_limits_of_quotas() -> None:
    text = """\
cohorts: [{name: c}]
queues:
  - {name: s, cohort: c, projects: [x], quotas: {default: {gpus: {nominal: 4, lending_limit: 5}}}}
  - {name: t, projects: [x], quotas: {default: {gpus: {nominal: 6, borrowing_limit: 1}}, b200: {gpus: 1}}}
"""
    assert problems(text, {"default": {"gpus": 8}}) == [
        "line 3: queues[0].quotas.default.gpus.lending_limit: lends 5, more than its nominal 4",
        "line 4: queues[1].quotas.default.gpus.borrowing_limit: means nothing without a cohort",
        "line 4: queues[1].quotas.b200: there is no flavor 'b200' (there are: default)",
        "line 4: queues[1].projects: project 'x' is in queue 's' already",
        "line 4: queues[1].quotas.default.gpus: with this, 10 gpus of flavor default are promised; the fleet has 8",
    ]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "- a\n", "queues: {a: 1}\n", "queues: [3]\n", "a: [\n", "a: &x 1\nb: *x\n"]
)
def test_not_a_queue_file(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_setup(text)
    assert caught.value.details


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["a", "b", "8Gi", "7d", "h100"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["policy", "flavors", "cohorts", "queues", "reservations", "name", "parent", "cohort", "quotas",
                         "h100", "gpus", "memory", "nominal", "borrowing_limit", "weight", "start", "end", "nodes"]),
        inner, max_size=5),
    max_leaves=30,
))  # fmt: skip
def test_total(value: object) -> None:
    """Whatever it is told, it answers a setup or the one error."""
    told: tuple[object, ...] = ()
    try:
        told = tuple(parse_setup(yaml.safe_dump(value), capacity={"h100": {"gpus": 1.0}}).queues)
    except InvalidInput as error:
        told = error.details
    assert told


def test_a_bad_entry_hides_nothing_of_what_is_wrong_with_it_and_others() -> None:
    text = """
policy: {order: fastest}
flavors: [{name: h100, gpu_models: [H100]}]
cohorts:
- {name: a, parent: b, weight: 0}
- {name: b, parent: a}
queues:
- {name: q1, cohort: a, quotas: {h100: {gpus: 100}}, projects: [x]}
- {name: q1, cohort: zzz, quotas: {h100: {gpus: -4}, a100: {gpus: 1}}}
- {name: q2, weight: 0, projects: [x]}
reservations:
- {name: r, start: 5, end: 9, nodes: []}
"""
    with pytest.raises(InvalidInput) as caught:
        parse_setup(text, path="q.yaml", capacity={"h100": {"gpus": 64.0}})
    assert [(one.line, one.path, one.message) for one in caught.value.details] == [
        (2, "policy.order", "input should be 'fifo', 'sjf', 'fairshare' or 'multifactor'"),
        (5, "cohorts[0].weight", "input should be greater than 0"),
        (5, "cohorts[0].parent", "cohorts go round in a circle: a -> b -> a"),
        (8, "queues[0].quotas.h100.gpus", "with this, 100 gpus of flavor h100 are promised; the fleet has 64"),
        (9, "queues[1].quotas.h100.gpus.nominal", "input should be greater than or equal to 0"),
        (9, "queues[1].name", "'q1' is the name of queues[0] already"),
        (9, "queues[1].cohort", "there is no cohort 'zzz' in the file (there are: a, b)"),
        (9, "queues[1].quotas.a100", "there is no flavor 'a100' (there are: h100)"),
        (10, "queues[2].weight", "input should be greater than 0"),
        (10, "queues[2].projects", "project 'x' is in queue 'q1' already"),
        (12, "reservations[0].nodes", "must not be empty"),
    ]


def test_what_is_wrong_with_one_field_hides_no_check_of_the_others() -> None:
    text = """
cohorts: [{name: a}]
queues:
- {name: q1, cohort: a, user_weights: 0, quotas: {default: {gpus: {nominal: 9, lending_limit: 10}}}}
- {cohort: zzz, quotas: {default: {gpus: 60}}}
reservations:
- {name: r, start: 2026-13-01, end: 2026-12-01, nodes: [n]}
- {name: s, start: 2026-12-01T08:00:00 +01:00, end: 2026-12-01 09:00:00Z, nodes: [n]}
"""
    with pytest.raises(InvalidInput) as caught:
        parse_setup(text, capacity={"default": {"gpus": 64.0}})
    assert [(one.line, one.path) for one in caught.value.details] == [
        (4, "queues[0].user_weights"),
        (4, "queues[0].quotas.default.gpus.lending_limit"),
        (5, "queues[1].name"),
        (5, "queues[1].cohort"),
        (5, "queues[1].quotas.default.gpus"),
        (7, "reservations[0].start"),
        (7, "reservations[0].end"),
    ]
