"""The soak's report: written by tests/conftest.py when `make soak` ends, read by the soak's bars."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PATH = Path("build/soak.json")
FUZZ_PATH = Path("build/fuzz.json")  # of `make soak`'s second half: by property, how many cases it ran


def commit(root: Path) -> str:
    """The commit of the tree at ``root``; "+" after it where tracked files differ from it, "" outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    return head + "+" if head and git("status", "--porcelain", "--untracked-files=no") else head


@dataclass
class Report:
    """``measured`` holds what soak tests recorded with ``record_property("soak:NAME", value)``."""

    commit: str
    host: str
    began_at: float
    ended_at: float = 0.0
    exit_status: int = -1
    passed: int = 0
    failed: int = 0
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, commit: str, host: str, now: float) -> Report:
        return cls(commit, host, now)

    def finish(self, *, at: float, exit_status: int, passed: int, failed: int, measured: dict[str, Any]) -> None:
        self.ended_at, self.exit_status, self.passed, self.failed = at, exit_status, passed, failed
        self.measured = dict(measured)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(part, path)


def read(root: Path, path: Path = PATH) -> tuple[Report | None, str]:
    """The last report, and why it does not count: "" where it does."""
    if not (root / path).exists():
        return None, "no report: run `make soak`"
    report, here = Report(**json.loads((root / path).read_text())), commit(root)
    if report.commit != here:
        return report, f"the report is of {report.commit[:12] or '?'}, not of {here[:12] or '?'}: run `make soak`"
    if report.exit_status != 0:
        return report, f"the soak itself failed ({report.failed} of {report.failed + report.passed} tests)"
    return report, ""
