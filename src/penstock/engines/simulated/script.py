"""What a simulated command does. Pure.

Commands are scripts of words: ``sleep 5`` runs for five seconds (``sleep 1h30m`` too), ``exit 3`` fails at once, and words
may be joined by ``then`` or as in a shell (``sleep 5 then exit 3``, ``sh -c 'sleep 5; exit 3'``). ``echo WORDS`` prints and
ends; ``true`` and ``false`` alone end at once. ``ignore-term`` says ``ready`` and leaves SIGTERM unheard. ``idle-gpu``: its GPUs do nothing while it runs. Every
other command runs for ``default_run_s``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.base.quantities import parse_duration

_JOINTS = re.compile(r"[\s;&|]+")
BUSY = 0.9  # of a GPU's time while its job runs


@dataclass(frozen=True, slots=True)
class Script:
    """Run for ``run_s``, then exit with ``exit_code``."""

    run_s: float
    exit_code: int = 0
    ignores_term: bool = False
    prints: str = ""
    gpu_busy: float = BUSY  # 0 to 1

    @classmethod
    def parse(cls, command: Sequence[str], default_run_s: float) -> Script:
        """Raises ValueError for a time or a code that is none."""
        if len(command) == 1 and command[0] in ("true", "false"):
            return cls(0.0, int(command[0] == "false"))
        script = cls(default_run_s)
        words = _words(command)
        timed = False
        for word in words:
            if word == "sleep":
                script, timed = replace(script, run_s=_seconds(next(words, "0"))), True
            elif word == "exit":
                script = replace(script, exit_code=int(next(words, "0")), run_s=script.run_s if timed else 0.0)
            elif word == "echo":
                script = replace(script, prints=next(words, "") + "\n", run_s=script.run_s if timed else 0.0)
            elif word == "ignore-term":
                script = replace(script, ignores_term=True, prints="ready\n")
            elif word == "idle-gpu":
                script = replace(script, gpu_busy=0.0)
        return script


def _words(command: Sequence[str]) -> Iterator[str]:
    """A word of several is a shell's line, but for what ``echo`` prints."""
    said = False
    for word in command:
        if said or not _JOINTS.search(word):
            yield word
        else:
            yield from filter(None, _JOINTS.split(word))
        said = word == "echo"


def _seconds(text: str) -> float:
    return float("inf") if text in ("infinity", "inf") else parse_duration(text)
