"""Candidates that take over and candidates that are taken back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving_traffic import CANDIDATE, STABLE, Traffic, Way, follow, outcome
from penstock.serving.plan import CRASHES
from penstock.serving.rollout import OVER, decide, stages
from penstock.serving.rollout_memory import POINTS, from_json, to_json
from penstock.serving.spec import Analysis, Rollout, Step
from penstock.serving.state import WHOLE, Agreement, Counts, Histogram, RolloutDecision, RolloutPhase, RolloutSeen, Want

CANARY = Rollout(strategy="canary", steps=(Step(weight=10), Step(weight=50)))
SHADOW = Rollout(strategy="shadow", shadow_time=15, steps=(Step(weight=10),))


def told(spec: Rollout, traffic: Traffic, limit: float = 7200.0) -> list[str]:
    """What a person would be told of, a line each."""
    lines = []
    for at, decision in follow(spec, traffic, 1, limit):
        for entry in decision.evidence:
            parts = [f"{number}: {want.replicas} at {want.weight}" for number, want in decision.wants.items()]
            lines.append(f"{at:g} s {entry['what']}: {entry['why']} [{', '.join(parts)}]")
    return lines


# ------------------------------------------------------------------------------------------------------ golden scenarios


def test_a_canary_takes_over() -> None:
    assert told(CANARY, Traffic()) == [
        "11 s RolloutAdvanced: step 1 of 3 (10% of requests) begins [1: 4 at 9000, 2: 1 at 1000]",
        "21 s RolloutAdvanced: step 1 of 3 (10% of requests) is passed: every test passes [1: 4 at 9000, 2: 2 at 1000]",
        "22 s RolloutAdvanced: step 2 of 3 (50% of requests) begins [1: 4 at 5000, 2: 2 at 5000]",
        "32 s RolloutAdvanced: step 2 of 3 (50% of requests) is passed: every test passes [1: 4 at 5000, 2: 4 at 5000]",
        "33 s Promoted: version 2 serves all requests: every step was passed [2: 4 at 10000]",
    ]


def test_a_canary_with_errors_is_taken_back() -> None:
    lines = told(CANARY, Traffic(300, candidate=Way(errors=0.1)))
    assert lines[-1].startswith("15 s RolledBack: version 1 serves all requests again: error rate: ")
    assert lines[-1].endswith("[1: 4 at 10000]")
    assert len(lines) == 2


def test_wrong_answers_in_shadow_are_taken_back_and_no_caller_saw_one() -> None:
    lines = told(SHADOW, Traffic(candidate=Way(agrees=0.9)))
    assert (
        lines[0] == "11 s RolloutAdvanced: step 1 of 3 (copies of 100% of requests) begins [1: 4 at 10000, 2: 4 at 0]"
    )
    assert lines[1].startswith("15 s RolledBack: version 1 serves all requests again: agreement: 9")
    assert lines[1].endswith("[1: 4 at 10000]")


def test_a_shadow_whose_answers_agree_goes_on_as_a_canary() -> None:
    assert [line.split(" [")[0] for line in told(SHADOW, Traffic())] == [
        "11 s RolloutAdvanced: step 1 of 3 (copies of 100% of requests) begins",
        "26 s RolloutAdvanced: step 1 of 3 (copies of 100% of requests) is passed: every test passes",
        "26 s RolloutAdvanced: step 2 of 3 (10% of requests) begins",
        "36 s RolloutAdvanced: step 2 of 3 (10% of requests) is passed: every test passes",
        "37 s Promoted: version 2 serves all requests: every step was passed",
    ]


def test_blue_green_switches_at_once_and_keeps_the_old_for_a_while() -> None:
    spec = Rollout(strategy="blue_green", keep=60)
    assert told(spec, Traffic()) == [
        "21 s RolloutAdvanced: step 1 of 1 (all requests, the old replicas are kept) begins [1: 4 at 0, 2: 4 at 10000]",
        "81 s Promoted: version 2 serves all requests: its time is over [2: 4 at 10000]",
    ]
    lines = told(spec, Traffic(candidate=Way(median=0.03)))
    assert lines[1].startswith("25 s RolledBack: version 1 serves all requests again: P95: P95 is ")


def test_rolling_goes_replica_by_replica() -> None:
    assert told(Rollout(), Traffic()) == [
        "11 s RolloutAdvanced: 1 of 4 replicas are of version 2 [1: 3 at 7500, 2: 2 at 2500]",
        "12 s RolloutAdvanced: 2 of 4 replicas are of version 2 [1: 2 at 5000, 2: 3 at 5000]",
        "13 s RolloutAdvanced: 3 of 4 replicas are of version 2 [1: 1 at 2500, 2: 4 at 7500]",
        "14 s Promoted: version 2 serves all requests: all of its replicas are ready [2: 4 at 10000]",
    ]


def test_too_few_requests_pause_it() -> None:
    spec = Rollout(strategy="canary", steps=(Step(weight=10),), analysis=Analysis(give_up_after=120))
    lines = told(spec, Traffic(0.5), 400)
    assert len(lines) == 2
    assert lines[1].startswith(
        "132 s RolloutPaused: step 1 of 2 (10% of requests) is not decided after 2m1s: error rate: "
    )


def test_somebody_must_promote_what_is_not_automatic() -> None:
    lines = told(CANARY.model_copy(update={"auto": False}), Traffic(), 60)
    assert lines[-1] == (
        "33 s RolloutPaused: step 3 of 3 (all requests) waits for somebody to promote version 2 "
        "[1: 4 at 5000, 2: 4 at 5000]"
    )
    steps = (Step(weight=10, pause=True), Step(weight=50))
    lines = told(Rollout(strategy="canary", steps=steps), Traffic(), 60)
    assert lines[-1] == (
        "21 s RolloutPaused: step 1 of 3 (10% of requests) is passed and waits for somebody to promote it "
        "[1: 4 at 9000, 2: 1 at 1000]"
    )


# ------------------------------------------------------------------------------------------------- false and late alarms


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(Way(errors=0.1), id="a tenth fails"),
        pytest.param(Way(median=0.03), id="half as slow again"),
        pytest.param(Way(median=0.03, spread=0.3), id="the same, latencies further apart"),
    ],
)
def test_a_bad_canary_is_taken_back_within_ten_seconds(candidate: Way) -> None:
    stable = Way(spread=candidate.spread)
    ends = [outcome(CANARY, Traffic(400, stable, candidate), seed) for seed in range(10)]
    assert {end.phase for end in ends} == {RolloutPhase.ROLLED_BACK}
    assert max(end.seconds for end in ends) <= 10


def alike(count: int, per_s: float) -> list[RolloutPhase]:
    """Rollouts of a version that is no different, with uneven seconds and a few errors of both."""
    way = Way(errors=0.01, spread=0.4)
    traffic = Traffic(per_s, way, way, jitter=0.3, own=0.05)
    return [outcome(CANARY, traffic, seed).phase for seed in range(count)]


def test_what_is_no_different_is_never_taken_back() -> None:
    assert set(alike(30, 100)) == {RolloutPhase.PROMOTED}


@pytest.mark.soak
def test_nor_is_one_of_a_thousand() -> None:
    assert RolloutPhase.ROLLED_BACK not in alike(1000, 150)


# ------------------------------------------------------------------------------------------------------------ by persons


def seen(**fields: Any) -> RolloutSeen:
    given: dict[str, Any] = {"phase": RolloutPhase.PREPARING, "step": 0, "since": 0.0, "wanted": 2}
    return RolloutSeen(STABLE, CANDIDATE, **given | fields)


def after(decision: RolloutDecision, **fields: Any) -> RolloutSeen:
    kept = {name: getattr(decision, name) for name in ("phase", "step", "since", "memory")}
    return seen(**kept | fields)


READY = {STABLE: 2, CANDIDATE: 2}


def test_promote_goes_on_to_the_next_step() -> None:
    first = decide(CANARY, seen(ready=READY), 1.0)
    assert (first.phase, first.step, first.wants[CANDIDATE].weight) == (RolloutPhase.PROGRESSING, 0, 1000)
    second = decide(CANARY, after(first, ready=READY, asked="promote"), 2.0)
    assert (second.phase, second.step, second.wants[CANDIDATE].weight) == (RolloutPhase.PROGRESSING, 1, 5000)
    third = decide(CANARY, after(second, ready=READY, asked="promote"), 3.0)
    assert (third.phase, third.wants) == (RolloutPhase.PROMOTED, {CANDIDATE: Want(2, WHOLE)})


def test_an_earlier_version_comes_back_at_once() -> None:
    case = dataclasses.replace(seen(ready={1: 2, 2: 1}, asked="promote"), stable=2, candidate=1)
    assert decide(CANARY, dataclasses.replace(case, ready={1: 1, 2: 2}), 1.0).phase is RolloutPhase.PREPARING
    last = decide(CANARY, case, 1.0)
    assert (last.phase, last.message) == (
        RolloutPhase.PROMOTED,
        "version 1 serves all requests: it has served before",
    )


def test_counters_that_are_not_told_of_have_not_begun_anew() -> None:
    counts = {STABLE: Counts(900, 9), CANDIDATE: Counts(100, 1)}
    first = decide(CANARY, seen(ready=READY, counts=counts), 1.0)
    second = decide(CANARY, after(first, ready=READY), 2.0)
    third = from_json(decide(CANARY, after(second, ready=READY, counts=counts), 3.0).memory)
    assert third.analysis.step == (Counts(), Counts())


def test_a_version_whose_replicas_crash_is_taken_back() -> None:
    first = decide(CANARY, seen(), 1.0)
    last = decide(CANARY, after(first, failures=CRASHES), 9.0)
    assert last.phase is RolloutPhase.ROLLED_BACK
    assert last.message.endswith("no replica of version 2 became of use")


def test_a_version_that_nobody_has_seen_ready_is_not_promoted_where_no_replica_is_wanted() -> None:
    spec = Rollout(strategy="rolling")
    first = decide(spec, seen(wanted=0, ready={}), 1.0)
    assert first.phase not in (RolloutPhase.PROMOTED, RolloutPhase.ROLLED_BACK)
    assert first.wants[CANDIDATE].replicas == 1
    assert first.wants[STABLE].replicas == 0
    again = seen(wanted=0, ready={CANDIDATE: 1}, memory=first.memory, phase=first.phase, step=first.step)
    assert decide(spec, again, 2.0).phase is RolloutPhase.PROMOTED


@pytest.mark.parametrize("strategy", ["rolling", "canary", "blue_green", "shadow"])
def test_a_version_that_is_never_ready_is_taken_back(strategy: Any) -> None:
    spec = Rollout(strategy=strategy, analysis=Analysis(give_up_after=600))
    first = decide(spec, seen(ready={STABLE: 2}), 1.0)
    assert first.phase is RolloutPhase.PREPARING
    assert first.wants[CANDIDATE].replicas >= 1
    last = decide(spec, after(first, ready={STABLE: 2}), 700.0)
    assert last.phase is RolloutPhase.ROLLED_BACK
    assert "replicas of version 2 were ready after 10m" in last.message


def test_more_replicas_while_it_waits_for_a_person_do_not_end_the_wait() -> None:
    spec = Rollout(strategy="rolling", auto=False)
    first = decide(spec, seen(ready={CANDIDATE: 1}, wanted=1), 1.0)
    assert first.phase is RolloutPhase.PAUSED
    more = decide(spec, after(first, ready={CANDIDATE: 2}, wanted=3), 2.0)
    assert (more.phase, more.wants[CANDIDATE].replicas) == (RolloutPhase.PAUSED, 3)
    whole = decide(spec, after(more, ready={CANDIDATE: 3}, wanted=3, asked="promote"), 3.0)
    assert whole.phase is RolloutPhase.PROMOTED


def test_a_paused_one_still_watches() -> None:
    spec = Rollout(
        strategy="canary", steps=(Step(weight=50, pause=True),), analysis=Analysis(p95_ratio=None, p50_ratio=None)
    )
    decision = decide(spec, seen(ready=READY), 0.0)
    for at in range(1, 21):
        counts = {STABLE: Counts(100.0 * at, 0), CANDIDATE: Counts(100.0 * at, 0)}
        decision = decide(spec, after(decision, ready=READY, counts=counts), float(at))
    assert decision.phase is RolloutPhase.PAUSED
    for at in range(21, 31):
        counts = {STABLE: Counts(100.0 * at, 0), CANDIDATE: Counts(100.0 * at, 60.0 * (at - 20))}
        decision = decide(spec, after(decision, ready=READY, counts=counts), float(at))
    assert decision.phase is RolloutPhase.ROLLED_BACK


# ------------------------------------------------------------------------------------------------------------ properties

PERCENT = st.floats(0, 100).map(lambda value: round(value, 2))
SPECS = st.builds(
    Rollout,
    strategy=st.sampled_from(["rolling", "blue_green", "canary", "shadow"]),
    steps=st.lists(
        st.builds(Step, weight=PERCENT, time=st.sampled_from([1.0, 30.0]), pause=st.booleans()), max_size=4
    ).map(tuple),
    shadow=st.floats(0.1, 100),
    auto=st.booleans(),
    keep=st.sampled_from([10.0, 300.0]),
    analysis=st.builds(
        Analysis,
        min_requests=st.integers(1, 200),
        error_rate=st.none() | st.floats(0, 1),
        p95_ratio=st.none() | st.floats(0.1, 10),
        p50_ratio=st.none() | st.floats(0.1, 10),
        agreement=st.none() | st.floats(0, 1),
        give_up_after=st.sampled_from([5.0, 60.0]),
    ),
)
EDGES = (0.01, 0.1, 1.0)
LATENCIES = st.tuples(*[st.integers(0, 300)] * 4).map(lambda counts: Histogram(EDGES, tuple(map(float, counts))))
COUNTS = st.builds(Counts, st.integers(0, 1000), st.integers(0, 1000), latency=LATENCIES)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "wait": st.sampled_from([0.0, 1.0, 20.0, 100.0]),
            "ready": st.tuples(st.integers(0, 5), st.integers(0, 5)),
            "counts": st.tuples(COUNTS, COUNTS),
            "agreement": st.none() | st.builds(Agreement, st.integers(0, 500), st.integers(0, 500)),
            "asked": st.sampled_from(["", "", "", "", "promote", "rollback"]),
            "failures": st.sampled_from([0, 0, 0, 0, 1, CRASHES]),
            "wanted": st.integers(0, 5),
        }
    ),
    max_size=25,
)


def seen_of(event: dict[str, Any], last: RolloutDecision | None) -> RolloutSeen:
    fields = {
        "ready": dict(zip((STABLE, CANDIDATE), event["ready"], strict=True)),
        "counts": dict(zip((STABLE, CANDIDATE), event["counts"], strict=True)),
        **{name: event[name] for name in ("agreement", "asked", "failures", "wanted")},
    }
    return seen(**fields) if last is None else after(last, **fields)


def plain(decision: RolloutDecision) -> str:
    return json.dumps(asdict(decision))


@given(SPECS, EVENTS)
def test_whatever_happens(spec: Rollout, events: list[dict[str, Any]]) -> None:
    now, last = 0.0, None
    for event in events:
        now += event["wait"]
        case = seen_of(event, last)
        decision = decide(spec, case, now)
        assert sum(want.weight for want in decision.wants.values()) == WHOLE
        assert all(want.weight >= 0 and 0 <= want.mirror <= WHOLE for want in decision.wants.values())
        stored = json.loads(json.dumps([decision.memory, decision.evidence], allow_nan=False))
        assert decide(spec, case, now) == decision
        restored = RolloutDecision(decision.phase, decision.step, decision.since, decision.wants, stored[0])
        assert plain(decide(spec, after(restored), now + 1)) == plain(decide(spec, after(decision), now + 1))
        if case.phase in OVER:
            assert (decision.phase, decision.step, decision.evidence) == (case.phase, case.step, ())
        elif event["asked"] == "rollback":
            assert decision.phase is RolloutPhase.ROLLED_BACK
        if decision.phase is RolloutPhase.ROLLED_BACK:
            assert decision.wants == {STABLE: Want(event["wanted"], WHOLE)}
        judged(spec, case, decision)
        last = decision


def judged(spec: Rollout, case: RolloutSeen, decision: RolloutDecision) -> None:
    """Nobody goes on by himself from a step whose tests do not pass, and nothing is served by a candidate that fails one."""
    for entry in decision.evidence:
        tests: Any = entry["tests"]
        if any(test["verdict"] == "fail" for test in tests):
            assert decision.phase is RolloutPhase.ROLLED_BACK
    if spec.strategy in ("canary", "shadow") and decision.step > case.step and case.asked != "promote":
        tests = decision.evidence[0]["tests"]
        assert stages(spec)[case.step].judged
        assert all(test["verdict"] == "pass" for test in tests)
    if case.phase is RolloutPhase.PAUSED and not case.asked:
        assert decision.phase in (RolloutPhase.PAUSED, RolloutPhase.ROLLED_BACK)


@given(SPECS)
def test_steps_go_to_everything_and_end_there(spec: Rollout) -> None:
    if spec.strategy != "rolling":
        found = stages(spec)
        assert [stage.last for stage in found] == [False] * (len(found) - 1) + [True]
        assert found[-1].weight == WHOLE


def test_what_it_remembers_stays_small() -> None:
    spec = Rollout(strategy="canary", steps=(Step(weight=10, time=400),))
    *_, (_, last) = follow(spec, Traffic(20), 1, 400)
    kept = from_json(last.memory)
    assert POINTS // 2 <= len(kept.points) <= POINTS
    assert len(json.dumps(to_json(kept), separators=(",", ":"))) < 30_000


def test_a_memory_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 7 is not known"):
        from_json({"format": 7})
