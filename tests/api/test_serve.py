"""The socket: what is refused before a server starts, what a connection may send, what the certificate does."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from penstock.api import serve
from penstock.base.errors import Conflict, InvalidInput
from penstock.base.settings import Settings
from tests.api.rig import served


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu.example.org", ""])
def test_a_reachable_host_needs_tls_or_a_word(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        serve.check_exposure(Settings("/d", host=host))
    assert "--tls-cert" in caught.value.advice and "--insecure" in caught.value.advice
    serve.check_exposure(Settings("/d", host=host, insecure=True))
    serve.check_exposure(Settings("/d", host=host, tls_cert="c", tls_key="k"))


def test_loopback_needs_neither_and_a_certificate_needs_its_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        serve.check_exposure(Settings("/d", host=host))
    with pytest.raises(InvalidInput):
        serve.check_exposure(Settings("/d", tls_cert="c"))


def test_a_taken_port_names_who_holds_it() -> None:
    with closing(serve.bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(Conflict) as caught:
            serve.bind("127.0.0.1", port)
        assert f"pid {os.getpid()} (" in str(caught.value) and str(port) in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70000)])
def test_an_address_that_is_not_ours(host: str, port: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        serve.bind(host, port)
    assert ("--port" if port else "--host") in caught.value.advice


def read_all(sock: socket.socket) -> bytes:
    sock.settimeout(20)
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionError:
        pass
    return found


def test_endless_headers_are_cut_off(tmp_path: Path) -> None:
    with served(tmp_path) as (server, _rig):
        for flood in (b"X-A: " + b"a" * 60_000 + b"\r\n", b"a" * 60_000, b"X-B: b\r\n" * 8000):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
                sent = 0
                try:
                    while sent < 50_000_000:
                        sent += sock.send(flood)
                except OSError:
                    pass
                assert sent < 50_000_000
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (serve.HEADER_BYTES + 1))
            assert read_all(sock).startswith(b"HTTP/1.1 431 ")


def test_headers_that_never_end_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADER_S", 0.2)
    with served(tmp_path) as (server, rig):
        for start in (b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: local"):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(start)
                begun = time.monotonic()
                assert read_all(sock) == b"" and time.monotonic() - begun < 10
        # A slow body, a kept connection and a large body are something else.
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as kept:
            path = "/api/v1/projects/p1/things/there/blob"
            for _ in range(2):
                headers = {"Authorization": f"Bearer {rig.tokens['ann']}", "Content-Length": "300000"}
                kept.request("PUT", path, headers=headers)
                for _ in range(3):
                    time.sleep(0.15)
                    kept.send(b"x" * 100_000)
                answer = kept.getresponse()
                assert (answer.status, answer.read()) == (200, b'{"size":300000}')


def test_garbage_is_answered_with_400(tmp_path: Path) -> None:
    with served(tmp_path) as (server, _rig):
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            b"GET / HTTP/9.9\r\n\r\n",
            b"NONSENSE\r\n\r\n",
            b"\0" * 100,
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(garbage)
                assert read_all(sock).startswith(b"HTTP/1.1 400 ")
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as good:
            good.request("GET", "/healthz")
            assert good.getresponse().status == 200


def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(["openssl", *words.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    with served(tmp_path / "data", tls_cert=str(cert), tls_key=str(key)) as (server, rig):
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with closing(http.client.HTTPSConnection("localhost", server.port, context=context, timeout=20)) as safe:
            safe.request("GET", "/api/v1/whoami", headers={"Authorization": f"Bearer {rig.tokens['ann']}"})
            assert safe.getresponse().status == 200
    with (
        pytest.raises(InvalidInput, match="certificate"),
        served(tmp_path / "d2", tls_cert=str(key), tls_key=str(cert)),
    ):
        pass


def test_stopping_is_quick_and_frees_the_port(tmp_path: Path) -> None:
    with (
        served(tmp_path) as (server, _rig),
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as kept,
    ):
        kept.request("GET", "/healthz")
        assert kept.getresponse().read() == b'{"status":"ok"}'
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    with closing(serve.bind("127.0.0.1", server.port)):
        pass


def test_a_server_that_never_started_stops(tmp_path: Path) -> None:
    async def test() -> None:
        from tests.api.rig import rigged  # noqa: PLC0415 - beside the only use

        async with rigged(tmp_path) as rig:
            server = serve.HttpServer(rig.app, serve.bind("127.0.0.1", 0), rig.settings)
            await server.stop()

    asyncio.run(test())
