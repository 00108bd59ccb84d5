"""S3 servers of others on a free port of this machine, behind a door that can refuse, hang, or say what was asked.

``rclone serve s3`` is a real one, which keeps its objects as files and takes no notice of conditions on a put; moto's
keeps them in memory, and such conditions.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]
KEY: Final = ("who", "secret")
_NOT_PASSED_ON: Final = frozenset({"connection", "transfer-encoding", "keep-alive"})


class S3Server:
    """``faults`` is consumed one a request: ``503`` answers so, a float waits so many seconds, None serves.

    ``always`` holds for every request whose method it names.
    """

    def __init__(self, kind: Literal["rclone", "moto"], directory: Path) -> None:
        self.faults: deque[int | float | None] = deque()
        self.always: dict[str, int | float] = {}
        self.asked: list[tuple[str, str]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._store = self._rclone(directory) if kind == "rclone" else DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._empty()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def puts(self) -> list[str]:
        return [path for method, path in self.asked if method == "PUT"]

    def _empty(self) -> None:
        """moto's objects outlive their server."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY[0],
            aws_secret_access_key=KEY[1],
            region_name="us-east-1",
        )
        for item in client.list_buckets()["Buckets"]:
            for there in client.list_objects_v2(Bucket=item["Name"]).get("Contents", ()):
                client.delete_object(Bucket=item["Name"], Key=there["Key"])
        client.create_bucket(Bucket="models")
        client.close()
        self.asked.clear()

    def _rclone(self, directory: Path) -> App:
        directory.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._process = subprocess.Popen(
            [
                Path(sys.executable).with_name("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}",
                "--auth-key", ",".join(KEY), "--config", directory / ".none", directory,
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < until, "rclone did not start"
                time.sleep(0.02)
        return lambda environ, start: _pass_on(port, environ, start)

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.asked.append((method, environ["PATH_INFO"]))
        fault = self.always.get(method) or (self.faults.popleft() if self.faults else None)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            start(f"{fault} Slow Down", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        answer: Iterable[bytes] = self._store(environ, start)
        return answer


def _pass_on(port: int, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    names = {name.removeprefix("HTTP_").replace("_", "-"): name for name in environ if name.startswith("HTTP_")}
    headers = {name: environ[key] for name, key in names.items() if name.lower() not in _NOT_PASSED_ON}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        upstream.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        told = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NOT_PASSED_ON]
        start(f"{answer.status} {answer.reason}", told)
        return [data]
    finally:
        upstream.close()
