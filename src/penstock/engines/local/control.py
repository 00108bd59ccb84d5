"""``control.sock``, the supervisor's end: one JSON line a request, descriptors passed along with the answer.

Only root and the server's own user may ask (SO_PEERCRED). ``exec`` and ``port`` hand the descriptors over, so that what
people type and see never goes through the supervisor; the connection stays to tell the exit code, and its end hangs up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import termios
import time
from typing import Any, ClassVar, Protocol

from penstock.engines.local import child, folder, procs
from penstock.engines.local.ending import Ending, split
from penstock.engines.local.loop import Loop
from penstock.engines.local.notes import Notes
from penstock.engines.local.ranks import Ranks
from penstock.engines.local.setup import Setup

_REQUEST_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")
_BUSY_CORES = 0.05  # a job that uses more than this is not idle, though nobody types
_TICKS_S = os.sysconf("SC_CLK_TCK")


class Attempt(Protocol):
    """What is asked for, of the attempt that is being supervised."""

    launch: dict[str, Any]
    notes: Notes
    loop: Loop
    started_at: float | None
    ending: Ending
    setup: Setup
    ranks: Ranks

    def stop(self, reason: str, message: str, grace_s: float) -> None: ...
    def lose(self, node: str) -> None: ...
    def tell_status(self) -> None: ...


class Refusal(Exception):
    """What the asker is told; ``missing`` when what was named is not there."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class Connection:
    """One asker. A request is a line; the first descriptor sent with it is kept for it."""

    def __init__(self, control: Control, link: socket.socket) -> None:
        self.link = link
        self.fds: list[int] = []
        self._control = control
        self._data = b""
        link.setblocking(False)
        control.attempt.loop.watch(link.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.link, 1 << 16, 4)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self.fds += fds
        self._data += data
        if not data or len(self._data) > _REQUEST_BYTES:
            self._control.hang_up(self)
            return
        while b"\n" in self._data:
            line, _, self._data = self._data.partition(b"\n")
            self._control.serve(self, line)

    def answer(self, fds: tuple[int, ...] = (), **fields: Any) -> None:
        data = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError):
            socket.send_fds(self.link, [data], fds) if fds else self.link.send(data)

    def close(self) -> None:
        self._control.attempt.loop.forget(self.link.fileno())
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self.link.close()


class Control:
    """Listens while the attempt runs."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.asked = False  # anybody connected at all
        self._listener: socket.socket | None = None
        self._sessions: dict[int, Connection] = {}  # by the pid of the session's process
        self._touched_at = time.monotonic()
        self._idle_s = 0.0
        self._ticks = 0
        self._looked_at = 0.0

    def listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(folder.CONTROL)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self.attempt.loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """No new askers; open sessions hear of their exit while the job is ended."""
        if self._listener is not None:
            self.attempt.loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(folder.CONTROL)

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError):
            link, _ = self._listener.accept()
            self.asked = True
            uid = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
            if uid in (0, os.geteuid()):
                Connection(self, link)
            else:
                link.close()

    def serve(self, connection: Connection, line: bytes) -> None:
        try:
            request = json.loads(line)
            operation = self._operations[request["op"]]
        except (ValueError, KeyError, TypeError):
            connection.answer(error="no such request")
            return
        try:
            operation(self, connection, request)
        except Refusal as refusal:
            connection.answer(error=str(refusal), missing=refusal.missing)
        except (KeyError, TypeError, ValueError, OSError) as error:
            connection.answer(error=f"{request['op']} failed: {error}")

    def hang_up(self, connection: Connection) -> None:
        """The asker went: a session's process gets SIGHUP, as when a terminal is closed."""
        for pid, other in list(self._sessions.items()):
            if other is connection:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGHUP)
                    os.killpg(pid, signal.SIGCONT)
                del self._sessions[pid]
        connection.close()

    def exited(self, pid: int, status: int) -> None:
        connection = self._sessions.pop(pid, None)
        if connection is not None:
            code, number = split(status)
            connection.answer(exit_code=code if number is None else 128 + number)
            connection.close()

    # -- requests

    def _status(self, connection: Connection, _request: dict[str, Any]) -> None:
        connection.answer(ok=True, pid=os.getpid(), started_at=self.attempt.started_at)

    def _stop(self, connection: Connection, request: dict[str, Any]) -> None:
        reason, message, grace_s = str(request["reason"]), str(request.get("message", "")), float(request["grace_s"])
        connection.answer(ok=True)
        self.attempt.stop(reason, message, grace_s)

    def _lose(self, connection: Connection, request: dict[str, Any]) -> None:
        connection.answer(ok=True)
        self.attempt.lose(str(request["node"]))

    def _notes(self, connection: Connection, _request: dict[str, Any]) -> None:
        self.attempt.notes.replace(connection.fds.pop())
        connection.answer(ok=True)
        self.attempt.tell_status()

    def _touch(self, _connection: Connection, _request: dict[str, Any]) -> None:
        self._touched_at = time.monotonic()

    def _port(self, connection: Connection, request: dict[str, Any]) -> None:
        """Connect to a port on which a process of the job listens; nobody else's may be reached."""
        port = int(request["port"])
        inodes = procs.listeners(port)
        if not inodes or not procs.owns_socket(self.attempt.ranks.members(), inodes):
            other = "; another program of this machine does" if inodes else ""
            raise Refusal(f"nothing in the job listens on port {port} (yet){other}")
        link = _connect(port)
        connection.answer((link.fileno(),), ok=True)
        link.close()
        self._touched_at = time.monotonic()

    def _exec(self, connection: Connection, request: dict[str, Any]) -> None:
        if self.attempt.ending.term_sent:
            raise Refusal("the job is ending")
        index = self._group(request.get("node"))
        rendered = self.attempt.launch["rendered"][index]
        env = {**rendered["env"], **rendered["workers"][0]["env"]}
        ours: tuple[int, ...]
        if request.get("tty"):
            master, slave = os.openpty()
            _resize(master, int(request.get("cols", 80)), int(request.get("rows", 24)))
            env["TERM"] = "xterm-256color"
            theirs, ours = (slave, slave), (master,)
        else:
            stdin, writer = os.pipe2(os.O_CLOEXEC)
            reader, out = os.pipe2(os.O_CLOEXEC)
            theirs, ours = (stdin, out), (writer, reader)
        try:
            pid = self._start(index, [str(word) for word in request["command"]], env, theirs, tty=len(ours) == 1)
            self._sessions[pid] = connection
            connection.answer(ours, ok=True)
        finally:
            for fd in {*ours, *theirs}:
                os.close(fd)
        self._touched_at = time.monotonic()

    def _start(self, index: int, argv: list[str], env: dict[str, str], ends: tuple[int, int], *, tty: bool) -> int:
        start = self.attempt.setup.start(index, argv, env, ends[1])
        start.stdin, start.tty = ends[0], tty
        for fd in set(ends):
            self.attempt.setup.give(fd)
        errors, told = os.pipe2(os.O_CLOEXEC)
        pid = child.spawn(start, told)
        os.close(told)
        with open(errors, "rb") as file:
            text = file.read()
        if text:
            raise _not_started(argv[0], json.loads(text))
        return pid

    def _group(self, node: str | None) -> int:
        if node is None:
            return 0
        found = self.attempt.ranks.groups_on(node)
        if not found:
            raise Refusal(f"the job has no rank on node {node}")
        return found[0]

    # -- idleness

    def watch_idleness(self, timeout_s: float) -> None:
        self._idle_s = timeout_s
        self._look(timeout_s)

    def _look(self, after_s: float) -> None:
        self._ticks, self._looked_at = procs.cpu_ticks(self.attempt.ranks.members()), time.monotonic()
        self.attempt.loop.at("idle", after_s, self._check_idle)

    def _check_idle(self) -> None:
        now = time.monotonic()
        used = procs.cpu_ticks(self.attempt.ranks.members()) - self._ticks
        if used / _TICKS_S > _BUSY_CORES * (now - self._looked_at):
            self._touched_at = now
        quiet = now - max(self._touched_at, self.attempt.ranks.last_output())
        if quiet >= self._idle_s:
            message = f"nobody used it for {self._idle_s:g} s"
            self.attempt.stop("IdleTimeout", message, self.attempt.launch["grace_s"])
        else:
            self._look(self._idle_s - quiet)

    _operations: ClassVar = {
        "status": _status,
        "stop": _stop,
        "lose": _lose,
        "notes": _notes,
        "touch": _touch,
        "port": _port,
        "exec": _exec,
    }


def _not_started(program: str, failure: dict[str, str]) -> Refusal:
    missing = failure["reason"] == "CommandNotFound"
    if missing and failure["message"].startswith(f"{program!r} was not found"):  # not: its interpreter was not
        return Refusal(f"{program!r} was not found in the job's environment", missing=True)
    return Refusal(failure["message"], missing=missing)


def _resize(terminal: int, cols: int, rows: int) -> None:
    size = struct.pack("HHHH", max(1, min(rows, 10_000)), max(1, min(cols, 10_000)), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def _connect(port: int) -> socket.socket:
    last: OSError | None = None
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        link = socket.socket(family, socket.SOCK_STREAM)
        link.settimeout(5)
        try:
            link.connect((host, port))
        except OSError as error:
            last = error
            link.close()
        else:
            return link
    raise Refusal(f"port {port} takes no connection: {last}")
