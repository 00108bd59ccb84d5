"""A real Prometheus and Alertmanager over a real Penstock server and agent: a Xid and a stolen token reach a webhook."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import free_ports
from penstock.base.errors import Forbidden
from penstock.client.client import Client
from penstock.telemetry import push
from penstock.telemetry.monitoring import rules
from tests.system.house import PENSTOCK, House, house, until
from tests.telemetry.agents import Agent

pytestmark = [pytest.mark.real, pytest.mark.needs("prometheus")]


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, Callable[[float], dict[str, Any]]]]:
    """Its URL, and what came to it next."""
    came: queue.Queue[dict[str, Any]] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", lambda patience: came.get(timeout=patience)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextlib.contextmanager
def running(folder: Path, name: str, *words: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (folder / f"{name}.log").read_text()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def server() -> Iterator[House]:
    with house() as one:
        yield one


@contextlib.contextmanager
def watched(server: House, folder: Path, hook: str, agent_port: int) -> Iterator[int]:
    """Prometheus, whose port is given, and Alertmanager, configured by what is rendered."""
    prometheus, manager, cluster = free_ports(3)
    (folder / "token").write_text(server.token)
    words = ["--alertmanager", f"127.0.0.1:{manager}", "--token-file", str(folder / "token"), "--every", "1"]
    server.cli("telemetry", "render", "prometheus", "--out", str(folder), *words, "--agent-port", str(agent_port))
    server.cli("telemetry", "render", "alertmanager", "--out", str(folder), "--webhook", hook, "--wait", "0")
    listed = folder / rules.TARGETS
    listed.write_text(listed.read_text().replace(f'"node-0:{agent_port}"', f'"127.0.0.1:{agent_port}"'))
    kept = ("--config.file=alertmanager.yml", "--storage.path=am", f"--cluster.listen-address=127.0.0.1:{cluster}")
    with (
        running(folder, "am", "prometheus-alertmanager", f"--web.listen-address=127.0.0.1:{manager}", *kept),
        running(
            folder,
            "prometheus",
            "prometheus",
            f"--web.listen-address=127.0.0.1:{prometheus}",
            "--storage.tsdb.path=data",
            "--config.file=prometheus.yml",
        ),
    ):
        yield prometheus


def told_of(came: Callable[[float], dict[str, Any]], names: set[str]) -> dict[str, dict[str, Any]]:
    """The first alert of each name that comes to the webhook."""
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + 30
    while names - found.keys():
        for alert in came(max(0.1, deadline - time.monotonic()))["alerts"]:
            if alert["labels"]["alertname"] in names:
                found.setdefault(alert["labels"]["alertname"], alert)
    return found


def test_a_xid_and_a_stolen_token_ring_the_bell(server: House, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log = tmp_path / "root/dev/kmsg"
    log.parent.mkdir(parents=True)
    log.touch()
    (tmp_path / "own").write_text(server.client.tokens.create(node="node-0", name="agent")["token"])
    stolen = server.client.tokens.create(node="another", name="agent")["token"]
    agent = [PENSTOCK, "--data-dir", str(tmp_path / "agent"), "--url", server.url, "agent", "--node", "node-0"]
    agent += ["--token-file", str(tmp_path / "own"), "--root", str(tmp_path / "root"), "--listen", f"127.0.0.1:{port}"]
    with (
        webhook() as (hook, came),
        running(tmp_path, "agent", *agent),
        watched(server, tmp_path, hook, port) as prometheus,
    ):
        _scraped(prometheus, "penstock_telemetry_pushes_total")
        _scraped(prometheus, "penstock_agent_info")
        with log.open("a") as kernel:
            kernel.write(
                f"3,1,{time.monotonic_ns() // 1000},-;NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus.\n"
            )
        body = push.encode(Agent("node-0").push(time.time()))
        with Client(url=server.url, token=stolen) as thief, pytest.raises(Forbidden):
            thief.transport.request("POST", "/api/v1/telemetry/push", body=body)
        alerts = told_of(came, {"GpuXidFatal", "TokenRefused"})
    labels = alerts["GpuXidFatal"]["labels"]
    assert [labels[key] for key in ("node", "code", "severity", "action")] == ["node-0", "79", "critical", "drain"]
    for name, alert in alerts.items():
        assert alert["annotations"]["runbook_url"].endswith(f"/{name}.md")
    (told,) = server.client.events.list(reason="TokenMisused")
    assert told["actor"] == "agent:another"
    assert server.client.nodes.telemetry("node-0")["agent"] is not None


def _scraped(port: int, metric: str) -> None:
    """Wait until a page that has it was read once."""
    query = f"http://127.0.0.1:{port}/api/v1/query?query={metric}"

    def there() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(query, timeout=10) as answer:
            return bool(json.load(answer)["data"]["result"])
        return False

    until(there, f"Prometheus has not read {metric}", 20)
