"""A progress bar below a stream of log lines.

Drawn by hand, not by rich: log bytes pass through as they came and as fast as they come, nothing is imported, and the
bar is gone without a trace when it ends.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TextIO

from penstock.base.text import one_line

if TYPE_CHECKING:
    from penstock.client.verb import Progress

ERASE = "\r\x1b[K"
_BAR = 24  # cells


class Bar:
    """Writes to standard output, and draws on standard error where that is a terminal. Safe for two threads."""

    def __init__(self, out: TextIO, err: TextIO, width: int | None = None) -> None:
        self._out = out
        self._err = err
        self._width = width
        self._draws = err.isatty()
        self._shares = self._draws and out.isatty()  # both go to one screen: lines and bar take turns
        self._held = b""
        self._line = ""
        self._lock = threading.Lock()

    def show(self, parts: Progress | str) -> None:
        if self._draws:
            with self._lock:
                self._line = self._layout(parts)
                self._draw()

    def write(self, data: bytes) -> None:
        """Log bytes. A last line without its end is held back while a bar would be drawn over it."""
        with self._lock:
            if self._shares and self._line:
                data = self._held + data
                end = data.rfind(b"\n") + 1
                data, self._held = data[:end], data[end:]
                if not data:
                    return
                self._err.write(ERASE)
                self._err.flush()
            self._put(data)
            if self._shares:
                self._draw()

    def close(self) -> None:
        with self._lock:
            if self._line:
                self._err.write(ERASE)
                self._err.flush()
                self._line = ""
            held, self._held = self._held, b""
            self._put(held)

    def _put(self, data: bytes) -> None:
        self._out.flush()
        self._out.buffer.write(data)
        self._out.buffer.flush()

    def _draw(self) -> None:
        if self._line:
            self._err.write(ERASE + self._line)
            self._err.flush()

    def _layout(self, parts: Progress | str) -> str:
        columns = self._width or _columns(self._err)
        if isinstance(parts, str) or parts.done is None:
            text = parts if isinstance(parts, str) else parts.text
            return one_line(text, max(10, columns - 1))
        full = round(min(1.0, max(0.0, parts.done)) * _BAR)
        on, off = ("\u2501", "\u2500") if "utf" in (self._err.encoding or "").lower() else ("#", "-")
        bar = on * full + off * (_BAR - full)
        return f"{bar} {one_line(parts.text, max(10, columns - _BAR - 2))}"


def _columns(screen: TextIO) -> int:
    try:
        return os.get_terminal_size(screen.fileno()).columns
    except (OSError, ValueError):
        return 80
