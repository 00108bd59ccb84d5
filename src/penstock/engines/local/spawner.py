"""The spawner: a lean process, forked before the server imports anything heavy, that gives every attempt a supervisor.

A supervisor whose attempt ended plainly says so and waits a little for the next; else one is forked.

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
import select
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
_HANDED = 64 << 10  # frames up to this size fit a socket's buffer, so that handing one over never blocks
_SPARE = 16  # free supervisors that are kept
_SPARE_S = 2.0  # and for how long, when nothing happens
_ATTEMPTS = 100  # that one supervisor sees to: what leaks, leaks no further
_COLLECT_EVERY = 10
_ALL_FDS = 1 << 20


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

    def dismiss(self) -> None:
        """It is not needed, and ends."""
        self.channel.close()
        for fd in self.notes:
            os.close(fd)
        os.waitpid(self.pid, 0)


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
    while nursery.turn():
        pass


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
        self._live: dict[int, bytes | None] = {}  # what each sees to; None: nothing
        self._links: dict[int, tuple[int, socket.socket]] = {}  # by descriptor: pid and the line to it
        self._free: list[int] = []  # descriptors of those that see to nothing
        self._poll = select.epoll()
        self._poll.register(channel.fileno(), select.EPOLLIN)

    def turn(self) -> bool:
        """See to what comes next; False when the server has gone."""
        events = self._poll.poll(_SPARE_S if self._free else -1)
        if not events:
            self._dismiss(0)
        frames = False
        for fd, _ in events:
            if fd == self._channel.fileno():
                frames = True
            else:
                self._hear(fd)
        if not frames:
            return True
        frame = _receive(self._channel)
        if frame is None:
            return False
        self.start(frame)
        return True

    def _hear(self, fd: int) -> None:
        """A supervisor has ended its attempt and is free, or it is gone."""
        pid, link = self._links[fd]
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        with contextlib.suppress(ConnectionError):
            if link.recv(1):
                if pid in self._live:
                    self._live[pid] = None
                self._free.append(fd)
                fd = -1
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if fd >= 0:
            self._drop(fd)
        self._dismiss(_SPARE)

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._links.pop(fd)[1].close()
        if fd in self._free:
            self._free.remove(fd)

    def _dismiss(self, keep: int) -> None:
        """Let go of free supervisors beyond ``keep``: they end when their line does."""
        for fd in self._free[keep:]:
            self._drop(fd)

    def start(self, frame: bytes) -> None:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if not self._hand_over(frame):
            self._fork(frame)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _hand_over(self, frame: bytes) -> bool:
        """Give it to a free supervisor. One that dies before it has read it all leaves a run folder that nobody claimed,
        or one that nothing was started in; it is buried as every supervisor that dies at work.
        """
        while self._free and len(frame) <= _HANDED:
            fd = self._free.pop()
            pid, link = self._links[fd]
            if pid not in self._live:
                continue
            try:
                link.sendall(_LENGTH.pack(len(frame)) + frame)
            except OSError:
                continue
            self._live[pid] = frame
            return True
        return False

    def _fork(self, frame: bytes) -> None:
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError as error:  # no process is free: said, so that it can be tried again
            launch = json.loads(frame)
            message = f"cannot start a supervisor: {error.strerror}"
            Notes(self._notes_fd, launch["attempt_id"]).send("refused", patient=True, message=message)
            ours.close()
        else:
            if pid == 0:
                self._become_supervisor(frame, theirs)
            self._live[pid] = frame
            self._links[ours.fileno()] = (pid, ours)
            self._poll.register(ours.fileno(), select.EPOLLIN)
        theirs.close()

    def _become_supervisor(self, frame: bytes, line: socket.socket) -> None:
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._let_go(keep={line.fileno(), self._notes_fd})
            os.setsid()
            for turn in range(1, _ATTEMPTS + 1):
                if not supervise(frame, self._notes_fd, self._layout) or turn == _ATTEMPTS:
                    break
                if turn % _COLLECT_EVERY == 0:
                    gc.collect()
                found = _next(line)
                if found is None:
                    break
                frame = found
            code = 0
        except BaseException:  # the edge of a process: what escapes is shown, and the attempt is found lost
            _write_traceback(json.loads(frame)["run_dir"])
        finally:
            os._exit(code)

    def _let_go(self, keep: set[int]) -> None:
        """Close what is the spawner's: the server's channel, and the lines to other supervisors."""
        low = 3
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, _ALL_FDS)
        for _, link in self._links.values():
            link.detach()
        self._channel.detach()
        self._live.clear()
        self._links.clear()

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


def _next(line: socket.socket) -> bytes | None:
    """Say that we are free, and wait. None when we are not wanted any more."""
    try:
        line.send(b"1")
    except OSError:
        return None
    return _receive(line)


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
