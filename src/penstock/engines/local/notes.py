"""Notes: one JSON line of at most 4096 bytes (PIPE_BUF, so that writers never mix) from a supervisor to the server."""

from __future__ import annotations

import json
import os
import select
from typing import Any

LIMIT = 4096
_PATIENCE_MS = 2000


class Notes:
    """The writing end. A server that is away or slow costs a supervisor nothing: what matters is in the run folder."""

    def __init__(self, fd: int, attempt_id: str) -> None:
        self._fd = fd
        self._attempt_id = attempt_id

    def replace(self, fd: int) -> None:
        """From now on tell another server."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def send(self, kind: str, *, patient: bool = False, **fields: Any) -> None:
        """``patient`` notes wait a moment for a full pipe. One that is too long is sent without its fields."""
        if self._fd < 0:
            return
        line = _line({"n": kind, "id": self._attempt_id, **fields})
        if len(line) > LIMIT:
            line = _line({"n": kind, "id": self._attempt_id})
        try:
            os.write(self._fd, line)
        except BlockingIOError:
            if patient:
                self._insist(line)
        except OSError:  # nobody listens any more
            return

    def _insist(self, line: bytes) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if poll.poll(_PATIENCE_MS):
            try:
                os.write(self._fd, line)
            except OSError:
                return


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
