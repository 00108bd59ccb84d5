"""Checks asked for and answered, incidents, evidence, findings of other programs: over a real store and a simulated fleet."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import Conflict, InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.base.routes import Call, Reply
from penstock.health import evidence_routes
from penstock.health.orders import Wanted
from penstock.health.room import Health
from penstock.telemetry.ordered import findings
from tests.health.rig import HOUR, TRAIN, Rig, checked

ANSWERS = {"clock": "passed", "fio": "passed"}


async def ask(
    rig: Rig, what: str, name: str = "", *, body: Any = None, text: bytes = b"", node: str = "", program: str = ""
) -> Any:
    """By the last word of the path, and the method where there are two."""
    method, _, word = what.partition(" ")

    async def chunks() -> AsyncIterator[bytes]:
        yield text

    found = [
        one
        for one in evidence_routes.endpoints(rig.health, lambda *_: [("DCGM_FI_DEV_GPU_TEMP", "GPU-1", [(1.0, 2.0)])])
        if one.method == method and f"/{word}" in one.path
    ]
    assert len(found) == 1
    call = Call(
        Actor("ann", "admin"), {"name": name, "program": program}, evidence_routes.From(node=node), body, {}, chunks()
    )
    return await found[0].handler(call)


def answers(rig: Rig, name: str, said: dict[str, str]) -> list[Any]:
    (order,) = rig.health.asked.of(name)
    lines = [json.dumps({"check": check, "result": result, "message": "so"}) for check, result in said.items()]
    return list(findings(order, name, "\n".join(lines), rig.clock.now))


def test_a_repaired_node_is_checked_and_returns(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[0]
        rig.jobs[name] = [TRAIN]
        await rig.health.take([rig.xid()], node=name, sources={"kmsg": ""}, boot_id="a", sent_at=rig.clock.now)
        await rig.health.reconcile("all")
        rig.jobs.clear()
        await rig.health.take([], node=name, sources={"kmsg": ""}, boot_id="b", sent_at=rig.clock.now)
        assert rig.health.asked.of(name) == ()
        rig.clock.now += HOUR
        await rig.health.reconcile("all")
        (order,) = rig.health.asked.of(name)
        assert order.checks == ("clock", "fio")
        await rig.health.reconcile("all")
        assert rig.health.asked.of(name) == (order,)  # one at a time
        await rig.health.take(answers(rig, name, ANSWERS), node=name)
        assert (await ask(rig, "GET checks", name))["last"]["results"] == ANSWERS
        await rig.health.reconcile("all")
        assert await rig.state() == (False, False)
        items = (await ask(rig, "GET incidents", name))["items"]
        assert len(items) == 1
        assert items[0]["ended"] is not None
        assert [owed["what"] for owed in items[0]["owed"]] == ["reboot the node"]
        assert "check passed" in items[0]["markdown"]

    checked(tmp_path, test)


def test_a_check_that_fails_is_a_finding_and_keeps_the_node_out(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[1]
        body = evidence_routes.Checks(checks=["fio"])
        assert (await ask(rig, "POST checks", name, body=body))["waiting"]["checks"] == ["fio"]
        with pytest.raises(Conflict):
            await ask(rig, "POST checks", name, body=body)
        await rig.health.take(answers(rig, name, {"fio": "failed"}), node=name)
        await rig.health.reconcile("all")
        told = await rig.told(Reason.FindingRaised)
        assert [words.split(": ")[1] for words in told] == ["CheckFailed fio"]
        assert await rig.state(1) == (True, False)

    checked(tmp_path, test)


def test_what_wants_the_gpus_is_refused_beside_a_job(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[0]
        rig.jobs[name] = [TRAIN]
        with pytest.raises(InvalidInput, match=TRAIN):
            await ask(rig, "POST checks", name, body=evidence_routes.Checks(checks=["dcgmi"]))
        with pytest.raises(NotFound):
            await ask(rig, "POST checks", "nobody", body=evidence_routes.Checks(checks=["fio"]))
        assert await rig.health.order([Wanted(name, ("clock",), "x")])

    checked(tmp_path, test)


def test_evidence_in_one_file(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[0]
        await rig.health.take([rig.xid()], node=name, sources={"kmsg": ""}, boot_id="a", sent_at=rig.clock.now)
        reply = await ask(rig, "GET evidence", name)
        assert isinstance(reply, Reply)
        with zipfile.ZipFile(io.BytesIO(reply.body)) as found:
            assert {"manifest.json", "events.jsonl", "incident-001.md", "samples.csv"} <= set(found.namelist())
            rows = [json.loads(line) for line in found.read("events.jsonl").splitlines()]
        assert any(row["reason"] == "FindingRaised" for row in rows)

    checked(tmp_path, test)


def test_other_programs_are_taken_in(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name = rig.names[0]
        log = b"ERROR:  nhc:  Health check failed:  check_fs_mount:  /home not mounted\n"
        answer = await ask(rig, "POST intake", text=log, node=name, program="nhc")
        assert answer == {"findings": 1, "new": 1, "unknown_nodes": []}
        told = await rig.told(Reason.FindingRaised)
        assert told == [f"{name}: External CheckFsMount: /home not mounted"]
        assert (await ask(rig, "POST intake", text=log, node="gone", program="nhc"))["unknown_nodes"] == ["gone"]
        with pytest.raises(InvalidInput, match="name no node"):
            await ask(rig, "POST intake", text=log, program="nhc")
        with pytest.raises(InvalidInput, match="nothing is taken in"):
            await ask(rig, "POST intake", text=log, node=name, program="magic")

    checked(tmp_path, test)


def test_what_was_asked_outlives_the_server(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        name, old = rig.names[0], rig.health
        await ask(rig, "POST checks", name, body=evidence_routes.Checks(checks=["clock", "fio"]))
        told = answers(rig, name, ANSWERS)
        again = (old.store, old.engines, old.fence, old.jobs, old.wake)
        rig.health = Health(*again)
        await rig.health.take([], node=name, sources={"kmsg": ""}, boot_id="a", sent_at=rig.clock.now)
        assert rig.health.asked.of(name) == old.asked.of(name) != ()
        rig.health = Health(*again)
        await rig.health.take(told, node=name)  # its agent ran them meanwhile
        assert rig.health.asked.of(name) == ()
        rig.health = Health(*again)
        known = await ask(rig, "GET checks", name)
        assert (known["waiting"], known["last"]["results"]) == (None, ANSWERS)

    checked(tmp_path, test)
