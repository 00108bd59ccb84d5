"""A program that outlives the server which started it, and is adopted by the next: the activator, the comparator. (Envoy hands its
sockets on when it is replaced, and so has a keeper of its own: gateway/process.py.)

Beside its log lies a record of who it is. A pid alone may be somebody else's by now, so the record has its start time and
the boot as well. A pidfd tells of its death at once, also of one that this server never started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engines.local import procs
from penstock.engines.local.kernel import name_process

log = logging.getLogger("penstock")

FORMAT = 1
LOG_BYTES = 8 << 20  # a log that is longer when its program starts is put aside as NAME.log.1
BACKOFF_FIRST_S = 0.1
BACKOFF_LIMIT_S = 10.0
SETTLED_S = 10.0  # up for so long: the next start waits for nothing


def told(module: str, title: str) -> argparse.Namespace:
    """What such a program of ours is started with: ``host``, ``port``, ``folder``. Names the process, and begins its log."""
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    found = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    name_process(title)
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """Who runs, as its file says it."""

    pid: int
    start_time: int
    boot_id: str
    argv: tuple[str, ...]

    @property
    def alive(self) -> bool:
        return self.boot_id == procs.boot_id() and procs.start_time(self.pid) == self.start_time


class Detached:
    """One such program. ``folder`` is the server's own (0700): NAME.json, NAME.log and NAME.port lie there."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._children: set[int] = set()

    @property
    def log(self) -> Path:
        return self._folder / f"{self.name}.log"

    def running(self) -> Record | None:
        """Who runs now; None: nobody. One that is stopped or hangs counts as running."""
        try:
            body: dict[str, Any] = json.loads((self._folder / f"{self.name}.json").read_text())
            found = Record(body["pid"], body["start_time"], body["boot_id"], tuple(body["argv"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        self._reap()
        return found if found.alive else None

    def port(self, host: str) -> int:
        """A port of its own that stays the same when it starts again: others have been told of it. Free when it was chosen."""
        kept = self._folder / f"{self.name}.port"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(kept.read_text())
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            number = int(probe.getsockname()[1])
        self._put(kept, str(number))
        return number

    def give_up_port(self, host: str) -> None:
        """Where somebody else has taken its port while it did not run (after a boot, say): `port` chooses another one then."""
        if self.running() is not None:
            return
        kept = self._folder / f"{self.name}.port"
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, self.port(host)))
            except OSError:
                kept.unlink(missing_ok=True)

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> Record:
        """Run it, in a session of its own: no signal to the server's terminal or group reaches it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        output = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                dict(env),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(output)
        self._children.add(pid)
        found = Record(pid, procs.start_time(pid) or 0, procs.boot_id(), tuple(argv))
        body = {
            "format": FORMAT,
            "pid": pid,
            "start_time": found.start_time,
            "boot_id": found.boot_id,
            "argv": list(argv),
        }
        self._put(self._folder / f"{self.name}.json", json.dumps(body))
        return found

    async def keep(
        self, argv: Sequence[str], env: Mapping[str, str], told: Callable[[Record], None] | None = None
    ) -> None:
        """See to it that it runs, until cancelled: it then lives on. ``told``: of each process that was adopted or started.
        One that was started with other arguments (an upgrade) is asked to end and its successor started beside it.
        """
        wait = 0.0
        while True:
            found = self.running()
            if found is not None and found.argv != tuple(argv):
                self.signal(signal.SIGTERM)
                found = None
            if found is None:
                await asyncio.sleep(wait)
                found = self.start(argv, env)
            if told is not None:
                told(found)
            began = time.monotonic()
            await ended(found)
            lasted = time.monotonic() - began
            wait = BACKOFF_FIRST_S if lasted > SETTLED_S or not wait else min(wait * 2, BACKOFF_LIMIT_S)
            self._reap()
            log.warning("%s (pid %d) has ended; its log is %s; it starts again", self.name, found.pid, self.log)

    def signal(self, number: int) -> bool:
        """Whether there was somebody to be sent it."""
        found = self.running()
        if found is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, number)
        return True

    async def stop(self, grace: float) -> None:
        """Ask it to end, then end it. Nothing is left when this returns."""
        found = self.running()
        if found is not None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended(found), grace)
            if found.alive:
                self.signal(signal.SIGKILL)
                await ended(found)
        self._reap()
        (self._folder / f"{self.name}.json").unlink(missing_ok=True)

    def _reap(self) -> None:
        for pid in tuple(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(pid)

    def _put(self, path: Path, text: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text)
        draft.replace(path)


async def ended(record: Record) -> None:
    """Returns once that process is no more."""
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    try:
        if record.alive:
            loop.add_reader(fd, lambda: None if gone.done() else gone.set_result(None))
            await gone
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def connected(folder: Path, name: str) -> socket.socket:
    """To a Unix socket, by way of the folder's descriptor: its path may have but 107 bytes."""
    home = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(f"/proc/self/fd/{home}/{name}")
        found.setblocking(False)
        return found
    except OSError:
        found.close()
        raise
    finally:
        os.close(home)
