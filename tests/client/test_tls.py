"""https: whom the client trusts."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.base.errors import InvalidInput, Unavailable
from penstock.client.client import Client
from penstock.client.transport import Transport
from tests.client.standin import raw_server, says

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
OPENSSL = shutil.which("openssl") or "openssl"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed certificates for names that are not 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ours", "other"):
        subprocess.run(
            [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=penstock.example",
             "-addext", "subjectAltName=DNS:penstock.example"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


def secure(folder: Path, name: str, answer: bytes = OK) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")

    def script(near: socket.socket) -> None:
        with context.wrap_socket(near, server_side=True) as wrapped:
            says(answer)(wrapped)

    return script


def https(url: str) -> str:
    return url.replace("http:", "https:")


def test_a_stranger_is_not_trusted(certificates: Path) -> None:
    with (
        raw_server(secure(certificates, "ours")) as url,
        pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as caught,
    ):
        Transport(https(url), "t").request("GET", "/")
    assert "SSL_CERT_FILE" in caught.value.advice


def test_the_local_servers_own_certificate_is_trusted_and_no_other(certificates: Path, tmp_path: Path) -> None:
    with raw_server(secure(certificates, "ours"), secure(certificates, "other")) as url:
        body = {"url": https(url), "pid": 1, "ca": str(certificates / "ours.pem")}
        (tmp_path / "server.json").write_text(json.dumps(body))
        (tmp_path / "token").write_text("pk_t")
        with Client(data_dir=str(tmp_path)) as client:
            assert client.version() == {}
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                client.version()  # the other server, on the same port


def test_a_chain_file_trusts_its_first_certificate_alone(certificates: Path, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_text((certificates / "ours.pem").read_text() + (certificates / "other.pem").read_text())
    with raw_server(secure(certificates, "other")) as url, pytest.raises(Unavailable, match="VERIFY_FAILED"):
        Transport(https(url), "t", ca=str(chain)).request("GET", "/")


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", tmp_path / "bad.pem"):
        (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
        with pytest.raises(InvalidInput, match="cannot use the certificate"):
            Transport("https://127.0.0.1:1", "t", ca=str(path))


def test_plain_http_on_a_tls_port_is_told(certificates: Path) -> None:
    with raw_server(*[secure(certificates, "ours")] * 3) as url:
        transport = Transport(url, "t", pause=lambda _: None)
        with pytest.raises(Unavailable, match="lost http"):
            transport.request("GET", "/")
