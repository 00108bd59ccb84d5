"""Every error of a text at once, with its line and path; nothing of a bad text is taken."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput, TooLarge
from penstock.jobs.spec import JobSpec
from penstock.jobs.yaml import MAX_BYTES, parse_jobs

GOOD = """\
kind: Job
name: digits
spec:
  command: [python, train.py]
  procs: 2
  resources: {cpus: 500m, memory: 1Gi}
  time_limit: 1h
"""


def problems(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(InvalidInput) as caught:
        parse_jobs(text)
    return [(p.line, p.path, p.message) for p in caught.value.details]


def test_a_good_document() -> None:
    (document,) = parse_jobs(GOOD)
    assert document.spec.resources.cpus == 0.5
    assert document.spec.resources.memory == 1 << 30
    assert document.spec.time_limit == 3600
    assert document.spec.effective_launcher() == "torchrun"


def test_all_errors_at_once_with_their_lines() -> None:
    text = """\
kind: Job
name: ../evil
spec:
  comand: [x]
  nodes: 0
  resources:
    memory: lots
  time_limit: soon
---
kind: Job
name: b
spec: {command: [x], array: {count: 0}}
"""
    found = problems(text)
    assert (2, "[0].name") in [(line, path) for line, path, _ in found]
    assert (4, "[0].spec.comand", "is not a field here") in found
    assert (5, "[0].spec.nodes") in [(line, path) for line, path, _ in found]
    assert (7, "[0].spec.resources.memory") in [(line, path) for line, path, _ in found]
    assert (8, "[0].spec.time_limit") in [(line, path) for line, path, _ in found]
    assert (12, "[1].spec.array.count") in [(line, path) for line, path, _ in found]


def test_a_key_twice_is_named_with_its_line() -> None:
    assert problems("name: a\nname: b\n") == [(2, "name", "stands here a second time")]


def test_a_thousand_unknown_fields_give_a_bounded_answer() -> None:
    found = problems(GOOD + "".join(f"  field{i}: 1\n" for i in range(1000)))
    assert len(found) == 101
    assert found[-1][2] == "and 900 more"


def test_not_yaml_is_told_where() -> None:
    ((line, _, message),) = problems("kind: Job\nname: [unclosed\n")
    assert line in (2, 3)
    assert "flow sequence" in message


def test_ten_megabytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="characters"):
        parse_jobs("#" * (10 * MAX_BYTES))


def test_aliases_and_depth_are_refused() -> None:
    assert "aliases" in problems("a: &x [1]\nb: *x\n")[0][2]
    assert "deep" in problems("a: " + "[" * 100 + "]" * 100)[0][2]
    assert "deep" in problems("a: " + "[" * 5000 + "]" * 5000)[0][2]


@pytest.mark.parametrize("name", ["../x", 'a"b', "a\\nb", "émoji😀", "-a", "A", "a" * 64, ""])
def test_names(name: str) -> None:
    found = problems(f"kind: Job\nname: {json.dumps(name)}\nspec: {{command: [x]}}\n")
    assert found[0][1] == "name"
    assert "is not a name" in found[0][2]


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_jobs(text)


@given(
    st.builds(
        dict,
        command=st.lists(
            st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1).filter(str.strip), min_size=1
        ),
        nodes=st.integers(1, 100),
        max_restarts=st.integers(0, 10),
        time_limit=st.none() | st.integers(1, 10**6),
    )
)
def test_a_spec_survives_its_row(body: dict[str, object]) -> None:
    spec = JobSpec.model_validate(body)
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)).command == spec.command


@pytest.mark.parametrize("value", ["=", "!!python/object:os.system x", "!!binary 'é'", "{? [a] : b}"])
def test_values_of_types_that_are_not_taken_are_named_with_their_line(value: str) -> None:
    found = problems(f"name: x\nspec:\n  command: [a]\n  env: {{A: {value}}}\n")
    assert all(line in (1, 4) for line, _, _ in found), found


def test_a_date_is_text_even_one_that_no_calendar_has() -> None:
    (found,) = parse_jobs("name: x\nspec:\n  command: [a]\n  env: {A: 2026-06-31, B: 2026-06-30}\n")
    assert found.spec.env == {"A": "2026-06-31", "B": "2026-06-30"}


def test_pydantics_words_are_put_plainly() -> None:
    found = problems("name: x\nspec: {command: python train.py, nodes: many}\n")
    assert [message for _, _, message in found] == [
        "must be a list, such as [python, train.py]",
        "must be a whole number",
    ]
    assert problems("name: x\nspec: {command: [echo, 3.10]}\n")[0][2] == "must be text: put quotes around it"


@pytest.mark.parametrize("value", ["on", True])
def test_hang_limit_says_how_long(value: object) -> None:
    with pytest.raises(ValueError, match="say how long without progress is a hang, such as 10m; or off"):
        JobSpec.model_validate({"command": ["x"], "hang_limit": value})
    assert JobSpec.model_validate({"command": ["x"], "hang_limit": False, "on_straggler": False}).on_straggler == "off"
