"""Findings taken in, decided of and acted on: over a real store and a simulated fleet, in its own time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.fleet import inventory
from penstock.health import kept, shipped
from penstock.health.orders import Asked
from penstock.health.rule import Trust
from penstock.store import events
from penstock.telemetry.push import Order
from tests.health.rig import HOUR, TRAIN, Rig, checked


def test_an_xid_drains_its_node_and_the_ledger_says_why(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.jobs[rig.names[0]] = [TRAIN]
        assert await rig.health.reconcile("all") is None  # nothing is known: nothing is loaded
        assert await rig.health.take([rig.xid(evidence=("Xid: 79, GPU has fallen off the bus.",))]) == 1
        assert rig.woken == 1
        assert await rig.health.reconcile("all")
        assert await rig.state() == (True, True)
        assert rig.site.told == [(rig.names[0], False)]
        (event,) = await rig.store.read(lambda conn: events.page(conn, reason=[Reason.HealthActed], limit=5))
        assert event.data["findings"][0]["evidence"] == ["Xid: 79, GPU has fallen off the bus."]
        assert event.data["jobs"] == [TRAIN]
        rig.jobs.clear()
        await rig.health.reconcile("all")
        await rig.health.reconcile("all")
        assert [words.split(": ")[1] for words in await rig.told(Reason.HealthActed)] == ["drain", "reboot"]

    checked(tmp_path, test)


def test_what_is_told_again_and_again_is_one_finding(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        one = rig.xid("43")
        assert await rig.health.take([one]) == 1
        for _ in range(5):
            rig.clock.now += 10
            assert await rig.health.take([one]) == 0
            assert await rig.health.take([replace(one, at=rig.clock.now)]) == 0
        assert await rig.health.take([replace(one, at=rig.clock.now, count=3)]) == 1
        (row,) = await rig.store.read(lambda conn: kept.listed(conn, node=None, active=True, limit=9))
        assert (row.times, kept.seen(row).sightings[-1].count) == (3, 2)

    checked(tmp_path, test)


def test_findings_of_one_node_are_bounded_and_those_of_no_node_are_left_out(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for part in range(3):
            await rig.health.take([rig.xid(device=f"GPU-{part}-{i}") for i in range(100)])
        await rig.health.take([rig.xid(node=0) for _ in range(1)])
        assert await rig.health.take([replace(rig.xid(), node="nowhere")]) == 0
        rows = await rig.store.read(lambda conn: kept.listed(conn, node=None, active=False, limit=1000))
        assert len(rows) == kept.PER_NODE

    checked(tmp_path, test)


def test_a_node_that_started_anew_is_rid_of_what_was_found_before(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[0]
        await rig.health.take([rig.xid()], node=name, sources={"kmsg": ""}, boot_id="a", sent_at=rig.clock.now)
        await rig.health.reconcile("all")
        rig.clock.now += 300
        await rig.health.take([], node=name, sources={"kmsg": ""}, boot_id="b", sent_at=rig.clock.now)
        assert await rig.told(Reason.FindingEnded)
        rig.clock.now += HOUR
        await rig.health.reconcile("all")
        assert await rig.state() == (True, True)  # its policy wants a check first
        passed = Asked(Order("1", ("clock",)), name, "asked for", rig.clock.now, {"clock": "passed"}, {"clock": "well"})
        await rig.health.checked(passed)
        await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        assert rig.site.told[-1] == (name, True)
        row = (await rig.store.read(lambda conn: kept.past(conn, name, 5)))[0]
        assert (row.ended_by, row.ended_at) == ("health", rig.clock.now)

    checked(tmp_path, test)


@pytest.mark.parametrize(
    "agent",
    [
        {"sources": {"kmsg": "lines were lost"}},
        {"sources": {"kmsg": ""}, "sent_at": 4000.0},
        {"sources": {"kmsg": ""}, "sent_at": -4000.0},
    ],
)
def test_what_a_doubtful_agent_finds_takes_nothing_out(tmp_path: Path, agent: dict[str, Any]) -> None:
    async def test(rig: Rig) -> None:
        sent = {**agent, "sent_at": rig.clock.now + agent.get("sent_at", 0.0)}
        await rig.health.take([rig.xid()], node=rig.names[0], boot_id="a", **sent)
        await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        assert len(await rig.told(Reason.HealthHeld)) == 1
        await rig.health.take([], node=rig.names[0], boot_id="a", sources={"kmsg": ""}, sent_at=rig.clock.now)
        await rig.health.reconcile("all")
        assert await rig.state() == (True, True)

    checked(tmp_path, test)


def test_the_budget_holds_and_that_is_told_once(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.health.take([rig.xid("79"), rig.xid("48", 1)])
        for _ in range(3):
            await rig.health.reconcile("all")
            rig.clock.now += 10
        assert [await rig.state(number) for number in (0, 1)] == [(True, True), (False, False)]
        (words,) = await rig.told(Reason.HealthHeld)
        assert "not done: drain" in words
        answer = await rig.answer(0)
        assert answer["nodes"] == 10
        told = [(item["node"], one) for item in answer["items"] for one in item["decisions"]]
        kept_from = {(name, one["held"]) for name, one in told if one["verb"] != "observe"}
        assert kept_from == {(rig.names[0], ""), (rig.names[1], "budget")}

    checked(tmp_path, test)


def test_who_lets_a_node_back_has_the_last_word(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.health.take([rig.xid()])
        await rig.health.reconcile("all")
        await rig.store.write(lambda tx: inventory.uncordon(tx, rig.names[0], actor="ada", why="it is well"))
        for _ in range(2):
            await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        rows = await rig.store.read(lambda conn: kept.listed(conn, node=None, active=True, limit=9))
        assert [row.acked_by for row in rows] == ["ada"]
        await rig.health.clear(rig.names[0], "Xid", "79", "", actor="ada", why="")
        rig.clock.now += 5
        await rig.health.take([rig.xid(count=2)])  # it comes anew
        await rig.health.reconcile("all")
        assert await rig.state() == (True, True)

    checked(tmp_path, test)


def test_an_engine_that_refuses_is_asked_again(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.site.refuses = True
        await rig.health.take([rig.xid()])
        await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        assert "does not answer" in (await rig.told(Reason.HealthHeld))[0]
        rig.site.refuses = False
        await rig.health.reconcile("all")
        assert await rig.state() == (True, True)

    checked(tmp_path, test)


def test_a_job_that_an_xid_has_stopped_starts_again_once(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.jobs[rig.names[0]] = [TRAIN]
        await rig.health.take([rig.xid("94")])
        for _ in range(4):
            await rig.health.reconcile("all")
            rig.clock.now += 40
        assert rig.restarted == [TRAIN]
        assert await rig.state() == (False, False)
        rig.clock.now += HOUR
        await rig.health.reconcile("all")
        assert len(await rig.told(Reason.FindingEnded)) == 1

    checked(tmp_path, test)


def test_a_rule_of_the_sites_own_is_tried_out_first(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        one = replace(rig.xid(), rule="House", code="")
        await rig.health.take([one])
        await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        assert "only tried out" in (await rig.told(Reason.HealthHeld))[0]
        made = await rig.answer(5)
        assert [one["why"] for one in made["held"]] == ["shadow"]
        assert "policy.yaml" in (await rig.answer(6))["version"]

    checked(tmp_path, test, policy="rules:\n  House: {do: drain}\n")


def test_people_tell_of_findings_and_what_is_not_there_is_refused(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        told = [{"node": rig.names[0], "rule": "Xid", "code": "43", "message": "seen"}]
        assert await rig.answer(2, findings=told) == {"new": 1}
        with pytest.raises(InvalidInput):
            await rig.answer(2, findings=[{"node": "nowhere", "rule": "Xid"}])
        assert len((await rig.answer(3, node=rig.names[0]))["findings"]) == 1
        assert (await rig.answer(7))["findings"][0]["acked_by"] == "ada"
        assert len((await rig.answer(4, node=rig.names[0], rule="Xid"))["findings"]) == 1
        with pytest.raises(NotFound):
            await rig.answer(4, node=rig.names[0], rule="Xid")
        assert (await rig.answer(1))["items"][0]["active"] is False

    checked(tmp_path, test)


def test_what_is_told_no_more_has_lasted_for_as_long_as_it_was_told(tmp_path: Path) -> None:
    """Its agent fell silent after five minutes of ten: nothing is known of the other five."""

    async def test(rig: Rig) -> None:
        began = rig.clock.now

        async def told() -> None:
            await rig.health.take([replace(rig.xid(), rule="GpuThermalThrottle", code="", first_at=began)])

        for silent in (True, False):
            for minute in range(14):
                if minute <= 5 or not silent:
                    await told()
                await rig.health.reconcile("all")
                rig.clock.now += 60
            assert await rig.state() == (not silent, False)

    checked(tmp_path, test)


def test_how_far_a_clock_may_be_off_is_the_policys_to_say(tmp_path: Path) -> None:
    assert shipped.load(None).trust == Trust()  # what holds while no policy is loaded

    async def test(rig: Rig) -> None:
        sent = rig.clock.now + 100
        await rig.health.take([rig.xid()], node=rig.names[0], sources={"kmsg": ""}, boot_id="a", sent_at=sent)
        await rig.health.reconcile("all")
        assert await rig.state() == (True, True)

    checked(tmp_path, test, policy="trust: {clock: 5m}\n")


def test_a_job_that_began_after_an_old_line_has_not_met_it(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name, now = rig.names[0], rig.clock.now
        rig.jobs[name] = [TRAIN, "default/old#1"]
        rig.began = {TRAIN: now - 60, "default/old#1": now - HOUR}
        await rig.health.take([rig.xid("94", at=now - 600, first_at=now - 600)])
        (row,) = await rig.store.read(lambda conn: kept.listed(conn, node=None, active=True, limit=9))
        assert kept.seen(row).sightings[-1].jobs == ("default/old#1",)
        rig.clock.now += 100
        await rig.health.reconcile("all")
        assert rig.restarted == ["default/old#1"]

    checked(tmp_path, test)
