"""The transport against servers that are malformed, slow, or go away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import Conflict, InvalidInput, NotFound, PenstockError, TooLarge, Unavailable
from penstock.client import transport as module
from penstock.client.transport import Address, Transport, parse_url, quote, target
from tests.client.standin import Reply, StandIn, problem, raw_server, read_request, says

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def transport(url: str) -> Transport:
    return Transport(url, "pk_t", pause=lambda _: None)


@pytest.fixture
def near(server: StandIn) -> Iterator[Transport]:
    made = transport(server.url)
    yield made
    made.close()


def closes(near: socket.socket) -> None:
    read_request(near)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:7070", Address("http", "127.0.0.1", 7070, "")),
        ("https://penstock.example/base/", Address("https", "penstock.example", 443, "/base")),
        ("http://[::1]:80", Address("http", "::1", 80, "")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse_url(url) == address
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "url",
    ["", "penstock", "ftp://x", "http://", "http://u:p@h", "http://h:0", "http://h:65536", "http://h/ x", "http://h?q"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        parse_url(url)


def test_targets() -> None:
    query = {"a": None, "follow": True, "phase": ["x y", "z"], "n": 3}
    assert target("/p", query) == "/p?follow=true&phase=x%20y&phase=z&n=3"
    assert quote("../a b\u00e9\r\n") == "..%2Fa%20b%C3%A9%0D%0A"


@given(st.text())
def test_a_quoted_name_is_one_segment(name: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in name):
        return
    assert all(c.isascii() and (c.isalnum() or c in "-._~%") for c in quote(name))


def test_requests_share_a_connection_and_show_the_token(server: StandIn, near: Transport) -> None:
    server.answers["GET /a"] = Reply(body={"x": 1})
    for _ in range(5):
        assert near.request("GET", "/a").json() == {"x": 1}
    assert server.connections == 1
    assert server.requests[0].headers["authorization"] == "Bearer pk_t"


def test_each_thread_has_its_own_connection(server: StandIn, near: Transport) -> None:
    server.answers["GET /a"] = Reply(body={})
    ready = threading.Barrier(4)

    def ask() -> None:
        ready.wait(10)
        for _ in range(20):
            near.request("GET", "/a")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(server.requests) == 80
    assert server.connections == 4


def test_the_servers_problem_is_raised(server: StandIn, near: Transport) -> None:
    details = [{"path": "spec.nodes", "message": "too many", "line": 3}]
    server.answers["GET /a"] = problem(409, "Conflict", "changed", details=details)
    with pytest.raises(Conflict, match="changed") as caught:
        near.request("GET", "/a")
    assert caught.value.advice == "Do it right."
    assert str(caught.value.details[0]) == "line 3: spec.nodes: too many"


@pytest.mark.parametrize("status", [404, 413, 302, 500, 418])
def test_an_answer_that_is_no_problem_is_told_by_its_status(server: StandIn, near: Transport, status: int) -> None:
    server.answers["GET /a"] = Reply(status, b"<h1>\x1b[31mproxy</h1>")
    kind = {404: NotFound, 413: TooLarge}.get(status, PenstockError)
    with pytest.raises(kind, match=str(status)) as caught:
        near.request("GET", "/a")
    assert "\x1b" not in str(caught.value)


def test_head_has_no_body(server: StandIn, near: Transport) -> None:
    server.answers["HEAD /a"] = Reply(200, b"12345")
    server.answers["GET /a"] = Reply(body={})
    assert near.request("HEAD", "/a").body == b""
    near.request("GET", "/a")
    with pytest.raises(NotFound):
        near.request("HEAD", "/b")


def test_nobody_listens(free_port: int) -> None:
    with pytest.raises(Unavailable, match=f"no server answers at http://127.0.0.1:{free_port}"):
        transport(f"http://127.0.0.1:{free_port}").request("GET", "/")


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.invalid"):
        transport("http://nowhere.invalid").request("GET", "/")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\xff\x00" * 50,
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nX: y",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"",
    ],
)
def test_malformed_answers(answer: bytes) -> None:
    with raw_server(*[says(answer)] * 3) as url, pytest.raises(Unavailable, match="lost http"):
        transport(url).request("GET", "/")


@given(st.binary(max_size=400))
def test_no_bytes_of_a_server_surprise_the_parser(answer: bytes) -> None:
    incoming = module._Incoming(bodiless=False)
    try:
        incoming.feed(answer)
        if not incoming.done:
            incoming.end()
    except module.BrokenConnection:
        return
    assert incoming.status >= 200


def test_headers_without_end() -> None:
    def script(near: socket.socket) -> None:
        read_request(near)
        near.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            near.sendall(b"X: " + b"y" * 1000 + b"\r\n")

    with raw_server(script, script, script) as url, pytest.raises(Unavailable, match="headers are longer"):
        transport(url).request("GET", "/")


def test_a_body_larger_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY", 1000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
    with raw_server(*[says(answer)] * 3) as url, pytest.raises(Unavailable, match="longer than 1000"):
        transport(url).request("GET", "/")


def test_a_body_that_ends_with_the_connection() -> None:
    with raw_server(says(b"HTTP/1.1 200 OK\r\n\r\n{}")) as url:
        assert transport(url).request("GET", "/").json() == {}


def test_interim_answers_are_passed_over() -> None:
    with raw_server(says(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)) as url:
        answer = transport(url).request("GET", "/")
    assert (answer.status, answer.body, "link" in answer.headers) == (200, b"{}", False)


def test_a_server_that_drips_does_not_hold_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(module.Connection.answer, "__defaults__", (0.3,))
    stop = threading.Event()

    def script(near: socket.socket) -> None:
        read_request(near)
        near.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not stop.wait(0.02):
            near.sendall(b"x")

    with raw_server(script) as url:
        with pytest.raises(Unavailable, match="did not answer in time"):
            transport(url).request("GET", "/")
        stop.set()


def test_a_connection_that_the_server_closed_meanwhile_is_taken_up_again() -> None:
    with raw_server(says(OK), says(OK)) as url:
        ours = transport(url)
        assert ours.request("POST", "/").status == 200
        assert ours.request("POST", "/").status == 200  # not repeatable, and yet: the end was seen before sending


@pytest.mark.parametrize("how", ["GET", "key", "repeatable"])
def test_what_may_be_repeated_is(how: str) -> None:
    calls: dict[str, Callable[[Transport], int]] = {
        "GET": lambda t: t.request("GET", "/").status,
        "key": lambda t: t.request("POST", "/", body=b"{}", headers={"Idempotency-Key": "k"}).status,
        "repeatable": lambda t: t.request("POST", "/", body=b"{}", repeatable=True).status,
    }
    with raw_server(closes, closes, says(OK)) as url:
        assert calls[how](transport(url)) == 200


def test_what_may_not_be_repeated_is_not() -> None:
    with raw_server(closes, says(OK)) as url, pytest.raises(Unavailable, match="may or may not have been done"):
        transport(url).request("POST", "/", body=b"{}")


def test_an_early_refusal_is_heard() -> None:
    """A server may answer 413 and close without reading what is still being sent."""

    def script(near: socket.socket) -> None:
        read_request(near)
        body = b'{"code": "TooLarge", "message": "much too large"}'
        near.sendall(b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        near.shutdown(socket.SHUT_WR)
        while near.recv(1 << 20):
            pass

    with raw_server(script) as url, pytest.raises(TooLarge, match="much too large"):
        transport(url).request("PUT", "/", body=[b"x" * 65536] * 200)


def test_bodies_in_pieces(server: StandIn, near: Transport) -> None:
    server.answers["PUT /a"] = lambda request: Reply(body={"length": len(request.body)})
    assert near.request("PUT", "/a", body=[b"ab", b"cde"]).json() == {"length": 5}
    assert near.request("PUT", "/a", body=b"x" * 1_000_000).json() == {"length": 1_000_000}
    assert near.request("PUT", "/a").json() == {"length": 0}


def test_streams_come_as_they_are_sent(server: StandIn, near: Transport) -> None:
    server.answers["GET /s"] = Reply(body=[b"one", b"two"])
    with near.stream("/s") as stream:
        assert stream.read() == b"onetwo"
    with pytest.raises(NotFound):
        near.stream("/none")


def test_a_stream_that_breaks_off_says_so() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    got: list[bytes] = []
    with (
        raw_server(says(answer)) as url,
        transport(url).stream("/") as stream,
        pytest.raises(Unavailable, match="broke off"),
    ):
        got.extend(stream)
    assert got == [b"abc"]


@pytest.mark.parametrize("token", ["a b", "a\nb", "\u00e9", ""])
def test_tokens_cannot_smuggle_headers(token: str) -> None:
    with pytest.raises(InvalidInput):
        Transport("http://127.0.0.1:1", token)


def test_header_values_cannot_smuggle_headers(near: Transport) -> None:
    with pytest.raises(InvalidInput):
        near.request("GET", "/", headers={"X": "a\r\nHost: evil"})
