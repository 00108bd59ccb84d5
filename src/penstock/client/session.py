"""Sessions inside a running job, over WebSocket: a command with or without a terminal, and forwarded ports.

The frames are those of docs/internals.md, "Sessions": the first byte names the channel.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from penstock.base.errors import LEAVES, PenstockError, Unavailable, from_dict
from penstock.client.transport import CONNECT_TIMEOUT_S, Answer, check, target, unreachable

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from penstock.client.transport import Transport

STDIN, RESIZE, CLOSE_STDIN = b"0", b"1", b"2"
MAX_FRAME = 1 << 20
CHUNK = 32 << 10


class Terminal:
    """A command that runs inside a job. One thread iterates its output while another may write."""

    def __init__(self, wire: ClientConnection) -> None:
        self._wire = wire
        self.exit_code: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Its output until it ends; ``exit_code`` is known then. Raises what the server tells, or Unavailable."""
        try:
            for frame in self._wire:
                data = frame.encode() if isinstance(frame, str) else frame
                if data[:1] == b"3":
                    self.exit_code = _exit_code(data[1:])
                    return
                if data[:1] == b"4":
                    raise from_dict(_json(data[1:]))
                yield data[1:]
        except ConnectionClosed as error:
            raise _lost(error) from error
        if self.exit_code is None:
            raise Unavailable("the server ended the session before the command had ended")

    def write(self, data: bytes) -> None:
        self._send(STDIN + data)

    def resize(self, cols: int, rows: int) -> None:
        self._send(RESIZE + json.dumps({"cols": cols, "rows": rows}).encode())

    def close_input(self) -> None:
        self._send(CLOSE_STDIN)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, frame: bytes) -> None:
        try:
            self._wire.send(frame)
        except ConnectionClosed:
            return  # whoever reads the output learns why


def open_terminal(transport: Transport, path: str, query: Mapping[str, Any], command: Sequence[str]) -> Terminal:
    wire = open_socket(transport, path, query)
    wire.send(json.dumps({"command": list(command)}))
    return Terminal(wire)


def open_socket(transport: Transport, path: str, query: Mapping[str, Any]) -> ClientConnection:
    """A WebSocket to the server. Raises what the server's refusal describes, or Unavailable."""
    address = transport.address
    scheme = "wss" if address.scheme == "https" else "ws"
    url = f"{scheme}://{address.authority}{address.prefix}{target(path, query)}"
    headers = {"Authorization": f"Bearer {transport.token}"} if transport.token else {}
    try:
        opening = connect(
            url,
            additional_headers=headers,
            ssl=transport.tls,
            open_timeout=CONNECT_TIMEOUT_S * 2,
            max_size=MAX_FRAME,
            compression=None,
            user_agent_header="penstock",
            proxy=None,
        )
        return ExitStack().enter_context(opening)  # closed by whoever it is given to
    except InvalidStatus as error:
        answer = error.response
        check(Answer(answer.status_code, {}, bytes(answer.body or b"")))
        raise Unavailable(f"{address.url} answered {answer.status_code} where a session was to open") from error
    except (OSError, InvalidHandshake) as error:  # TimeoutError is an OSError
        raise unreachable(address, error) from error


class Forward:
    """A port of this machine whose connections lead into a job. ``port`` is the local one; ``close`` ends all."""

    def __init__(
        self,
        transport: Transport,
        path: str,
        query: Mapping[str, Any],
        local: int,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self._open = partial(open_socket, transport, path, query)
        self._tell = tell or _untold
        self._listener = _listen(local)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()

    def serve(self) -> None:
        """Connects whoever comes, until ``close``. A connection that fails is told and does not end the others."""
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        except OSError:
            self._tell("")
        self._listener.close()
        with self._lock:
            live, self._live = self._live, set()
        for near in live:
            _shut(near)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _carry(self, near: socket.socket) -> None:
        with self._lock:
            self._live.add(near)
        try:
            far = self._open()
            threading.Thread(target=_inward, args=(near, far), daemon=True).start()
            _outward(far, near)
        except PenstockError as error:
            self._tell(str(error))
        finally:
            with self._lock:
                self._live.discard(near)
            _shut(near)
            near.close()


def _untold(words: str) -> None:
    """For who does not want to know."""


def _inward(near: socket.socket, far: ClientConnection) -> None:
    """From the local socket to the job, until either ends."""
    try:
        while data := near.recv(CHUNK):
            far.send(STDIN + data)
        far.send(CLOSE_STDIN)
    except OSError:
        far.close()
    except ConnectionClosed:
        return


def _outward(far: ClientConnection, near: socket.socket) -> None:
    """From the job to the local socket. Raises what the server tells."""
    try:
        for frame in far:
            data = frame.encode() if isinstance(frame, str) else frame
            if data[:1] == b"4":
                raise from_dict(_json(data[1:]))
            if data[:1] == b"0":
                near.sendall(data[1:])
    except OSError:
        return  # the local side went away
    except ConnectionClosed as error:
        raise _lost(error) from error
    finally:
        far.close()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise Unavailable(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}", hint="Name another local port: LOCAL:REMOTE."
        ) from error


def _shut(near: socket.socket) -> None:
    try:
        near.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _exit_code(data: bytes) -> int:
    code = _json(data).get("exit_code")
    return code if isinstance(code, int) else 1


def _json(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise Unavailable("the server sent a frame that is not JSON") from error
    return body if isinstance(body, dict) else {}


def _lost(error: ConnectionClosed) -> PenstockError:
    """A refusal after the handshake is a close with the code 4000 + HTTP status (docs/internals.md)."""
    code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (0, "")
    kind = next((leaf for leaf in LEAVES if leaf.status == code - 4000), Unavailable)
    return kind(reason or "the session broke off: the connection was lost")
