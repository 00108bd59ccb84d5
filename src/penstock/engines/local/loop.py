"""The supervisor's event loop: epoll, timers that exist only while something waits for them, and SIGCHLD."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable


class Loop:
    """Sleeps until a descriptor, a child or a timer needs attention; an idle job costs nothing."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wake)
        os.close(self._waker)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever ``fd`` can be read or is at its end."""
        self._ready[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, name: str, after_s: float, call: Callable[[], None]) -> None:
        """Call once after ``after_s`` seconds (monotonic); a timer of the same name is replaced."""
        self._timers[name] = (time.monotonic() + after_s, call)

    def cancel(self, name: str) -> None:
        self._timers.pop(name, None)

    def turn(self, children: Callable[[], None]) -> None:
        """Wait for the next thing to happen and see to it."""
        wait = -1.0
        if self._timers:
            wait = max(0.0, min(due for due, _ in self._timers.values()) - time.monotonic())
        for fd, _ in self._epoll.poll(wait, 64):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 512)
                children()
            elif fd in self._ready:
                self._ready[fd]()
        if self._timers:
            self._run_due()

    def _run_due(self) -> None:
        now = time.monotonic()
        for name, (due, call) in list(self._timers.items()):
            if due <= now and name in self._timers:
                del self._timers[name]
                call()


def _ignore(_number: int, _frame: object) -> None:
    """A Python handler must be there for the wake-up descriptor to be written."""
