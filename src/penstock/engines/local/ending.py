"""How an attempt ended, in one reason and one sentence. Pure but for the names of signals."""

from __future__ import annotations

import os
import signal
from typing import Any, Protocol

from penstock.engines.local import environment

_TOGETHER_S = 0.1  # ranks that fail within this of the first may have failed because of it


class Failure:
    """One rank's (or launcher's) bad end."""

    __slots__ = ("at", "exit_code", "signal", "who")

    def __init__(self, who: str, exit_code: int | None, number: int | None, at: float) -> None:
        self.who, self.exit_code, self.signal, self.at = who, exit_code, number, at

    def __str__(self) -> str:
        if self.signal is not None:
            return f"{self.who} was killed by {signal_name(self.signal)}"
        return f"{self.who} exited with code {self.exit_code}"

    @property
    def weight(self) -> int:
        """What is likelier the cause than the consequence sorts first: a crash, then an exit code or an abort (which is how
        a rank whose peer is gone may end too), then a SIGTERM.
        """
        if self.signal is None or self.signal == signal.SIGABRT:
            return 1
        return 2 if self.signal == signal.SIGTERM else 0


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def split(status: int) -> tuple[int | None, int | None]:
    """A wait status as (exit code, signal), one of them None."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def root_cause(failures: list[Failure]) -> Failure | None:
    if not failures:
        return None
    first = min(failure.at for failure in failures)
    return min((f for f in failures if f.at - first <= _TOGETHER_S), key=lambda f: (f.weight, f.at))


class Exits(Protocol):
    """What the ranks know of their ends."""

    restarts: int

    def first_failure(self) -> Failure | None: ...
    def failures(self, *, last: bool) -> list[dict[str, Any]]: ...
    def plain_exit(self) -> tuple[int | None, int | None]: ...
    def exits(self) -> list[dict[str, Any]]: ...


class Ending:
    """Collects why the attempt ends; the first cause stays."""

    def __init__(self, launch: dict[str, Any]) -> None:
        self._launch = launch
        self._reason: str | None = None
        self._message = ""
        self._failure: Failure | None = None
        self.term_sent = False

    @property
    def decided(self) -> bool:
        return self._reason is not None

    def decide(self, reason: str, message: str, *, override: bool = False) -> None:
        if self._reason is None or override:
            self._reason, self._message = reason, message

    def refuse(self, reason: str, message: str) -> None:
        """It could not start, whatever else was wanted."""
        self.decide(reason, message)

    def fail(self, failure: Failure) -> None:
        self._failure = failure
        self.decide("Failed", str(failure))

    def record(self, ranks: Exits, *, out_of_memory: list[str], stuck: int) -> dict[str, Any]:
        """What exit.json says (times apart)."""
        failure = self._failure or ranks.first_failure()
        reason, message = self._reason, self._message
        if reason is None:
            reason, message = ("Failed", str(failure)) if failure else ("Completed", "")
        if reason == "Failed" and out_of_memory:
            reason, message = "OutOfMemory", self._memory_message(out_of_memory, failure)
        elif reason == "Failed" and ranks.restarts:
            message += f", after {ranks.restarts} restart{'s' * (ranks.restarts > 1)} in place"
        if stuck:
            message += f"; {stuck} of its processes cannot be killed (stuck in the kernel)"
        code, number = (failure.exit_code, failure.signal) if failure else ranks.plain_exit()
        modules = self._launch["environment"].get("modules") or ()
        if reason == "Failed" and (missing := environment.missing_module(modules, code)):
            reason, message, code = "EnvironmentMissing", missing, 127
        return {
            "reason": reason,
            "message": message,
            "exit_code": code,
            "signal": number,
            "restarts": ranks.restarts,
            "ranks": ranks.exits(),
            "failures": ranks.failures(last=reason in ("Failed", "OutOfMemory")),
        }

    def _memory_message(self, nodes: list[str], failure: Failure | None) -> str:
        limits = [group["memory"] for group in self._launch["groups"] if group["node"] in nodes]
        limit = f"its limit of {mebibytes(limits[0])}" if limits and limits[0] else "the limit"
        return f"it needed more memory than {limit} on {', '.join(nodes)}" + (f" ({failure})" if failure else "")


def mebibytes(count: int) -> str:
    for unit, size in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)
