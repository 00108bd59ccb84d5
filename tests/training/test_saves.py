"""What a checkpointer said, as a list of saves, and as pages and the command line show it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.training import history, page, saves
from penstock.training.commands import LETTERS, bar
from penstock.training.goodput import Lives, Part, account
from penstock.training.losses import Facts, losses

POLICY = {
    "state": "policy",
    "every_steps": 10,
    "interval_s": None,
    "auto": False,
    "mtbf_s": None,
    "keep": 3,
    "tiers": [],
}


def word(state: str, **data: Any) -> dict[str, Any]:
    return {"state": state, "attempt": 1, "at": 100.0, **data}


def begun(n: int, **data: Any) -> dict[str, Any]:
    return word("saving", id=f"i{n}", step=n, began=float(n), stall_s=0.01, bytes=100, why="due", **data)


def test_each_save_has_its_own_story() -> None:
    words = [
        word("policy", **{k: v for k, v in POLICY.items() if k != "state"}),
        begun(9),
        word("saved", id="i9", step=9, durable_s=0.5, bytes=400, ranks=2),
        word("copied", id="i9", step=9, place="/b", took_s=0.1),
        word("uncopied", id="i9", step=9, place="s3://x", reason="503"),
        begun(19),
        word("failed", id="i19", step=19, reason="No space left on device"),
        begun(29),
        word("loaded", id="i9", step=9, place="/a", took_s=0.1),
        begun(39),
        word("verified", ids=["i9"]),
    ]
    found = saves.fold(words, 1)
    assert [(s["step"], s["state"], s["reason"]) for s in found["saves"]] == [
        (39, "writing", None),
        (29, "cut short", "its process ended before it was committed"),
        (19, "failed", "No space left on device"),
        (9, "committed", None),
    ]
    last = found["saves"][-1]
    assert (last["verified"], last["bytes"], last["ranks"]) == (True, 400, 2)
    assert [(tier["place"], tier["there"]) for tier in last["tiers"]] == [("/b", True), ("s3://x", False)]
    assert saves.fold(words, None)["saves"][0]["state"] == "cut short"
    assert found["policy"]["why"] == "every 10 steps, as the script says"
    shown = page.checkpoints(found | {"measured": Facts(0, 0, 1.0, None, 0, None).to_json()})
    assert shown is not None and [save.state for save in shown.saves] == ["writing", "cut short", "failed", "verified"]
    assert shown.saves[2].note == "No space left on device" and not shown.saves[3].copies[1][2]


def test_an_interval_by_young_and_daly_shows_its_numbers() -> None:
    words = [word("policy", interval_s=600.0, auto=True, mtbf_s=3600.0), begun(9, interval_s=8.5)]
    assert saves.fold(words[:1], 1)["policy"]["why"].startswith("until a save has been measured")
    policy = saves.fold(words, 1)["policy"]
    assert policy["interval_s"] == 8.5 and "sqrt(2 x 0.01s of waiting x 1h between failures)" in policy["why"]
    assert round(saves.best_interval(0.01, 3600.0), 2) == 8.49


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(["i1"])
states = st.sampled_from(sorted({*saves._STATES, "policy", "fresh"}))
fields = st.sampled_from(["id", "ids", "step", "began", "stall_s", "place", "reason", "interval_s", "mtbf_s", "at"])


@given(st.lists(st.tuples(states, st.dictionaries(fields, plain)), max_size=12))
def test_whatever_a_script_says_is_folded(said: list[tuple[str, dict[str, Any]]]) -> None:
    points = [{"at": 1.0, "event": "checkpoint", "data": {**data, "state": state}} for state, data in said]
    found = saves.fold(saves.told(points, 1), 1)
    assert len(found["saves"]) <= found["count"] <= len(said)
    assert page.checkpoints(found | {"measured": Facts(0, 0, 1.0, None, 0, None).to_json()}) or not found["saves"]
    points.append({"at": 2.0, "rank": 0, "step": 1})
    attempt = {"number": 1, "admitted_at": 0.0, "started_at": 0.0, "ended_at": None, "reason": "", "queued": False}
    account(Lives(0, 3000, False, history.lives(attempt, (), points)))


@given(st.lists(st.tuples(st.sampled_from(sorted(LETTERS)), st.integers(1, 10_000)), min_size=1, max_size=9))
def test_a_bar_is_as_wide_as_it_should_be_and_shows_all(given_: list[tuple[str, int]]) -> None:
    total = sum(size for _, size in given_)
    line = bar([(part, size / total) for part, size in given_])
    assert len(line) == 60 and {LETTERS[part][0] for part, _ in given_} == set(line)


def test_losses_are_ranked_with_what_would_help() -> None:
    parts = dict.fromkeys(Part, 0) | {
        Part.STEPS: 600_000,
        Part.LOST: 300_000,
        Part.RESTART: 99_000,
        Part.CHECKPOINT: 1000,
    }
    found = losses(parts, Facts(2, 2, 7200.0, 0.5, 10, 600.0), saves_known=True)
    assert [each["part"] for each in found] == ["lost", "restart"]
    assert found[0]["help"].startswith("save every 1m, not every 10m")
    assert "no checkpoint was reported" in losses(parts, Facts(2, 2, 1.0, None, 0, None), saves_known=False)[0]["help"]
