"""What a whole rack has: no node is taken out for it, it is told of once, and what else is wrong with a node still counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.health import shipped
from penstock.health.plan import Plan, plan
from penstock.health.state import OUT, Hold, NodeHealth, Seen, Sighting
from penstock.store import events
from penstock.telemetry.spec import Finding
from tests.health.rig import Rig, checked
from tests.health.test_evidence import ask

POLICY = shipped.load(None)
NOW = 1_000_000.0
MINUTE = 60.0
HEAT, OFF = "GpuThermalThrottle", "Xid"


def hot(name: str, began: float = NOW - 1800, rack: str = "rack b1/r1", **more: Any) -> NodeHealth:
    one = Finding(HEAT, name, NOW - 5, began, "too hot", device="GPU-0", source="nvml")
    seen = {one.key: Seen(began, (Sighting(began),))}
    node = NodeHealth(name, True, False, False, (one,), domains=(rack, "block b1"), seen=seen)
    return replace(node, **more)


def well(name: str, rack: str = "rack b1/r2") -> NodeHealth:
    return NodeHealth(name, True, False, False, domains=(rack, "block b1"))


def fleet(*mine: NodeHealth, racks: int = 6) -> list[NodeHealth]:
    """Eight nodes in a rack; the first of which has ``mine``."""
    first = [*mine, *(well(f"a{i}", "rack b1/r1") for i in range(8 - len(mine)))]
    return [*first, *(well(f"w{rack}-{i}", f"rack b{rack}/r1") for rack in range(2, racks + 1) for i in range(8))]


def planned(nodes: list[NodeHealth], now: float = NOW) -> Plan:
    return plan(nodes, POLICY, POLICY.budget, now)


def out(made: Plan) -> set[str]:
    return {one.node for one in made.actions if one.verb in OUT}


def test_a_rack_that_is_too_hot_is_one_finding_of_the_rack_for_as_long_as_it_lasts() -> None:
    for lasted in (12 * MINUTE, 40 * MINUTE, 10 * 3600.0):
        made = planned(fleet(*(hot(f"n{i}", NOW - lasted) for i in range(8))))
        assert out(made) == set()
        assert {held.why for held in made.held} == {Hold.SHARED}
        (cause,) = made.shared
        assert (cause.domain, cause.what, len(cause.nodes), cause.size) == ("rack b1/r1", "heat", 8, 8)
        assert "look at its cooling" in made.lines()[-9]


def test_the_first_to_be_hot_for_long_enough_is_not_taken_out_before_the_others_are() -> None:
    made = planned(fleet(hot("n0"), *(hot(f"n{i}", NOW - 60) for i in range(1, 4))))
    assert out(made) == set()
    assert made.shared


def test_one_hot_node_of_a_rack_is_the_nodes() -> None:
    assert out(planned(fleet(hot("n0"), hot("n1")))) == {"n0", "n1"}
    apart = [replace(one, domains=()) for one in fleet(*(hot(f"n{i}") for i in range(4)))]
    assert out(planned(apart))  # nobody said where they stand


def test_the_last_to_cool_down_have_a_moment_more() -> None:
    def cooled(name: str, ended: float) -> NodeHealth:
        node = hot(name)
        (one,) = node.findings
        seen = {one.key: replace(node.seen[one.key], ended_at=ended)}
        return replace(node, findings=(replace(one, active=False),), seen=seen)

    def rack(ended: float) -> list[NodeHealth]:
        return fleet(hot("n0"), *(cooled(f"n{i}", ended) for i in range(1, 8)))

    assert out(planned(rack(NOW - 60))) == set()
    assert out(planned(rack(NOW - 11 * MINUTE))) == {"n0"}


def test_a_gpu_off_the_bus_in_a_hot_rack_takes_its_node_out() -> None:
    node = hot("n0")
    off = Finding(OFF, "n0", NOW - 2, NOW - 2, "off the bus", device="GPU-3", code="79", source="kmsg")
    bad = replace(node, findings=(*node.findings, off))
    made = planned(fleet(bad, *(hot(f"n{i}") for i in range(1, 8))))
    assert out(made) == {"n0"}
    assert next(one for one in made.actions if one.node == "n0").findings == (off.key,)


def test_what_is_hot_and_what_is_slow_for_heat_are_one_and_the_narrowest_domain_that_has_it_is_told() -> None:
    mixed = [hot(f"n{i}") for i in range(4)]
    for i in range(4, 8):
        node = hot(f"n{i}")
        one = replace(node.findings[0], rule="GpuHwSlowdown")
        mixed.append(replace(node, findings=(one,), seen={one.key: Seen(NOW - 1800)}))
    made = planned(fleet(*mixed))
    assert [(cause.domain, len(cause.nodes)) for cause in made.shared] == [("rack b1/r1", 8)]


def test_a_site_may_say_otherwise() -> None:
    apart = replace(POLICY, rules={key: replace(rule, shared="") for key, rule in POLICY.rules.items()})
    made = plan(fleet(*(hot(f"n{i}") for i in range(4))), apart, apart.budget, NOW)
    assert out(made)
    assert made.shared == ()


@st.composite
def racks(draw: st.DrawFn) -> list[NodeHealth]:
    chance = Random(draw(st.integers(0, 2**32)))
    nodes = []
    for rack in range(chance.randint(1, 4)):
        share = chance.choice([0.0, 0.2, 0.5, 1.0])
        for i in range(chance.randint(1, 9)):
            name, where = f"n{rack}-{i}", f"rack b/r{rack}"
            is_hot = chance.random() < share
            nodes.append(hot(name, NOW - chance.choice([60, 900, 9000]), where) if is_hot else well(name, where))
    return nodes


@given(racks(), st.integers(0, 99))
def test_no_node_of_a_rack_that_has_it_leaves_for_it(nodes: list[NodeHealth], chance: int) -> None:
    made = planned(nodes)
    for rack in {node.domains[0] for node in nodes}:
        mine = [node for node in nodes if node.domains[0] == rack]
        having = [node.name for node in mine if node.findings]
        if len(having) >= POLICY.domain.of(len(mine)):
            assert not out(made) & set(having)
            assert set(having) <= {name for cause in made.shared for name in cause.nodes}
    shuffled = list(nodes)
    Random(chance).shuffle(shuffled)
    assert planned(shuffled) == made


@given(racks(), st.integers(0, 40))
def test_xids_of_hardware_ask_the_same_in_a_hot_rack_as_in_a_cool_one(nodes: list[NodeHealth], pick: int) -> None:
    off = Finding(OFF, "", NOW - 2, NOW - 2, "off the bus", device="GPU-3", code="79", source="kmsg")
    index = pick % len(nodes)
    mine = replace(off, node=nodes[index].name)
    bad = [replace(node, findings=(*node.findings, mine)) if i == index else node for i, node in enumerate(nodes)]
    made = planned(bad)
    asked = {one.node for one in made.actions if one.verb in OUT} | {
        one.node for one in made.held if mine.key in one.findings and one.why in {Hold.BREAKER, Hold.BUDGET}
    }
    assert nodes[index].name in asked


def test_people_are_told_once_when_it_begins_and_once_when_it_is_over(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        began = rig.clock.now

        async def look(active: bool) -> None:
            now = rig.clock.now
            found = [
                Finding(HEAT, name, now, began, "too hot", device="GPU-0", source="nvml", active=active)
                for name in rig.names[:8]
            ]
            await rig.health.take(found)
            await rig.health.reconcile("all")

        for _ in range(25):
            await look(True)
            rig.clock.now += 60
        assert [await rig.state(i) for i in range(8)] == [(False, False)] * 8
        (raised,) = await rig.store.read(lambda conn: events.page(conn, kind="Domain", limit=9))
        assert (raised.name, raised.reason) == ("rack block-1/rack-1", Reason.FindingRaised)
        assert sorted(raised.data["nodes"]) == sorted(rig.names[:8])
        assert not await rig.told(Reason.HealthHeld)
        (whole,) = (await rig.answer(0))["shared"]
        assert (whole["domain"], whole["what"]) == ("rack block-1/rack-1", "heat")
        (incident,) = (await ask(rig, "GET incidents", rig.names[0]))["items"]
        assert "look at its cooling" in incident["held"][0]
        await look(False)
        rig.clock.now += 11 * MINUTE
        await rig.health.reconcile("all")
        told = await rig.store.read(lambda conn: events.page(conn, kind="Domain", limit=9))
        assert [row.reason for row in told] == [Reason.FindingRaised, Reason.FindingEnded]
        assert (await rig.answer(0))["shared"] == []

    checked(tmp_path, test, nodes=48)
