"""Replays asked of a real server: they run apart from it, tell how far they are, end with it, and are kept."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import Forbidden, InvalidInput, NotFound
from penstock.client.client import Client
from tests.system.house import House, house, until

REPLAYS = "/api/v1/capacity/replays"
FINAL = {"done", "failed", "cancelled"}
SMALL = {"nodes": 20, "gpus_per_node": 8}


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    with house() as one:
        yield one


def ask(server: House, source: dict[str, Any], a: dict[str, Any], b: dict[str, Any] | None = None) -> str:
    return str(_post(server.client, {"source": source, "a": a, "b": b})["id"])


def _post(client: Client, body: dict[str, Any], path: str = REPLAYS) -> dict[str, Any]:
    answer = client.transport.request(
        "POST", path, body=json.dumps(body).encode(), headers={"content-type": "application/json"}, repeatable=False
    )
    return dict(answer.json())


def post(server: House, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _post(server.client, body, f"/api/v1/{path}")


def over(server: House, id_: str) -> dict[str, Any]:
    until(lambda: server.get(f"capacity/replays/{id_}")["state"] in FINAL, f"replay {id_} does not end")
    return dict(server.get(f"capacity/replays/{id_}"))


def children(server: House) -> list[int]:
    """Processes of the server's that replay."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and Path(f"/proc/{entry}/comm").read_text().startswith("penstock-replay"):
                line = Path(f"/proc/{entry}/cmdline").read_text()
                found += [int(entry)] if server.data_dir in line else []
    return found


def test_two_scenarios_over_made_up_jobs(server: House) -> None:
    id_ = ask(
        server, {"kind": "synth", "cluster": "philly", "jobs": 3000}, SMALL, SMALL | {"nodes": 24, "backfill": "easy"}
    )
    found = over(server, id_)
    assert found["state"] == "done", found
    first, second = found["result"]["scenarios"]
    assert first["jobs"] == second["jobs"] > 2900
    assert (first["policy"], second["policy"]) == ("fifo-strict", "fifo-strict-easy")
    for answer in (first, second):
        timeline = answer["timeline"]
        assert 10 < len(timeline["at"]) <= 500
        assert all(
            len(row) == len(timeline["at"]) for kind in ("gpus", "waiting", "wait_s") for row in timeline[kind].values()
        )
    assert [cost["gpus"] for cost in found["cost"]] == [160, 192]
    assert found["cost"][1]["on_demand"]["month"] > found["cost"][0]["on_demand"]["month"]
    listed = server.get("capacity/replays")["items"]
    assert listed[0]["id"] == id_
    assert "result" not in listed[0]
    assert sorted(os.listdir(Path(server.data_dir, "replays", id_))) == ["replay.json", "result.json"]


def test_the_same_question_has_the_same_answer(server: House) -> None:
    answers = []
    for _ in range(2):
        found = over(
            server, ask(server, {"kind": "synth", "cluster": "kalos", "jobs": 500, "seed": 3}, SMALL | {"nodes": 200})
        )
        answers.append({k: v for k, v in found["result"]["scenarios"][0].items() if k not in {"wall_s", "read_s"}})
    assert answers[0] == answers[1]


def test_what_cannot_be_replayed_says_why(server: House) -> None:
    assert "no job to replay in this server's history" in over(server, ask(server, {"kind": "own"}, SMALL))["message"]
    unknown = over(server, ask(server, {"kind": "synth", "cluster": "mars"}, SMALL))
    assert "'mars' is none of" in unknown["message"]
    over_quota = "queues: [{name: a, quotas: {default: {gpus: 500}}}]"
    refused = over(
        server, ask(server, {"kind": "synth", "cluster": "philly", "jobs": 100}, SMALL | {"queues": over_quota})
    )
    assert refused["state"] == "failed"
    assert refused["problem"]["details"], refused
    with pytest.raises(NotFound):
        ask(server, {"kind": "trace", "name": "nowhere.csv"}, SMALL)
    with pytest.raises(InvalidInput):
        ask(server, {"kind": "trace", "name": "../token"}, SMALL)
    with pytest.raises(InvalidInput):
        ask(server, {"kind": "own"}, SMALL | {"nodes": 0})


def test_a_trace_of_the_data_folder(server: House) -> None:
    folder = Path(server.data_dir, "traces")
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{n},{60 * n},600,{1 + n % 8},team-{n % 2}\n" for n in range(400))
    (folder / "march.csv").write_text("id,submit,duration_s,gpus,queue\n" + rows)
    assert server.get("capacity/sources")["traces"] == ["march.csv"]
    found = over(server, ask(server, {"kind": "trace", "name": "march.csv", "jobs": 100}, SMALL))
    assert found["result"]["scenarios"][0]["jobs"] == 100
    assert sorted(found["result"]["scenarios"][0]["by_queue"]) == ["team-0", "team-1"]


LONG = {"kind": "synth", "cluster": "helios", "jobs": 400_000}


def test_one_runs_at_a_time_and_can_be_cancelled(server: House) -> None:
    first = ask(server, LONG, SMALL | {"nodes": 300})
    second = ask(server, LONG, SMALL | {"nodes": 300})
    until(lambda: children(server), "it does not start")
    assert len(children(server)) == 1
    assert os.getpriority(os.PRIO_PROCESS, children(server)[0]) >= 10
    assert server.get(f"capacity/replays/{second}")["state"] == "waiting"
    for id_ in (second, first):
        server.client.transport.request("DELETE", f"{REPLAYS}/{id_}")
        assert over(server, id_)["state"] == "cancelled"
    assert children(server) == []
    server.client.transport.request("DELETE", f"{REPLAYS}/{first}")
    with pytest.raises(NotFound):
        server.get(f"capacity/replays/{first}")


def test_it_ends_with_the_server(server: House) -> None:
    for number, told in ((signal.SIGKILL, "the server stopped before"), (signal.SIGTERM, "the server was stopped")):
        id_ = ask(server, LONG, SMALL | {"nodes": 300})
        until(lambda: children(server), "it does not start")
        server.end(number)
        until(lambda: not children(server), "it outlives the server")
        server.start()
        found = server.get(f"capacity/replays/{id_}")
        assert found["state"] in FINAL
        assert told in found["message"]


def test_who_may_ask(server: House) -> None:
    tokens = {}
    for user, role in (("vera", "viewer"), ("mo", "")):
        post(server, "users", {"name": user, "role": role})
        tokens[user] = post(server, "tokens", {"name": "t", "user": user})["token"]
    vera, mo = (Client(url=server.url, token=tokens[user]) for user in ("vera", "mo"))
    assert vera.transport.request("GET", REPLAYS).json()["items"]
    for client in (vera, mo):
        with pytest.raises(Forbidden):
            _post(client, {"source": {"kind": "synth", "cluster": "philly"}, "a": SMALL})
    with pytest.raises(Forbidden):
        mo.transport.request("GET", REPLAYS)
