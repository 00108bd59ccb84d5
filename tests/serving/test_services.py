"""A real server: from `penstock serve` to replicas that are ready, lost, replaced, rolled out, scaled and gone."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.base.errors import Conflict, InvalidInput, NotFound
from tests.serving.test_formats import ONNX
from tests.system.house import House, until

pytestmark = pytest.mark.real  # Envoy carries the requests

SERVER = """\
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = sys.argv[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with House("--gateway-port", str(port)) as made:
        Path(made.data_dir, "server.py").write_text(SERVER)
        os.chmod(Path(made.data_dir, "server.py"), 0o644)
        yield made
        for service in made.client.services.list():
            with contextlib.suppress(NotFound):  # the last of its replicas ended just now
                made.client.services.delete(service.name)
        until(lambda: not list(made.client.services.list()), "services do not end")


def spec(house: House, word: str = "one", **more: Any) -> dict[str, Any]:
    command = [sys.executable, f"{house.data_dir}/server.py", "{port}", word]
    return {"runtime": "command", "command": command, "resources": {"cpus": 0.1}, "drain": "1s", **more}


def status(house: House, name: str) -> dict[str, Any]:
    return dict(house.client.services.get(name).status)


def ready(house: House, name: str, count: int) -> list[dict[str, Any]]:
    """The replicas, once so many are ready and no other is left."""

    def look() -> list[dict[str, Any]] | None:
        found = [one for version in status(house, name)["versions"] for one in version["replicas"]]
        return found if [one["phase"] for one in found] == ["Ready"] * count else None

    found: list[dict[str, Any]] = until(look, f"{name} has not {count} ready replicas: {status(house, name)}")
    return found


def test_a_service_is_served_scaled_and_mended_and_outlives_the_server(house: House) -> None:
    services = house.client.services
    services.create("one", spec(house))
    [first] = ready(house, "one", 1)
    assert set(first["stages"]) == {"queued", "started", "loaded", "warmed"}
    with pytest.raises(Conflict):
        services.create("one", spec(house))
    services.scale("one", 2)
    both = ready(house, "one", 2)
    job = house.client.jobs.get(first["job"])
    assert job["labels"] == {"penstock.serving/service": "one", "penstock.serving/version": "1"}

    house.end(signal.SIGKILL)
    house.start()
    services = house.client.services
    assert {one["job"] for one in ready(house, "one", 2)} == {one["job"] for one in both}

    house.client.jobs.cancel(first["job"])  # by hand: its service has another in its place
    after = until(
        lambda: (found := ready(house, "one", 2)) and first["job"] not in {one["job"] for one in found} and found,
        "the cancelled replica was not replaced",
    )
    assert both[1]["job"] in {one["job"] for one in after}

    services.scale("one", 0)
    until(lambda: status(house, "one")["phase"] == "Idle", "it has replicas still")
    services.delete("one")
    until(lambda: _gone(house, "one"), "it is there still")


def _gone(house: House, name: str) -> bool:
    try:
        house.client.services.get(name)
    except NotFound:
        return True
    return False


def test_a_replica_that_is_killed_is_replaced_and_told_of(house: House) -> None:
    house.client.services.create("killed", spec(house))
    [first] = ready(house, "killed", 1)
    [pid] = [one for one in _processes("penstock.serving.replica") if '"service":"killed"' in one[1]]
    os.kill(pid[0], signal.SIGKILL)
    until(lambda: ready(house, "killed", 1)[0]["job"] != first["job"], "it was not replaced")
    reasons = [event["reason"] for event in house.client.events.list(kind="InferenceService", name="killed")]
    assert "ReplicaLost" in reasons
    assert not [one for one in _processes("server.py") if f" {first['port']} " in one[1]], "its runtime lives on"
    house.client.services.delete("killed")


def _processes(word: str) -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append((int(path.parent.name), text))
    return found


def test_a_version_that_never_comes_up_says_why(house: House) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(7)", "{port}"]
    house.client.services.create("broken", spec(house) | {"command": command})
    found = until(
        lambda: [one for one in status(house, "broken")["versions"] if one["failures"] >= 2], "nothing has failed"
    )
    assert "exit code 7 before it was ready" in found[0]["message"]
    house.client.services.delete("broken")


def open_to_all(house: House, name: str) -> Path:
    """A folder that the replicas' user can read."""
    folder = Path(house.data_dir, name)
    folder.mkdir(mode=0o755)
    return folder


def test_a_model_that_no_replica_would_serve_is_refused_at_once(house: House) -> None:
    services, model = house.client.services, open_to_all(house, "unfit") / "model.onnx"

    def refused(spec: dict[str, Any]) -> str:
        with pytest.raises(InvalidInput) as error:
            services.create("unfit", spec)
        [problem] = error.value.details
        assert problem.path == "spec.model"
        return problem.message

    model.write_bytes(pickle.dumps({"weights": 1}))
    assert "is a pickle" in refused(services.carry(str(model)))
    assert "is a pickle" in refused({"model": str(model)})
    with pytest.raises(InvalidInput, match="nothing was applied"):
        house.client.apply(
            yaml.safe_dump({"kind": "InferenceService", "name": "unfit", "spec": {"model": "model.onnx"}}).encode(),
            base=str(model.parent),
        )
    model.write_bytes(ONNX[:9])
    assert "breaks off at byte 7" in refused(services.carry(str(model)))
    assert "No such file" in refused({"model": f"{model}.gone"})
    model.write_bytes(ONNX)
    assert "is onnx; the runtime vllm takes" in refused({**services.carry(str(model)), "runtime": "vllm"})
    with pytest.raises(NotFound):
        services.get("unfit")


def test_a_waived_pickle_is_taken(house: House, tmp_path: Path) -> None:
    services, model = house.client.services, tmp_path / "model.pt"
    model.write_bytes(pickle.dumps({"weights": 1}))
    services.allow_pickles("default", allowed=True)
    try:
        services.create("waived", spec(house, replicas=0, **services.carry(str(model))))
    finally:
        services.allow_pickles("default", allowed=False)
    services.delete("waived")


def test_a_replica_that_finds_a_pickle_refuses_it(house: House) -> None:
    services, model = house.client.services, open_to_all(house, "pickled") / "model.onnx"
    model.write_bytes(ONNX)
    services.create("pickled", {"model": str(model), "resources": {"cpus": 0.1}, "replicas": 0})
    model.write_bytes(pickle.dumps({"weights": 1}))
    services.scale("pickled", 1)
    found = until(lambda: [one for one in status(house, "pickled")["versions"] if one["failures"]], "it was served")
    assert "is a pickle" in found[0]["message"]
    reasons = [event["reason"] for event in house.client.events.list(kind="InferenceService", name="pickled")]
    assert reasons.count("ModelRefused") == 1  # it is not tried again and again
    assert status(house, "pickled")["reason"] == "ModelRefused"
    assert not [job for job in house.client.jobs.list(replicas="false") if job.name.startswith("pickled")]
    assert [job for job in house.client.jobs.list() if job.name.startswith("pickled")]
    services.delete("pickled")


def test_bad_specifications_are_refused_with_their_paths(house: House) -> None:
    services = house.client.services
    with pytest.raises(InvalidInput) as error:
        services.create("bad", {"model": "model.onnx"})
    assert [problem.path for problem in error.value.details] == ["spec.model"]
    with pytest.raises(InvalidInput):
        services.create("bad", {"model": "/m.onnx", "replicas": 1, "autoscaling": {"max": 2}})
    with pytest.raises(InvalidInput):
        services.create("bad", {"model": "../m.onnx", "snapshot": "0" * 64})
    with pytest.raises(InvalidInput, match="cannot run here") as falling:
        services.create("bad", spec(house, rollout={"strategy": "canary", "steps": [{"weight": 20}, {"weight": 10}]}))
    assert [problem.path for problem in falling.value.details] == ["spec.rollout.steps.1.weight"]
    with pytest.raises(NotFound):
        services.get("bad")


def test_keys_are_shown_once(house: House) -> None:
    services = house.client.services
    services.create("keyed", spec(house, replicas=0, exposed={"api_keys": True}))
    made = services.add_key("keyed", "web")
    assert made["asked_for"]
    key = made["key"]
    assert key.startswith("pk-")
    assert [one["name"] for one in services.keys("keyed")] == ["web"]
    assert key not in str(services.keys("keyed"))
    services.remove_key("keyed", "web")
    assert services.keys("keyed") == []
    services.delete("keyed")


def ask(house: House, name: str) -> tuple[int, str]:
    """Through the gateway."""
    url = house.client.services.get(name).status["url"]
    try:
        with urllib.request.urlopen(f"{url}/x", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:  # before the first service nothing listens, and after the last nothing any more
        return 0, ""


def test_requests_go_to_the_stable_version_and_a_canary_that_is_promoted_and_taken_back(house: House) -> None:
    services = house.client.services
    services.create("canary", spec(house, "one"))
    ready(house, "canary", 1)
    assert until(lambda: ask(house, "canary")[0] == 200 and ask(house, "canary"), "no answer") == (200, "one")
    rollout = {"strategy": "canary", "steps": [{"weight": 20, "pause": True}]}
    services.replace("canary", spec(house, "two", rollout=rollout))
    until(lambda: status(house, "canary")["rollout"]["phase"] in ("Progressing", "Paused"), "no step began")
    both = {version["number"]: version["weight"] for version in status(house, "canary")["versions"]}
    assert both == {1: 80.0, 2: 20.0}

    house.end(signal.SIGKILL)  # in mid-rollout: traffic goes on, and so does the rollout
    [url] = [f"http://127.0.0.1:{house.flags[1]}/default/canary/x"]
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() in (b"one", b"two")
    house.start()
    services = house.client.services
    assert {v["number"]: v["weight"] for v in status(house, "canary")["versions"]} == both

    services.promote("canary")
    until(lambda: services.rollouts("canary")[0]["phase"] == "Promoted", f"{services.rollouts('canary')[0]}")
    until(lambda: ask(house, "canary") == (200, "two"), "the candidate does not serve")
    services.rollback("canary")
    until(lambda: ask(house, "canary") == (200, "one"), "the version before does not serve")
    until(lambda: len(status(house, "canary")["versions"]) == 1, "two versions are left")
    services.delete("canary")


def test_a_request_wakes_a_service_that_has_no_replica(house: House) -> None:
    services = house.client.services
    services.create(
        "zero", spec(house, "awake", autoscaling={"min": 0, "max": 1, "idle_after": "3s", "down_after": "1s"})
    )
    until(lambda: ask(house, "zero") == (200, "awake"), "the route is not there")
    until(lambda: not status(house, "zero")["replicas"]["all"], "it has replicas still", 30)
    assert ask(house, "zero") == (200, "awake")
    services.delete("zero")


SLOW = SERVER.replace("        body =", "        __import__('time').sleep(0.4)\n        body =")


def test_an_autoscaler_asks_for_no_more_than_its_queue_has(house: House) -> None:
    services = house.client.services
    house.client.apply_queues(
        b"queues:\n- {name: default}\n- {name: narrow, quotas: {default: {cpus: 0.5}}}\n", force=True
    )
    slow = [sys.executable, "-c", SLOW, "{port}", "slow"]
    scaled = {"min": 1, "max": 9, "concurrency": 1, "up_after": "0s"}
    services.create(
        "narrow",
        {**spec(house, autoscaling=scaled, queue="narrow"), "command": slow, "resources": {"cpus": 0.2}},
    )
    ready(house, "narrow", 1)
    until(lambda: ask(house, "narrow")[0] == 200, "no answer")
    with ThreadPoolExecutor(8) as callers:
        ended = threading.Event()

        def calls() -> None:
            while not ended.is_set():
                ask(house, "narrow")

        for _ in range(8):
            callers.submit(calls)
        try:
            until(lambda: status(house, "narrow")["replicas"] == {"wanted": 2, "ready": 2, "all": 2}, "not scaled", 30)
            for _ in range(8):  # eight at once, one a replica: it would have more by now
                assert ask(house, "narrow")[0] == 200
            assert status(house, "narrow")["replicas"]["all"] == 2
        finally:
            ended.set()
    services.delete("narrow")
    house.client.apply_queues(b"queues: []\n", force=True)


def test_who_waits_for_a_replica_may_wait_longer_than_an_answer_may_take(house: House) -> None:
    services = house.client.services
    slow = ["sh", "-c", f"sleep 3; exec {sys.executable} {house.data_dir}/server.py {{port}} late"]
    whole: dict[str, Any] = {"autoscaling": {"min": 0, "max": 1}, "exposed": {"timeout": "1s"}, "hold": {"time": "30s"}}
    services.create("late", {**spec(house, **whole), "command": slow})
    first = until(lambda: found if (found := ask(house, "late"))[0] not in (0, 404) else None, "the route is not there")
    assert first == (200, "late")
    services.delete("late")


def test_services_stand_beside_jobs_in_yaml_and_are_applied_all_or_none(house: House, tmp_path: Path) -> None:
    client = house.client
    (tmp_path / "model.txt").write_text("weights")
    command = [sys.executable, f"{house.data_dir}/server.py", "{port}", "{model}"]
    service: dict[str, Any] = {
        "runtime": "command",
        "command": command,
        "model": "model.txt",
        "drain": "1s",
        "resources": {"cpus": 0.1},
    }
    documents: list[dict[str, Any]] = [
        {"kind": "InferenceService", "name": "applied", "spec": service},
        {"kind": "Job", "name": "beside", "spec": {"command": ["true"]}},
    ]
    text = yaml.safe_dump_all(documents)
    plan = client.apply(text, dry_run=True, base=str(tmp_path))
    assert [(item["kind"], item["action"]) for item in plan["items"]] == [
        ("Job", "create"),
        ("InferenceService", "create"),
    ]
    client.apply(text, base=str(tmp_path))
    ready(house, "applied", 1)
    found = client.services.get("applied")
    assert found.spec["model"] == "model.txt"
    assert until(lambda: ask(house, "applied")[0] == 200 and ask(house, "applied")[1], "no answer").endswith(
        "/model.txt"
    )
    assert [item["action"] for item in client.apply(text, base=str(tmp_path))["items"]] == ["unchanged", "unchanged"]

    service["threads"] = 2
    client.apply(yaml.safe_dump({"kind": "InferenceService", "name": "applied", "spec": service}), base=str(tmp_path))
    until(lambda: [v["number"] for v in status(house, "applied")["versions"]] == [2], "it was not rolled out")

    wrong = [documents[1] | {"name": "never"}, {"kind": "InferenceService", "name": "no", "spec": {"replicas": -1}}]
    with pytest.raises(InvalidInput) as error:
        client.apply(yaml.safe_dump_all(wrong))
    assert {problem.path for problem in error.value.details} >= {"[1].spec.replicas"}
    with pytest.raises(NotFound):
        client.jobs.get("never")
    client.services.delete("applied")
