"""A real Prometheus and Alertmanager over a real Penstock server: a stolen token's push becomes an alert at a webhook."""

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
from tests.system.house import House, house, until
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


def test_a_stolen_token_rings_the_bell(server: House, tmp_path: Path) -> None:
    prometheus, manager, cluster = free_ports(3)
    (tmp_path / "token").write_text(server.token)
    node = next(iter(server.client.nodes.list()))["name"]
    stolen = server.client.tokens.create(node="another", name="agent")["token"]
    with webhook() as (hook, came):
        common = ["telemetry", "render"]
        scrape = ["--alertmanager", f"127.0.0.1:{manager}", "--token-file", str(tmp_path / "token"), "--every", "1"]
        server.cli(*common, "prometheus", "--out", str(tmp_path), *scrape)
        server.cli(*common, "alertmanager", "--out", str(tmp_path), "--webhook", hook, "--wait", "0")
        listen = (
            f"--web.listen-address=127.0.0.1:{prometheus}",
            "--storage.tsdb.path=data",
            "--config.file=prometheus.yml",
        )
        alone = (f"--web.listen-address=127.0.0.1:{manager}", f"--cluster.listen-address=127.0.0.1:{cluster}")
        with (
            running(
                tmp_path,
                "alertmanager",
                "prometheus-alertmanager",
                *alone,
                "--config.file=alertmanager.yml",
                "--storage.path=am",
            ),
            running(tmp_path, "prometheus", "prometheus", *listen),
        ):
            _scraped(prometheus)
            body = push.encode(Agent(node).push(time.time()))
            with Client(url=server.url, token=stolen) as thief, pytest.raises(Forbidden):
                thief.transport.request("POST", "/api/v1/telemetry/push", body=body)
            began = time.monotonic()
            while (alert := came(20.0)["alerts"][0])["labels"]["alertname"] != "TokenRefused":
                pass
            assert time.monotonic() - began < 20
            assert alert["labels"]["severity"] == "warning"
            assert alert["annotations"]["runbook_url"].endswith("/TokenRefused.md")
    (told,) = server.client.events.list(reason="TokenMisused")
    assert told["actor"] == "agent:another"


def _scraped(port: int) -> None:
    """Wait until the server's page was read once with the count that will grow."""
    query = f"http://127.0.0.1:{port}/api/v1/query?query=penstock_telemetry_pushes_total"

    def there() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(query, timeout=10) as answer:
            return bool(json.load(answer)["data"]["result"])
        return False

    until(there, "Prometheus has not read the server's page", 20)
