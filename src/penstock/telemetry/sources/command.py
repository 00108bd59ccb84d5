"""A program whose output is read: bounded in time and size, and never started twice while it hangs."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence

from penstock.base.text import one_line

MAX_OUTPUT = 4 << 20
TIMEOUT_S = 20.0


class Command:
    def __init__(self, words: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        self.words = tuple(words)
        self.timeout_s = timeout_s
        self._stuck: subprocess.Popen[bytes] | None = None

    def run(self) -> tuple[str, str]:
        """Its output, and what was wrong ("" where nothing was)."""
        if self._stuck is not None:
            if self._stuck.poll() is None:  # killed, and still there: in the kernel, where no signal reaches it
                return "", f"{self.words[0]} has not answered and cannot be ended"
            self._stuck = None
        try:
            process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            return "", f"{self.words[0]}: {error.strerror}"
        assert process.stdout is not None
        with process.stdout as pipe:
            output, problem = self._output(pipe.fileno())
        if problem:
            process.kill()
        try:
            code = process.wait(0.5 if problem else self.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            self._stuck = process
            return output, problem or f"{self.words[0]} closed its output and did not end"
        if not problem and code != 0:
            problem = f"{self.words[0]} ended with {code}: {one_line(output)}"
        return output, problem

    def _output(self, fd: int) -> tuple[str, str]:
        chunks: list[bytes] = []
        size, deadline = 0, time.monotonic() + self.timeout_s
        problem = ""
        while not problem:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                problem = f"{self.words[0]} has not answered in {self.timeout_s:g} s"
            elif chunk := os.read(fd, 1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_OUTPUT:
                    problem = f"{self.words[0]} printed more than {MAX_OUTPUT} bytes"
            else:
                break
        return b"".join(chunks)[:MAX_OUTPUT].decode("utf-8", "replace"), problem

    def close(self) -> None:
        if self._stuck is not None:
            self._stuck.poll()
