"""Servers for the client's tests, over real sockets: one that answers from a table, and one that plays raw bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: Any = None  # bytes as they are; a list of bytes in chunks; anything else as JSON
    headers: dict[str, str] = field(default_factory=dict)


def problem(status: int, code: str, message: str, **more: Any) -> Reply:
    body = {"code": code, "message": message, "hint": "Do it right.", "details": [], **more}
    return Reply(status, body, {"Content-Type": "application/problem+json"})


Answerer = Callable[[Request], Reply]


class StandIn:
    """``answers`` maps "METHOD /path" to a reply or to a function of the request; ``requests`` is what came."""

    def __init__(self) -> None:
        self.answers: dict[str, Reply | Answerer] = {}
        self.requests: list[Request] = []
        self.connections = 0
        owner = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_request: Any) -> None:
                """A client may hang up whenever it has seen enough; a traceback would land in what the test captures."""

            def process_request(self, request: Any, client_address: Any) -> None:
                owner.connections += 1
                super().process_request(request, client_address)

        self._server = Server(("127.0.0.1", 0), _http(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def seen(self, line: str) -> list[Request]:
        return [request for request in self.requests if f"{request.method} {request.path}" == line]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _http(owner: StandIn) -> type[BaseHTTPRequestHandler]:
    class Exchange(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, path, query, headers, body)
            owner.requests.append(request)
            answer = owner.answers.get(f"{self.command} {path}")
            reply = answer(request) if callable(answer) else answer
            self._send(reply if reply is not None else problem(404, "NotFound", f"no {path}"))

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _any  # noqa: N815 - the names that http.server calls

        def _send(self, reply: Reply) -> None:
            body = reply.body
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if isinstance(body, list):
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in body:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.write(b"0\r\n\r\n")
                return
            data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *words: Any) -> None:
            """Requests are in ``owner.requests``."""

    return Exchange


@contextmanager
def raw_server(*scripts: Callable[[socket.socket], None]) -> Iterator[str]:
    """One connection per script, in order; each is closed when its script returns. Yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def play() -> None:
        for script in scripts:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            near.settimeout(20)
            with near:
                try:
                    script(near)
                except OSError:
                    continue  # the client went away first

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        thread.join(0.2)


def read_request(near: socket.socket) -> bytes:
    """Everything up to the end of the head."""
    data = b""
    while b"\r\n\r\n" not in data and (more := near.recv(65536)):
        data += more
    return data


def says(answer: bytes) -> Callable[[socket.socket], None]:
    """A script: reads a request, sends these bytes, closes."""

    def script(near: socket.socket) -> None:
        read_request(near)
        near.sendall(answer)

    return script


def sse(*events: tuple[str, Any, str]) -> list[bytes]:
    """(event, data, id) as chunks of a stream."""
    return [f"event: {event}\nid: {id_}\ndata: {json.dumps(data)}\n\n".encode() for event, data, id_ in events]


def job(name: str = "digits", phase: str = "Running", **status: Any) -> dict[str, Any]:
    """A job as the server writes it."""
    return {
        "kind": "Job",
        "project": "default",
        "name": name,
        "id": "01JD0000000000000000000000",
        "generation": 1,
        "user": "admin",
        "created_at": "2026-11-22T03:40:32.123Z",
        "labels": {},
        "spec": {"command": ["python", "train.py"], "launcher": "torchrun", "nodes": 1, "procs": 2},
        "status": {
            "phase": phase,
            "reason": "Started",
            "message": "",
            "attempt": 1,
            "restarts": 0,
            "nodes": ["node-0"],
            "exit_code": None,
            "signal": None,
            "progress": None,
        }
        | status,
    }
