"""One request to a service of a real server, as the trace that its collector is told of."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.serving.onnx.models import doubled
from tests.system.house import House, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.real
def test_gateway_queue_batch_and_compute() -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = self.headers["content-length"]
            bodies.append(self.rfile.read(int(length)) if length else b"".join(self.chunks()))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def chunks(self) -> Iterator[bytes]:
            """Envoy sends its own so."""
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size + 2)[:-2]
            self.rfile.readline()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        with House("--gateway-port", str(port), "--otlp", f"127.0.0.1:{server.server_port}") as house:
            model = doubled(Path(house.data_dir, "model.onnx"))
            os.chmod(model, 0o644)
            house.client.services.create("doubled", {"model": str(model), "resources": {"cpus": 0.5}})
            try:
                until(lambda: answered(port) == [2.0, 4.0, 6.0, 8.0], "no answer")
                spans = until(lambda: found if len(found := runtimes(bodies)) >= 4 else None, "no spans")
                named = {span["name"]: span for span in spans if span["traceId"] == TRACE}
                assert set(named) == {"infer", "queue", "batch", "compute"}
                told = b"".join(bodies)
                until(
                    lambda: bytes.fromhex(named["infer"]["parentSpanId"]) in b"".join(bodies),
                    f"no gateway's span in {told!r}",
                )
            finally:  # what serves outlives the server, and would this test
                house.client.services.delete("doubled")
                until(lambda: not list(house.client.services.list()), "it does not end")
    finally:
        server.shutdown()
        server.server_close()


def answered(port: int) -> list[float] | None:
    """None: not yet."""
    told = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    url = f"http://127.0.0.1:{port}/default/doubled/v2/models/doubled/infer"
    request = urllib.request.Request(url, json.dumps(told).encode(), {"traceparent": f"00-{TRACE}-{SPAN}-01"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[float] = json.loads(answer.read())["outputs"][0]["data"]
            return found
    except OSError:
        return None


def runtimes(bodies: list[bytes]) -> list[dict[str, Any]]:
    """Spans that came as JSON: Envoy sends protobuf."""
    resources = [one for body in bodies if body.startswith(b"{") for one in json.loads(body)["resourceSpans"]]
    return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
