"""The spawner: a lean process, forked before the server imports anything heavy, that forks a supervisor per attempt.

``Spawner.fork()`` is the first thing that ``penstock up`` does. Messages to it are 4 bytes of length (big endian) and a
Launch as JSON; nothing comes back but notes (see notes.py) through one pipe. It ends when the server does; supervisors
stay. It is a subreaper too: what a killed supervisor leaves behind becomes its child, and is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import struct
import sys
import time

from penstock.engines.local import cgroups, folder, kernel, procs
from penstock.engines.local.cgroups import Cage, Layout
from penstock.engines.local.notes import Notes
from penstock.engines.local.supervisor import supervise

_LENGTH = struct.Struct(">I")
_NOTES_BYTES = 1 << 20  # fits pipe-max-size's default
MAX_FRAME = 16 << 20


class Spawner:
    """The server's hold on it: a socket to send launches, the notes pipe's two ends, the process."""

    def __init__(self, pid: int, channel: socket.socket, notes: tuple[int, int]) -> None:
        self.pid = pid
        self.channel = channel
        self.notes = notes

    @classmethod
    def fork(cls) -> Spawner:
        """Call it before anything is imported, started or opened that a supervisor should not carry for ever."""
        notes = open_notes()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                os.close(notes[0])
                serve(theirs, notes[1])
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        return cls(pid, ours, notes)

    @classmethod
    def start(cls, notes: tuple[int, int]) -> Spawner:
        """A new one for a running server, which is too heavy to fork: a fresh interpreter with the same notes pipe."""
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), notes[1])
        argv = [sys.executable, "-I", "-m", __name__, str(fds[0]), str(fds[1])]
        for fd in fds:
            os.set_inheritable(fd, True)
        try:
            pid = os.posix_spawn(sys.executable, argv, {"PATH": os.defpath})
        finally:
            os.set_inheritable(notes[1], False)
            theirs.close()
        return cls(pid, ours, notes)


def open_notes() -> tuple[int, int]:
    """The notes pipe, non-blocking on both ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _NOTES_BYTES)
    return reader, writer


def serve(channel: socket.socket, notes_fd: int) -> None:
    """The spawner's life: fork a supervisor for every frame, until the server closes the channel."""
    os.setsid()
    kernel.hear_and_ignore()
    _leave_starter(keep={channel.fileno(), notes_fd})
    os.umask(0o066)  # folders 0711: a job's user may pass through to what is its own
    kernel.become_subreaper()
    kernel.name_process("penstock-spawn")
    nursery = Nursery(channel, notes_fd, cgroups.discover())
    signal.signal(signal.SIGCHLD, nursery.reap)
    gc.collect()
    gc.freeze()
    gc.disable()
    channel.setblocking(True)
    while (frame := _receive(channel)) is not None:
        nursery.start(frame)


def _leave_starter(keep: set[int]) -> None:
    """Hold nothing of whoever started the server: a reader of its output must see the end when the server is gone."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _receive(channel: socket.socket) -> bytes | None:
    head = _exactly(channel, _LENGTH.size)
    if head is None:
        return None
    (size,) = _LENGTH.unpack(head)
    return _exactly(channel, size) if size <= MAX_FRAME else None


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            data = channel.recv(min(size - len(parts), 1 << 20))
        except ConnectionError:
            return None
        if not data:
            return None
        parts += data
    return bytes(parts)


class Nursery:
    """The supervisors that this spawner has forked and that still live."""

    def __init__(self, channel: socket.socket, notes_fd: int, layout: Layout) -> None:
        self._channel = channel
        self._notes_fd = notes_fd
        self._layout = layout
        self._live: dict[int, bytes] = {}

    def start(self, frame: bytes) -> None:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
        except OSError as error:  # no process is free: said, so that it can be tried again
            launch = json.loads(frame)
            message = f"cannot start a supervisor: {error.strerror}"
            Notes(self._notes_fd, launch["attempt_id"]).send("refused", patient=True, message=message)
            pid = -1
        if pid == 0:
            self._become_supervisor(frame)
        elif pid > 0:
            self._live[pid] = frame
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _become_supervisor(self, frame: bytes) -> None:
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._channel.close()
            self._live.clear()
            os.setsid()
            supervise(frame, self._notes_fd, self._layout)
            code = 0
        except BaseException:  # the edge of a process: what escapes is shown, and the attempt is found lost
            _write_traceback(json.loads(frame)["run_dir"])
        finally:
            os._exit(code)

    def reap(self, _number: int = 0, _frame: object = None) -> None:
        """After SIGCHLD. A supervisor that did not end well leaves its job behind: end that too, then tell."""
        for frame in self._collect():
            self._bury(json.loads(frame))

    def _collect(self) -> list[bytes]:
        """Reap whatever has died; the frames of supervisors that did not end well."""
        lost: list[bytes] = []
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                frame = self._live.pop(ended[0], None)
                if frame is not None and ended[1] != 0:
                    lost.append(frame)
        return lost

    def _bury(self, launch: dict[str, object]) -> None:
        attempt_id = str(launch["attempt_id"])
        cage = Cage(self._layout, attempt_id).attach()
        cage.kill()
        more: list[bytes] = []
        while procs.kill_below(os.getpid(), spare=self._live):
            time.sleep(0.001)
            more += self._collect()
        cage.remove()
        Notes(self._notes_fd, attempt_id).send("gone", patient=True)
        for frame in more:
            self._bury(json.loads(frame))


def _write_traceback(run_dir: str) -> None:
    import traceback  # noqa: PLC0415 - only for a supervisor that fails

    with contextlib.suppress(OSError), open(f"{run_dir}/{folder.TRACEBACK}", "a", encoding="utf-8") as file:
        traceback.print_exc(file=file)


def main() -> None:
    """``python -I -m penstock.engines.local.spawner CHANNEL NOTES``: a new spawner for a server that lost its own."""
    channel, notes = int(sys.argv[1]), int(sys.argv[2])
    for fd in (channel, notes):
        os.set_inheritable(fd, False)
    serve(socket.socket(fileno=channel), notes)


if __name__ == "__main__":
    main()
