"""``penstock shell`` and ``exec`` on a real pseudo-terminal: raw mode, window sizes, exit codes, and a terminal put back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from websockets.sync.server import ServerConnection

from tests.client.test_session import session_server

PATIENCE_S = 20.0


class Terminal:
    """A pseudo-terminal with the command line inside."""

    def __init__(self, url: str, *argv: str, cols: int = 100, rows: int = 30) -> None:
        self.near, far = pty.openpty()
        self.resize(cols, rows)
        self.before = termios.tcgetattr(far)
        code = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from penstock.app import main; "
        code += f"sys.exit(main({list(argv)!r}))"
        environ = {"PATH": os.environ["PATH"], "PENSTOCK_URL": url, "PENSTOCK_TOKEN": "pk_t", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=far, stdout=far, stderr=far, env=environ, start_new_session=True,
        )  # fmt: skip
        self.far = far
        self.shown = b""

    def resize(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.near, data)

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.near], [], [], 0.1)[0]:
                self.shown += os.read(self.near, 65536)

    def finish(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    def close(self) -> None:
        os.close(self.near)
        os.close(self.far)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_raw(terminal: Terminal) -> bool:
    return not termios.tcgetattr(terminal.far)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_a_shell_passes_every_key_and_size_on_and_puts_the_terminal_back() -> None:
    seen: list[Any] = []

    def play(wire: ServerConnection) -> None:
        assert wire.request is not None
        seen.append((wire.request.path.partition("?")[2], json.loads(wire.recv())))
        wire.send(b"0welcome\r\n$ ")
        for frame in wire:
            seen.append(frame)
            if frame == b"0\x04":
                wire.send(b"3" + json.dumps({"exit_code": 5}).encode())
                return

    with session_server(play) as url:
        terminal = Terminal(url, "shell", "nb")
        terminal.wait_for(b"welcome")
        assert is_raw(terminal)
        terminal.type(b"\x03")  # Ctrl-C is the job's, not ours
        until(lambda: b"0\x03" in seen)
        terminal.resize(120, 40)
        until(lambda: any(frame[:1] == b"1" for frame in seen[1:]))
        terminal.type(b"\x04")
        assert terminal.finish() == 5
        assert termios.tcgetattr(terminal.far) == terminal.before
        terminal.close()
    query, first = seen[0]
    assert query == "tty=1&cols=100&rows=30"
    assert first["command"][0] == "/bin/sh"
    resized = next(frame for frame in seen[1:] if frame[:1] == b"1")
    assert json.loads(resized[1:]) == {"cols": 120, "rows": 40}


def test_the_terminal_is_put_back_when_the_session_breaks_off() -> None:
    def play(wire: ServerConnection) -> None:
        wire.recv()
        wire.send(b"0hi")
        wire.close(4403, "not any more")

    with session_server(play) as url:
        terminal = Terminal(url, "shell", "nb")
        terminal.wait_for(b"not any more")
        assert terminal.finish() == 3
        assert termios.tcgetattr(terminal.far) == terminal.before
        terminal.close()


def piped(url: str, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    code = f"import sys; from penstock.app import main; sys.exit(main({list(argv)!r}))"
    environ = {"PATH": os.environ["PATH"], "PENSTOCK_URL": url, "PENSTOCK_TOKEN": "pk_t"}
    return subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, env=environ, timeout=30, check=False
    )


def test_exec_in_a_pipe() -> None:
    def play(wire: ServerConnection) -> None:
        assert json.loads(wire.recv())["command"] == ["tr", "a-z", "A-Z"]
        data = b""
        while (frame := wire.recv()) != b"2":
            assert isinstance(frame, bytes)
            data += frame[1:]
        wire.send(b"0" + data.upper())
        wire.send(b"3" + json.dumps({"exit_code": 9}).encode())

    with session_server(play) as url:
        done = piped(url, "exec", "nb", "--", "tr", "a-z", "A-Z", data=b"hello\n" * 20_000)
    assert (done.returncode, done.stdout, done.stderr) == (9, b"HELLO\n" * 20_000, b"")


def test_a_command_that_ends_before_its_input_does() -> None:
    def play(wire: ServerConnection) -> None:
        wire.recv()
        wire.send(b"3" + json.dumps({"exit_code": 0}).encode())

    read, write = os.pipe()  # an input that never ends
    try:
        with session_server(play) as url:
            code = "import sys; from penstock.app import main; sys.exit(main(['exec', 'nb', '--', 'true']))"
            environ = {"PATH": os.environ["PATH"], "PENSTOCK_URL": url, "PENSTOCK_TOKEN": "pk_t"}
            done = subprocess.run([sys.executable, "-c", code], stdin=read, env=environ, timeout=30, check=False)
        assert done.returncode == 0
    finally:
        os.close(read)
        os.close(write)


def test_a_shell_needs_a_terminal() -> None:
    done = piped("http://127.0.0.1:1", "shell", "nb")
    assert done.returncode == 2
    assert b"penstock exec nb -- COMMAND" in done.stderr


def test_ports_that_are_none() -> None:
    for text in ("x", "0", "70000", "1:", "a:1", "1:2:3"):
        assert piped("http://127.0.0.1:1", "port-forward", "nb", text).returncode == 2, text
