"""The last part of ``make demo``: one of two ranks is made slow for real, and the diagnosis names it."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

from penstock.client.client import Client

if TYPE_CHECKING:
    from tools.demo import Demo

JOB = "watched"
FAULT, CAUSE, RANK = "slow-loader", "data_loader_one_rank", 1
SECONDS = 0.25  # that each of its batches comes late
BEFORE, AFTER = 40, 20  # steps: as they should be, and slow


class Diagnosed:
    def __init__(self, demo: Demo, client: Client) -> None:
        self.demo = demo
        self.client = client

    def play(self) -> None:
        story = self.demo.story
        story.step("A training that one line watches, and a rank of it that is made slow on purpose")
        self.demo.cli("apply", "-f", "examples/watched/job.yaml", quote=True)
        self.demo.wait(f"{BEFORE} steps", lambda: self._steps() >= BEFORE)
        injector = self._inject()
        try:
            begun = self._steps()
            self.demo.wait(f"{AFTER} slow steps", lambda: self._steps() >= begun + AFTER)
            story.step("Why is it slow?")
            self.demo.cli("diagnose", JOB, quote=True)
            found = json.loads(self.demo.cli("-o", "json", "diagnose", JOB))
        finally:
            injector.send_signal(signal.SIGTERM)
            injector.communicate(timeout=20)
        # On a busy machine contention may be as true, and come first.
        cause = next((one for one in found["causes"][:2] if one["cause"] == CAUSE), None)
        self.demo.require(cause is not None, f"{CAUSE} is what it says: what was done to it")
        named = [culprit["name"] for culprit in cause["culprits"]] if cause else []
        self.demo.require(named == [str(RANK)], f"it names rank {', '.join(named)}, and no other")
        self.demo.require(injector.returncode == 0, "the injection is undone, and the ledger has both")
        self.client.jobs.cancel(JOB, reason="the demo ends")

    def _steps(self) -> int:
        job: Any = self.client.jobs.get(JOB)
        return int((job.status.get("progress") or {}).get("step") or 0)

    def _inject(self) -> subprocess.Popen[bytes]:
        """Until it says that it is done."""
        words = ["penstock", "inject", FAULT, "--job", JOB, "--rank", str(RANK), "--strength", str(SECONDS), "--yes"]
        self.demo.story.command(words)
        injector = subprocess.Popen(
            words, env=self.demo.env, cwd=self.demo.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert injector.stderr is not None
        self.demo.story.quote(injector.stderr.readline().decode())
        return injector


def end_job(client: Client) -> None:
    """Of a demo that is broken off."""
    for job in client.jobs.list(phase=["active"]):
        if job.name == JOB:
            client.jobs.cancel(JOB, reason="the demo ends")
