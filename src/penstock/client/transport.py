"""HTTP/1.1 over a plain socket, parsed by httptools: what one short-lived process can afford.

``http.client`` costs 0.11 s of CPU to import on a slow machine and httpx 0.39 s, more than a whole ``penstock run`` may
take (docs/decisions/0002). ``ssl`` is imported for https URLs only. Redirects are not followed.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import WeakSet

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from penstock.base.errors import LEAVES, InvalidInput, PenstockError, Unavailable, from_dict
from penstock.base.text import one_line

if TYPE_CHECKING:
    from ssl import SSLContext

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0  # for a whole answer: a server that drips bytes does not hold its caller for ever
MAX_HEAD = 64 << 10  # bytes of status line and headers
MAX_BODY = 256 << 20  # bytes of an answer that is kept in memory
SEND_CHUNK = 256 << 10
KEEPALIVE_S = 30  # silence before TCP itself asks whether a stream's other end is alive
RETRY_PAUSES_S = (0.05, 0.5)  # before the second and third try of what may be repeated

_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\s]+)(?::(\d{1,5}))?(/[^?#\s]*)?")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")  # RFC 3986, 2.3
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})  # RFC 9110, 9.2.2

Query = Mapping[str, Any]
Body = bytes | Sequence[bytes] | None  # a sequence is sent piece by piece


class Address(NamedTuple):
    """Where a server listens; ``prefix`` is the URL's path without its last slash."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


class Answer(NamedTuple):
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises Unavailable where it is something else (a proxy's page, say)."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Unavailable(
                f"the server's answer is not JSON: {one_line(self.body[:200].decode('latin-1'))}"
            ) from error


class BrokenConnection(Exception):
    """The connection ended or timed out before a whole answer; ``answered`` once a byte of it had come."""

    def __init__(self, why: str, *, answered: bool = False) -> None:
        super().__init__(why)
        self.answered = answered


def parse_url(url: str) -> Address:
    """Splits ``http(s)://host[:port][/prefix]``. Raises InvalidInput."""
    match = _URL.fullmatch(url.strip())
    port = int(match[3]) if match and match[3] else None
    if not match or (port is not None and not 0 < port < 65536):
        raise InvalidInput(f"{one_line(url)!r} is not a server's URL: write http://HOST:PORT or https://HOST[:PORT]")
    scheme = match[1]
    return Address(scheme, match[2].strip("[]"), port or _default_port(scheme), (match[4] or "").rstrip("/"))


def quote(text: str) -> str:
    """Percent-encodes everything but RFC 3986's unreserved characters."""
    return "".join(
        chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape")
    )


def target(path: str, query: Query | None = None) -> str:
    """A request target: None values are left out, sequences repeat, booleans are ``true`` and ``false``."""
    pairs = []
    for name, value in (query or {}).items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if item is not None:
                text = str(item).lower() if isinstance(item, bool) else str(item)
                pairs.append(f"{quote(name)}={quote(text)}")
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


class _Incoming:
    """Collects one response from the parser's callbacks; interim (1xx) ones are passed over."""

    def __init__(self, *, bodiless: bool) -> None:
        self.parser = HttpResponseParser(self)
        self.bodiless = bodiless
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.head_done = False
        self.done = False
        self.seen = 0
        self.status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.head_done = self.status >= 200
        self.done = self.done or (self.head_done and self.bodiless)

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        if self.head_done:
            self.done = True
        else:
            self.headers = {}

    def feed(self, data: bytes) -> None:
        """Raises BrokenConnection where the bytes are no HTTP/1 response."""
        self.seen += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as error:
            raise BrokenConnection("the server switched to another protocol", answered=True) from error
        except HttpParserError as error:
            if not (self.done and self.bodiless):
                raise BrokenConnection(f"what answers there does not speak HTTP ({error})", answered=True) from error
        if not self.head_done and self.seen > MAX_HEAD:
            raise BrokenConnection(f"the answer's headers are longer than {MAX_HEAD} bytes", answered=True)

    def end(self) -> None:
        """The connection's end: the end of the body too, where no length was given. Raises BrokenConnection."""
        framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        if not self.head_done or framed:
            raise BrokenConnection(
                "the server closed the connection in mid-answer" if self.seen else "the server closed the connection",
                answered=self.seen > 0,
            )
        self.done = True

    def take(self) -> bytes:
        body, self.chunks = b"".join(self.chunks), []
        return body


class Connection:
    """One socket to one server; requests follow each other on it."""

    def __init__(self, address: Address, context: SSLContext | None) -> None:
        self._socket = _connect(address, context)
        self.address = address
        self.reusable = True

    def send(self, head: bytes, body: Body) -> None:
        """Sends a request. Raises BrokenConnection."""
        self._socket.settimeout(TIMEOUT_S)
        try:
            if isinstance(body, bytes) and len(body) <= SEND_CHUNK:
                self._socket.sendall(head + body)
                return
            self._socket.sendall(head)
            for chunk in _pieces(body):
                self._socket.sendall(chunk)
        except OSError as error:
            self.reusable = False
            raise BrokenConnection(_why(error)) from error

    def receive(self, incoming: _Incoming, timeout_s: float | None) -> None:
        """Feeds what comes next. Raises BrokenConnection."""
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(SEND_CHUNK)
        except TimeoutError as error:  # no BrokenConnection: asking a stuck server again would only wait as long again
            raise Unavailable(f"{self.address.url} did not answer in time") from error
        except OSError as error:
            raise BrokenConnection(_why(error), answered=incoming.seen > 0) from error
        if data:
            incoming.feed(data)
        else:
            self.reusable = False
            incoming.end()

    def answer(self, method: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Reads one whole response. Raises BrokenConnection."""
        incoming = _Incoming(bodiless=method == "HEAD")
        deadline = time.monotonic() + timeout_s
        size = 0
        chunks: list[bytes] = []
        while not incoming.done:
            self.receive(incoming, max(0.001, deadline - time.monotonic()))
            chunks.append(incoming.take())
            size += len(chunks[-1])
            if size > MAX_BODY:
                raise BrokenConnection(f"the answer is longer than {MAX_BODY} bytes", answered=True)
        if incoming.headers.get("connection", "").lower() == "close":
            self.reusable = False
        return Answer(incoming.status, incoming.headers, b"".join(chunks))

    def stale(self) -> bool:
        """True when the server closed (or spoke out of turn) since the last answer."""
        if not self.reusable:
            return True
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:  # SSLWantReadError is an OSError of TLS's own
            return type(error).__name__ != "SSLWantReadError"
        return True

    def stop(self) -> None:
        """Ends it from another thread: a ``recv`` that waits returns at once."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it was closed already

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        """A thread's connection goes with the thread."""
        if hasattr(self, "_socket"):
            self.close()


class Streaming:
    """A response that is read as it comes. Iterate it once; closing it ends the connection."""

    def __init__(self, connection: Connection, incoming: _Incoming) -> None:
        self._connection = connection
        self._incoming = incoming
        self.status = incoming.status
        self.headers = incoming.headers

    def __iter__(self) -> Iterator[bytes]:
        """Raises Unavailable where the server goes away before the end."""
        while True:
            if chunk := self._incoming.take():
                yield chunk
            if self._incoming.done:
                return
            try:
                self._connection.receive(self._incoming, None)
            except BrokenConnection as error:
                raise Unavailable(f"the stream from {self._connection.address.url} broke off: {error}") from error

    def read(self) -> bytes:
        return b"".join(self)

    def stop(self) -> None:
        self._connection.stop()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Transport:
    """Requests to one server. Each thread has a connection of its own; ``close`` closes all.

    ``ca`` is a PEM file with the one certificate to trust instead of the system's. ``pause`` waits between tries.
    """

    def __init__(
        self, url: str, token: str | None = None, *, ca: str | None = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.address = parse_url(url)
        self.token = token
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise InvalidInput("the token holds characters that no token has", hint="Copy it again, without line ends.")
        self.pause = pause
        self.locate: Callable[[], tuple[str, str | None, str | None] | None] = _nowhere_else
        self._context = tls_context(ca) if self.address.scheme == "https" else None
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: WeakSet[Connection] = WeakSet()

    def find_again(self) -> None:
        """Turns to where ``locate`` says (URL, token, certificate) that the server is now, if it says anything."""
        place = self.locate()
        if place is None:
            return
        url, self.token, ca = place
        address = parse_url(url)
        self._context = tls_context(ca) if address.scheme == "https" else None
        if address != self.address:
            self.address = address
            self._local = threading.local()

    @property
    def tls(self) -> SSLContext | None:
        return self._context

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Answer:
        """One request, one answer of status < 400. Raises the PenstockError that the server describes, or Unavailable.

        What may be repeated (by its method, by an ``Idempotency-Key``, or because ``repeatable`` says so) is tried up to
        three times when a connection breaks; anything else once.
        """
        head = self._head(method, target(path, query), body, headers or {})
        if repeatable is None:
            repeatable = method in _REPEATABLE or "Idempotency-Key" in (headers or {})
        pauses = iter(RETRY_PAUSES_S if repeatable else ())
        while True:
            try:
                return check(self._exchange(method, head, body))
            except BrokenConnection as error:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise Unavailable(_broken(self.address, error, may_repeat=repeatable)) from error
                self.pause(pause_s)

    def stream(self, path: str, *, query: Query | None = None, headers: Mapping[str, str] | None = None) -> Streaming:
        """GETs what is sent as it is made, on a connection of its own. Raises as ``request`` does."""
        connection = Connection(self.address, self._context)
        incoming = _Incoming(bodiless=False)
        try:
            connection.send(self._head("GET", target(path, query), None, headers or {}), None)
            while not incoming.head_done:
                connection.receive(incoming, TIMEOUT_S)
            streaming = Streaming(connection, incoming)
            if incoming.status >= 300:
                check(Answer(incoming.status, incoming.headers, streaming.read()))
        except BrokenConnection as error:
            connection.close()
            raise Unavailable(_broken(self.address, error, may_repeat=True)) from error
        except BaseException:
            connection.close()
            raise
        return streaming

    def close(self) -> None:
        with self._lock:
            for connection in list(self._open):
                connection.close()
            self._open.clear()
        self._local = threading.local()

    def _exchange(self, method: str, head: bytes, body: Body) -> Answer:
        connection = self._connection()
        try:
            try:
                connection.send(head, body)
            except BrokenConnection:
                return self._early_answer(connection, method)
            return connection.answer(method)
        except BaseException:
            connection.reusable = False
            raise
        finally:
            if not connection.reusable:
                self._forget(connection)

    @staticmethod
    def _early_answer(connection: Connection, method: str) -> Answer:
        """A server may refuse (413, say) and close before it has read everything: its answer is what matters."""
        answer = connection.answer(method, CONNECT_TIMEOUT_S)
        connection.reusable = False
        return answer

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and connection.stale():
            self._forget(connection)
            connection = None
        if connection is None:
            connection = self._local.connection = Connection(self.address, self._context)
            with self._lock:
                self._open.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock:
            self._open.discard(connection)

    def _head(self, method: str, target_: str, body: Body, headers: Mapping[str, str]) -> bytes:
        lines = [
            f"{method} {self.address.prefix}{target_} HTTP/1.1",
            f"Host: {self.address.authority}",
            "User-Agent: penstock",
            "Accept: */*",
        ]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        lines += [f"{name}: {_plain(value)}" for name, value in headers.items()]
        if body is not None or method in {"POST", "PUT"}:
            length = len(body) if isinstance(body, bytes) else sum(map(len, body or ()))
            lines.append(f"Content-Length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def check(answer: Answer) -> Answer:
    """Raises what a problem+json answer describes; other answers of status 300 and more become Unavailable."""
    if answer.status < 300:
        return answer
    try:
        problem = json.loads(answer.body) if answer.body else {}
    except ValueError:
        problem = {}
    if isinstance(problem, dict) and isinstance(problem.get("code"), str):
        raise from_dict(problem)
    shown = one_line(answer.body[:300].decode("utf-8", "replace"))
    kind = next((leaf for leaf in LEAVES if leaf.status == answer.status), PenstockError)
    raise kind(
        f"the server answered {answer.status}" + (f": {shown}" if shown else ""),
        hint="Something that is no Penstock server (a proxy?) may answer there: see `penstock doctor`.",
    )


def tls_context(ca: str | None) -> SSLContext:
    """Verifies names and chains against the system's certificates; or, with ``ca``, that the server has the key of
    the first certificate in that PEM file, and nothing else: the local server's own, whatever name it was made for.
    """
    import ssl  # noqa: PLC0415 - only https pays for it

    if ca is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        with open(ca, encoding="ascii") as file:
            leaf, end, _ = file.read().partition("-----END CERTIFICATE-----")
        context.load_verify_locations(cadata=leaf + end)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise InvalidInput(f"cannot use the certificate in {ca}: {error}") from error
    return context


def _connect(address: Address, context: SSLContext | None) -> socket.socket:
    """Tries each address of the host in turn. Raises Unavailable: nothing was sent, and nothing is tried again."""
    host: Any = address.host.encode("ascii") if address.host.isascii() else address.host  # bytes spare the idna codec
    error: OSError | None = None
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM):
            try:
                return _open(socket.socket(family, kind, protocol), place, address.host, context)
            except OSError as failed:
                error = failed
    except OSError as unresolved:
        error = unresolved
    raise unreachable(address, error) from error


def unreachable(address: Address, error: Exception | None) -> Unavailable:
    """Nobody answers there, or nobody whose certificate is known."""
    doubted = type(error).__name__ == "SSLCertVerificationError"
    hint = "If you know its certificate: SSL_CERT_FILE=cert.pem, or run where the server's data folder is."
    return Unavailable(f"no server answers at {address.url}: {_why(error)}", hint=hint if doubted else None)


def _open(sock: socket.socket, place: Any, host: str, context: SSLContext | None) -> socket.socket:
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(place)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        return sock if context is None else context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _nowhere_else() -> None:
    """For a server whose address was given: it is where it was."""


def _pieces(body: Body) -> Iterator[bytes]:
    if isinstance(body, bytes):
        view = memoryview(body)
        for start in range(0, len(view), SEND_CHUNK):
            yield bytes(view[start : start + SEND_CHUNK])
    elif body is not None:
        yield from body


def _plain(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise InvalidInput(f"{one_line(value)!r} cannot be sent in a header: use printable ASCII")
    return value


def _why(error: Exception | None) -> str:
    if error is None:
        return "it has no address"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _broken(address: Address, error: BrokenConnection, *, may_repeat: bool) -> str:
    outcome = "" if may_repeat else "; what was asked may or may not have been done"
    return f"lost {address.url}: {error}{outcome}"
