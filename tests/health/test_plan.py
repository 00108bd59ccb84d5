"""The health planner: what it does for one node, and what holds for every fleet."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.health import shipped
from penstock.health.plan import Action, Plan, plan
from penstock.health.rule import Answer, Limit, Policy, Rule
from penstock.health.state import OUT, Hold, NodeHealth, Outage, Seen, Sighting, Verb
from penstock.telemetry.spec import Finding

POLICY = shipped.load(None)
NOW = 1_000_000.0
DAY = 86_400.0


def finding(code: str = "79", rule: str = "Xid", node: str = "n1", **more: Any) -> Finding:
    at = float(more.pop("at", NOW - 2))
    return Finding(rule, node, at, at, "as it was written", code=code, source="kmsg", device="GPU-1", **more)


def node(*findings: Finding, name: str = "n1", **more: Any) -> NodeHealth:
    return replace(NodeHealth(name, ready=True, cordoned=False, cordoned_by_us=False, findings=findings), **more)


def fleet(*mine: NodeHealth, of: int = 10) -> list[NodeHealth]:
    return [*mine, *(node(name=f"well-{i}") for i in range(of - len(mine)))]


def planned(*mine: NodeHealth, of: int = 10, policy: Policy = POLICY) -> Plan:
    return plan(fleet(*mine, of=of), policy, policy.budget, NOW)


def only(made: Plan) -> Action:
    assert len(made.actions) == 1, made.lines()
    return made.actions[0]


def sightings(*jobs: str, gap: float = 600.0) -> tuple[Sighting, ...]:
    return tuple(Sighting(NOW - 60 - gap * i, jobs=(job,)) for i, job in enumerate(reversed(jobs)))[::-1]


# -- one node


def test_a_gpu_off_the_bus_drains_its_node_and_then_wants_a_reboot() -> None:
    action = only(planned(node(finding(), jobs=("a/train#1",))))
    assert (action.verb, action.advise, action.jobs) == (Verb.DRAIN, Verb.REBOOT, ("a/train#1",))
    assert action.findings == (finding().key,)
    assert "79" in action.reason


def test_once_nobody_runs_there_the_advice_is_told() -> None:
    out = node(finding(), cordoned=True, cordoned_by_us=True, draining=True, out_since=NOW - 60)
    assert only(planned(out)).verb == Verb.REBOOT
    assert planned(replace(out, jobs=("a/train#1",))).actions == ()


def test_an_applications_xid_is_the_applications() -> None:
    assert only(planned(node(finding("43")))).verb == Verb.OBSERVE
    made = only(planned(node(finding("13"), jobs=("a/train#1",))))
    assert made.verb == Verb.OBSERVE  # it has a minute to end by itself


def test_a_job_that_met_an_xid_and_does_not_end_is_started_again() -> None:
    one = finding("94")
    seen = Seen(NOW - 100, (Sighting(NOW - 100, jobs=("a/train#1", "a/other#1")),))
    made = only(planned(node(one, seen={one.key: seen}, jobs=("a/train#1", "b/new#1"))))
    assert (made.verb, made.jobs) == (Verb.RESTART_JOB, ("a/train#1",))


@pytest.mark.parametrize(
    ("jobs", "verb"),
    [
        (("a/x#1", "a/x#2"), Verb.OBSERVE),  # the same job again
        (("a/x#1", "b/y#1"), Verb.OBSERVE),  # two jobs: chance, often enough
        (("a/x#1", "b/y#1", "b/z#1"), Verb.DRAIN),  # a third one: the GPU
        (("a/x#1",), Verb.OBSERVE),
    ],
)
def test_xid_31_on_one_gpu_with_different_jobs_is_the_hardware(jobs: tuple[str, ...], verb: Verb) -> None:
    one = finding("31")
    assert only(planned(node(one, seen={one.key: Seen(NOW - 9000, sightings(*jobs))}))).verb == verb


def test_xid_31_on_many_gpus_is_the_application() -> None:
    mine = [finding("31", node=f"n{i}") for i in range(3)]
    nodes = [
        node(one, name=one.node, seen={one.key: Seen(NOW - 9000, sightings("a/x#1", "a/y#1", "a/z#1"))}) for one in mine
    ]
    made = planned(*nodes)
    assert {action.verb for action in made.actions} == {Verb.OBSERVE}
    assert "the application" in made.actions[0].reason


def test_xid_74_twice_is_a_case_for_the_vendor() -> None:
    one = finding("74")
    first = only(planned(node(one, seen={one.key: Seen(NOW - DAY, sightings("a/x#1"))})))
    again = only(planned(node(one, seen={one.key: Seen(NOW - DAY, sightings("a/x#1", "a/x#2"))})))
    assert (first.advise, again.advise) == (Verb.RESET_GPU, Verb.REPLACE)


@pytest.mark.parametrize(
    ("words", "verb", "advise"),
    [
        ("0x0 (None) to 0x2 (Node Reboot Required)", Verb.DRAIN, Verb.REBOOT),
        ("0x0 (None) to 0x1 (GPU Reset Required)", Verb.DRAIN, Verb.RESET_GPU),
        ("0x1 (GPU Reset Required) to 0x0 (None)", Verb.OBSERVE, None),
        ("0x0 (None) to 0x9 (Sing A Song)", Verb.OBSERVE, None),
    ],
)
def test_what_the_driver_recommends_goes_before_the_table(words: str, verb: Verb, advise: Verb | None) -> None:
    said = finding("154", evidence=(f"NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from {words}",))
    made = only(planned(node(said)))
    assert (made.verb, made.advise) == (verb, advise)
    if "Song" not in words:
        made = only(planned(node(said, finding("48", at=NOW - 3))))
        assert (made.verb, made.advise) == (verb, advise)
    later = only(planned(node(replace(said, at=NOW - 600, first_at=NOW - 600), finding("95"))))
    assert later.verb == Verb.DRAIN


def test_network_alerts_wait_for_more() -> None:
    one = replace(finding("", "NicError"), first_at=NOW - 100)
    assert only(planned(node(one, seen={one.key: Seen(NOW - 100, sightings("a/x#1"))}))).verb == Verb.OBSERVE
    assert only(planned(node(one, seen={one.key: Seen(NOW - 100, sightings("a/x#1", "a/x#1"))}))).verb == Verb.CORDON


def test_heat_must_last() -> None:
    one = finding("", "GpuThermalThrottle")
    short, long = Seen(NOW - 60, (Sighting(NOW - 2),)), Seen(NOW - 700, (Sighting(NOW - 2),))
    assert only(planned(node(one, seen={one.key: short}))).verb == Verb.OBSERVE
    one = replace(one, first_at=NOW - 700)
    assert only(planned(node(one, seen={one.key: long}))).verb == Verb.CORDON


@pytest.mark.parametrize(
    "line", ["149, NETIR_LINK_EVT Fatal XC0 i0 Link 08", "149, NETIR_LINK_EVT Nonfatal XC0 i0 Link 08"]
)
def test_a_link_event_is_as_fatal_as_its_line_says(line: str) -> None:
    made = only(planned(node(finding("149", evidence=(line,)))))
    assert made.verb == (Verb.DRAIN if "Fatal" in line else Verb.OBSERVE)


# -- doubt


@pytest.mark.parametrize(
    "doubtful",
    [
        node(finding("999")),
        node(finding(at=NOW + 3600)),
        node(finding(), doubts={"kmsg": "the log was overrun"}),
        node(finding(), seen={finding().key: Seen(NOW, late_s=5000.0)}),
        node(finding(), seen={finding().key: Seen(NOW, acked_by="ada")}),
        node(replace(finding("", "LinkDown", at=NOW - 7200), first_at=NOW - 9000)),
    ],
)
def test_nothing_is_taken_out_on_doubtful_data(doubtful: NodeHealth) -> None:
    made = planned(doubtful)
    assert not [action for action in made.actions if action.verb in OUT]
    assert doubtful.findings[0].code == "999" or {held.why for held in made.held} == {Hold.DOUBT}


def test_the_same_on_all_nodes_at_once_is_none_of_theirs() -> None:
    made = plan([node(finding(node=f"n{i}"), name=f"n{i}") for i in range(8)], POLICY, POLICY.budget, NOW)
    assert not [action for action in made.actions if action.verb in OUT]
    assert {held.why for held in made.held} == {Hold.COMMON}


def test_the_breaker_opens_where_many_would_go() -> None:
    codes = ("79", "48", "95", "64", "119", "140")
    nodes = [node(finding(code, node=f"n{i}"), name=f"n{i}") for i, code in enumerate(codes)]
    made = planned(*nodes, of=20)
    assert made.breaker
    assert {held.why for held in made.held} == {Hold.BREAKER}
    assert not [action for action in made.actions if action.verb in OUT]


def test_a_budget_takes_the_worst_first() -> None:
    mild = node(finding("54", node="a"), name="a")
    bad = node(finding("79", node="b"), name="b")
    made = planned(mild, bad, of=10)
    assert [(one.node, one.verb) for one in made.actions if one.verb in OUT] == [("b", Verb.DRAIN)]
    assert [(one.node, one.why) for one in made.held] == [("a", Hold.BUDGET)]


# -- the way back


def well(since: float, *, outages: int = 0, **more: Any) -> NodeHealth:
    one = finding(active=False)
    past = tuple(Outage(NOW - (9 - i) * DAY, NOW - (9 - i) * DAY + 60, Verb.DRAIN, (one.key,)) for i in range(outages))
    now = Outage(NOW - 2 * DAY, None, Verb.DRAIN, (one.key,))
    seen = {one.key: Seen(NOW - 2 * DAY, ended_at=since)}
    return node(
        one,
        cordoned=True,
        cordoned_by_us=True,
        draining=True,
        out_since=NOW - 2 * DAY,
        seen=seen,
        outages=(*past, now),
        **more,
    )


def test_a_node_returns_when_it_has_been_well_for_long_enough_and_was_checked() -> None:
    assert planned(well(NOW - 60)).held[0].why == Hold.QUIET
    assert planned(well(NOW - DAY)).held[0].why == Hold.CHECK
    assert planned(well(NOW - DAY, checked_at=NOW - 2 * DAY)).held[0].why == Hold.CHECK
    assert only(planned(well(NOW - DAY, checked_at=NOW - 600))).verb == Verb.RETURN


def test_what_it_left_for_must_be_known_to_have_ended() -> None:
    one = replace(finding("", "GpuThermalThrottle", at=NOW - 9 * DAY), first_at=NOW - 9 * DAY - 300)
    out = well(NOW - DAY, checked_at=NOW - 600)
    now = replace(out.outages[-1], keys=(one.key,))
    made = planned(replace(out, findings=(one,), seen={}, outages=(now,)))
    assert [held.why for held in made.held] == [Hold.DOUBT]
    assert made.actions == ()


def test_a_lemon_does_not_return_by_itself() -> None:
    made = planned(well(NOW - DAY, checked_at=NOW - 600, outages=3))
    assert made.held[0].why == Hold.LEMON
    assert made.actions == ()


def test_after_two_reboots_for_the_same_it_is_to_be_replaced() -> None:
    one = finding()
    past = tuple(Outage(NOW - i * DAY, NOW - i * DAY + 60, Verb.DRAIN, (one.key,)) for i in (9, 5))
    assert only(planned(node(one, outages=past))).advise == Verb.REPLACE
    assert only(planned(node(one, outages=past[:1]))).advise == Verb.REBOOT


def test_a_node_that_a_person_cordoned_stays_so() -> None:
    assert planned(node(cordoned=True)).actions == ()
    made = only(planned(node(finding(), cordoned=True, jobs=("a/x#1",))))
    assert made.verb == Verb.DRAIN


def test_a_rule_in_shadow_is_told_and_does_nothing() -> None:
    tried = replace(POLICY, rules={**POLICY.rules, ("New", ""): Rule("New", answer=Answer(Verb.DRAIN), shadow=True)})
    made = planned(node(finding("", "New")), policy=tried)
    assert {one.verb for one in made.actions} == {Verb.OBSERVE}
    assert [(one.verb, one.why) for one in made.held] == [(Verb.DRAIN, Hold.SHADOW)]


# -- every fleet

CODES = ("79", "48", "13", "31", "43", "54", "63", "74", "94", "95", "149", "154", "999", "163")
RULES = ("LinkFlap", "LinkDown", "GpuThermalThrottle", "EccUncorrectable", "EccCorrectable", "Unheard")
LINES = ((), ("changed from 0x0 (None) to 0x2 (Node Reboot Required)",), ("Link Fatal",))


def made_up(seed: int) -> list[NodeHealth]:
    """A fleet of up to seven nodes in any state: drawn from a seed, since so many draws of Hypothesis' own cost seconds."""
    chance = Random(seed)
    return [_any_node(chance, f"n{i}") for i in range(chance.randint(0, 7))]


def _time(chance: Random) -> float:
    return NOW + chance.choice([-1.0, -30.0, -300.0, -3000.0, -DAY, -9 * DAY, 3600.0]) * (0.5 + chance.random())


def _jobs(chance: Random) -> tuple[str, ...]:
    return tuple(chance.sample(["a/x#1", "a/x#2", "a/y#1", "b/z#1"], chance.randint(0, 3)))


def _any_finding(chance: Random, name: str) -> Finding:
    xid = chance.random() < 0.6
    return Finding(
        "Xid" if xid else chance.choice(RULES),
        name,
        _time(chance),
        _time(chance),
        "text",
        device=chance.choice(["", "GPU-1", "GPU-2"]),
        code=chance.choice(CODES) if xid else "",
        count=chance.randint(1, 9),
        source=chance.choice(["kmsg", "nvml", "gpud"]),
        active=chance.random() < 0.7,
        evidence=chance.choice(LINES),
    )


def _any_seen(chance: Random) -> Seen:
    times = sorted(_time(chance) for _ in range(chance.randint(0, 4)))
    sightings = tuple(Sighting(at, chance.randint(1, 3), _jobs(chance)) for at in times)
    ended = chance.choice([None, _time(chance)])
    return Seen(_time(chance), sightings, chance.choice([0.0, 0.0, 5000.0]), ended, chance.choice(["", "", "", "ada"]))


def _any_node(chance: Random, name: str) -> NodeHealth:
    mine = {one.key: one for one in (_any_finding(chance, name) for _ in range(chance.randint(0, 4)))}
    ours = chance.random() < 0.3
    keys = tuple(mine) or ((name, "Xid", "79", ""),)
    past = tuple(
        Outage(at - 60, at, Verb.DRAIN, keys) for at in sorted(_time(chance) for _ in range(chance.randint(0, 4)))
    )
    out = _time(chance) if ours else None
    return NodeHealth(
        name,
        ready=chance.random() < 0.9,
        cordoned=ours or chance.random() < 0.2,
        cordoned_by_us=ours,
        findings=tuple(mine.values()),
        jobs=_jobs(chance),
        pool=chance.choice(["", "p"]),
        out_since=out,
        draining=chance.random() < 0.3,
        seen={key: _any_seen(chance) for key in mine if chance.random() < 0.6},
        doubts=chance.choice([{}, {}, {"nvml": "hangs"}]),
        outages=(*past, Outage(out, None, Verb.DRAIN, keys)) if out is not None else past,
        checked_at=chance.choice([None, _time(chance)]),
    )


def fleets() -> st.SearchStrategy[list[NodeHealth]]:
    return st.builds(made_up, st.integers(0, 2**32))


BUDGETS = st.builds(Limit, st.floats(0, 1), st.integers(0, 3))


def out_after(fleet_: list[NodeHealth], made: Plan) -> dict[str, int]:
    left = {one.node for one in made.actions if one.verb in OUT}
    found: dict[str, int] = {}
    for each in fleet_:
        if each.name in left and not each.cordoned:
            found[each.pool] = found.get(each.pool, 0) + 1
    return found


@given(fleets(), BUDGETS)
def test_no_more_of_a_pool_leaves_than_its_budget_has_left(fleet_: list[NodeHealth], budget: Limit) -> None:
    left = out_after(fleet_, plan(fleet_, POLICY, budget, NOW))
    for pool, count in left.items():
        mine = [each for each in fleet_ if each.pool == pool]
        assert count + sum(each.cordoned_by_us for each in mine) <= budget.of(len(mine))


@given(fleets(), BUDGETS, st.integers(0, 99))
def test_a_plan_depends_on_nothing_but_what_it_is_given(fleet_: list[NodeHealth], budget: Limit, chance: int) -> None:
    made = plan(fleet_, POLICY, budget, NOW)
    shuffled = list(fleet_)
    Random(chance).shuffle(shuffled)
    assert plan(shuffled, POLICY, budget, NOW) == made
    names = [one.node for one in made.actions]
    assert names == sorted(set(names))


@given(fleets(), BUDGETS)
def test_nothing_is_done_without_evidence_of_that_node(fleet_: list[NodeHealth], budget: Limit) -> None:
    known = {each.name: each for each in fleet_}
    for one in plan(fleet_, POLICY, budget, NOW).actions:
        mine = known[one.node]
        assert one.findings
        assert all(key[0] == one.node for key in one.findings)
        if one.verb == Verb.RETURN:
            assert mine.cordoned_by_us
            continue
        active = {each.key for each in mine.findings if each.active}
        assert active.issuperset(one.findings)
        if one.verb in OUT:
            trusted = [each for each in mine.findings if each.key in one.findings and each.at <= NOW + 60]
            assert trusted
            assert not any(mine.doubts.get(each.source) for each in trusted)
            assert not any(mine.of(each).acked_by for each in trusted)
            assert all(POLICY.of(each.rule, each.code) for each in trusted)


@given(fleets(), BUDGETS, st.floats(0, 1))
def test_a_larger_budget_takes_out_no_fewer(fleet_: list[NodeHealth], budget: Limit, more: float) -> None:
    larger = replace(budget, share=min(1.0, budget.share + more), least=budget.least + 1)
    before = {one.node for one in plan(fleet_, POLICY, budget, NOW).actions if one.verb in OUT}
    after = {one.node for one in plan(fleet_, POLICY, larger, NOW).actions if one.verb in OUT}
    assert before <= after


@given(fleets(), BUDGETS)
def test_rules_in_shadow_do_nothing_at_all(fleet_: list[NodeHealth], budget: Limit) -> None:
    tried = replace(POLICY, rules={key: replace(rule, shadow=True) for key, rule in POLICY.rules.items()})
    verbs = {one.verb for one in plan(fleet_, tried, budget, NOW).actions}
    assert verbs <= {Verb.OBSERVE, Verb.RETURN}


@given(fleets(), BUDGETS)
def test_what_is_said_twice_is_settled(fleet_: list[NodeHealth], budget: Limit) -> None:
    """Once done, nothing more leaves for the same findings."""
    made = {one.node: one.verb for one in plan(fleet_, POLICY, budget, NOW).actions}
    after = [
        replace(
            each,
            cordoned=True,
            cordoned_by_us=each.cordoned_by_us or not each.cordoned,
            draining=each.draining or made[each.name] == Verb.DRAIN,
            out_since=each.out_since or NOW,
        )
        if made.get(each.name) in OUT
        else each
        for each in fleet_
    ]
    again = plan(after, POLICY, budget, NOW)
    left = {one.node for one in again.actions if one.verb in OUT}
    assert not left & made.keys() or not {name for name in left if made[name] in OUT}
