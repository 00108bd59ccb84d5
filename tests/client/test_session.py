"""Sessions against a WebSocket server that speaks the frames of docs/internals.md."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from penstock.base.errors import Conflict, Forbidden, NotFound, Unavailable
from penstock.client.client import Client


@contextmanager
def session_server(play: Callable[[ServerConnection], None], refuse: tuple[int, Any] | None = None) -> Iterator[str]:
    def check(connection: ServerConnection, request: Any) -> Any:
        if refuse is None:
            return None
        response = connection.respond(HTTPStatus(refuse[0]), json.dumps(refuse[1]))
        response.headers["Content-Type"] = "application/problem+json"
        return response

    with serve(play, "127.0.0.1", 0, process_request=check, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(5)


def test_a_command_gets_its_input_and_tells_its_output_and_exit() -> None:
    seen: list[Any] = []

    def play(wire: ServerConnection) -> None:
        assert wire.request is not None
        seen.append((wire.request.path, wire.request.headers["Authorization"], json.loads(wire.recv())))
        while (frame := wire.recv()) != b"2":
            seen.append(frame)
        wire.send(b"0" + b"HELLO\n")
        wire.send(b"3" + json.dumps({"exit_code": 7}).encode())

    with session_server(play) as url, Client(url, "pk_t") as client:
        with client.jobs.exec("digits", ["tr", "a-z", "A-Z"], size=(100, 30)) as terminal:
            terminal.write(b"hello\n")
            terminal.resize(120, 40)
            terminal.close_input()
            assert b"".join(terminal) == b"HELLO\n"
        assert terminal.exit_code == 7
    path = "/api/v1/projects/default/jobs/digits/exec?tty=0&cols=100&rows=30"
    assert seen[0] == (path, "Bearer pk_t", {"command": ["tr", "a-z", "A-Z"]})
    assert seen[1] == b"0hello\n"
    assert json.loads(seen[2][1:]) == {"cols": 120, "rows": 40}


def test_a_refusal_before_the_handshake_is_the_servers_own_words() -> None:
    refusal = (404, {"code": "NotFound", "message": "there is no job 'x'", "details": []})
    with (
        session_server(lambda _: None, refusal) as url,
        Client(url, "t") as client,
        pytest.raises(NotFound, match="there is no job 'x'"),
    ):
        client.jobs.exec("x", ["true"])


def test_a_refusal_after_the_handshake_is_told_by_the_close_code() -> None:
    def play(wire: ServerConnection) -> None:
        wire.recv()
        wire.close(4403, "only its owner may go inside")

    with session_server(play) as url, Client(url, "t") as client, client.jobs.exec("x", ["true"]) as terminal:
        with pytest.raises(Forbidden, match="only its owner"):
            list(terminal)
        terminal.write(b"is dropped")


def test_an_error_frame_is_raised() -> None:
    def play(wire: ServerConnection) -> None:
        wire.recv()
        wire.send(b"4" + json.dumps({"code": "Conflict", "message": "it ended"}).encode())
        wire.recv()

    with (
        session_server(play) as url,
        Client(url, "t") as client,
        client.jobs.exec("x", ["true"]) as terminal,
        pytest.raises(Conflict, match="it ended"),
    ):
        list(terminal)


def test_an_end_without_an_exit_code_is_no_success() -> None:
    def play(wire: ServerConnection) -> None:
        wire.recv()
        wire.send(b"0half")

    with (
        session_server(play) as url,
        Client(url, "t") as client,
        client.jobs.exec("x", ["true"]) as terminal,
        pytest.raises(Unavailable),
    ):
        list(terminal)


def test_nobody_listens(free_port: int) -> None:
    with (
        Client(f"http://127.0.0.1:{free_port}", "t") as client,
        pytest.raises(Unavailable, match="no server answers"),
    ):
        client.jobs.exec("x", ["true"])


def echo(wire: ServerConnection) -> None:
    """The far end of a forwarded port: says back what it is told."""
    for frame in wire:
        if frame == b"2":
            return
        wire.send(frame)


def test_forwarded_connections_are_each_their_own() -> None:
    with session_server(echo) as url, Client(url, "t") as client, client.jobs.forward("nb", 8888) as forward:
        thread = threading.Thread(target=forward.serve)
        thread.start()
        near = [socket.create_connection(("127.0.0.1", forward.port), 5) for _ in range(3)]
        for number, one in enumerate(near):
            one.sendall(b"%d" % number * 100_000)
        for number, one in enumerate(near):
            one.shutdown(socket.SHUT_WR)
            got = b""
            while data := one.recv(65536):
                got += data
            assert got == b"%d" % number * 100_000
            one.close()
        forward.close()
        thread.join(5)
        assert not thread.is_alive()


def test_a_port_that_nobody_listens_on_is_told_and_ends_that_connection_alone() -> None:
    refusal = (409, {"code": "Conflict", "message": "nothing listens on port 9", "details": []})
    told: list[str] = []
    with (
        session_server(echo, refusal) as url,
        Client(url, "t") as client,
        client.jobs.forward("nb", 9, tell=told.append) as forward,
    ):
        thread = threading.Thread(target=forward.serve, daemon=True)
        thread.start()
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", forward.port), 5) as near:
                near.settimeout(10)
                assert near.recv(10) == b""
    thread.join(5)
    assert told == ["nothing listens on port 9"] * 2


def test_a_local_port_that_is_taken_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Client("http://127.0.0.1:1", "t") as client,
        pytest.raises(Unavailable, match="cannot listen"),
    ):
        client.jobs.forward("nb", 8888, taken.getsockname()[1])
