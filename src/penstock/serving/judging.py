"""Asks a service's own function (judge.py) whether two answers agree. It may crash, hang, print or lie: this side goes on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from penstock.serving.orders import Function
from penstock.serving.reply import Reply, Unreadable, unpacked

ANSWER_S = 10.0  # for one pair of answers, the first one's imports included
BACKOFF_FIRST_S, BACKOFF_LIMIT_S = 0.5, 60.0
LINE = 1 << 20
_JUDGE = str(Path(__file__).with_name("judge.py"))
# A child that becomes another user by ``user=`` is forked, and in a fork gRPC's threads may crash before the program begins (one of
# three died of signal 6 or 11); without it the child is a vfork's, where none of gRPC runs. So a program becomes that user.
_BECOME = """
import os, sys
user, group, *words = sys.argv[1:]
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.execvp(words[0], words)
"""


class Unjudged(Exception):
    """It did not say. The message tells why."""


class Judge:
    """One function's process, started when first asked, again after it failed, then later and later."""

    def __init__(self, function: Function, answer_s: float = ANSWER_S) -> None:
        self.function = function
        self._answer_s = answer_s
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._again_at = 0.0
        self._wait = 0.0
        self._why = ""

    async def ask(self, stable: Reply, candidate: Reply) -> str:
        """Empty when they agree, otherwise how they differ. Raises Unjudged."""
        try:
            line = json.dumps({"stable": _told(stable), "candidate": _told(candidate)}).encode() + b"\n"
        except Unreadable as error:
            raise Unjudged(str(error)) from error
        async with self._lock:
            if time.monotonic() < self._again_at:
                raise Unjudged(self._why)
            try:
                async with asyncio.timeout(self._answer_s):
                    said = await self._answer(line)
            except (OSError, ValueError, KeyError, TypeError) as error:  # TimeoutError is an OSError
                await self.close()
                hung = isinstance(error, TimeoutError)
                self._why = f"{self.function.target} " + (
                    f"took more than {self._answer_s:g} s" if hung else str(error)
                )
                self._wait = min(max(BACKOFF_FIRST_S, self._wait * 2), BACKOFF_LIMIT_S)
                self._again_at = time.monotonic() + self._wait
                raise Unjudged(self._why) from error
            self._wait = 0.0
            return said

    async def _answer(self, line: bytes) -> str:
        if self._process is None:
            self._process = await self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended: its status tells more than a broken pipe
            process.stdin.write(line)
            await process.stdin.drain()
        said = await process.stdout.readline()
        if not said:
            code = await process.wait()
            raise ValueError(f"ended with {'signal ' + str(-code) if code < 0 else 'status ' + str(code)}")
        body = json.loads(said)
        return "" if body["agrees"] is True else str(body["why"])[:1000] or "they differ"

    async def _started(self) -> asyncio.subprocess.Process:
        function = self.function
        if os.geteuid() == 0 and (function.user is None or function.user[0] == 0):
            raise ValueError("is not run as root: the service's owner has no Unix user here")
        words = [function.python, _JUDGE, function.target]
        if os.geteuid() == 0 and function.user is not None:
            words = [sys.executable, "-I", "-S", "-c", _BECOME, *map(str, function.user), *words]
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=function.folder,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            limit=LINE,
        )

    async def close(self) -> None:
        """End it, and what it started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()


def _told(reply: Reply) -> dict[str, object]:
    kind = reply.headers.get("content-type", "")
    return {"content_type": kind, "status": reply.status, "body": base64.b64encode(unpacked(reply)).decode()}
