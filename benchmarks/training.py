"""A hang, from the moment in which a rank ceases to get on to the next step that a new life reports, with `penstock up` really run.

Two ranks under torchrun on the local engine, `hang_limit: 5s`. Of each kind: a rank that is stopped by a signal, one asleep in
its own code, and one that leaves out a collective in which the other waits and waits for a thread. "Seen" is until the event; "named" counts runs in which
the event names the one rank that it was.

    .venv/bin/python -m benchmarks.training [--json]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Bar, alone, say
from benchmarks.ours import server
from penstock.base.quantities import parse_time

LIMIT_S = 5.0
PATIENCE_S = 90.0
HANG_AT = 30
CULPRIT = 1
ROUNDS = 1
BEST_KNOWN_S = 15.5  # nvidia-resiliency-ext 0.4.1's ft_launcher, 5 s heartbeat limit, measured here on a loaded machine
KINDS = {
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "asleep": "time.sleep(3600)",
    "left out a collective, and waits elsewhere": "threading.Event().wait()",
}
# Each rank writes down when it hangs, and when a later life reports its first step.
SCRIPT = """
import os, signal, threading, time
import torch, torch.distributed as dist
import penstock

def note(word):
    with open(os.path.join(os.environ["NOTES"], word), "x") as file:
        file.write(repr(time.time()))

dist.init_process_group("gloo")
rank, life = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
for step in range(100_000):
    if step == {hang_at} and life == 0 and rank == {culprit}:
        note("hung")
        {how}
    dist.all_reduce(torch.ones(1024))
    time.sleep(0.05)
    penstock.report(step=step)
    if life and step == 1 and rank == 0:
        note("again")
"""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from the hang."""

    seen_s: float
    again_s: float
    named: bool
    words: str


def hang(how: str) -> Took:
    """One job on a server of its own."""
    with server("hang") as ours:
        notes = ours.folder.parent / "notes"
        notes.mkdir(mode=0o777)
        notes.chmod(0o777)
        client = ours.client()
        script = SCRIPT.format(hang_at=HANG_AT, culprit=CULPRIT, how=how)
        spec: dict[str, Any] = {
            "command": ["python", "-c", script], "procs": 2, "launcher": "torchrun", "max_restarts": 2,
            "hang_limit": LIMIT_S, "env": {"NOTES": str(notes)}, "resources": {"cpus": 2},
        }  # fmt: skip
        client.transport.request(
            "POST", "/api/v1/projects/default/jobs", body=json.dumps({"name": "hang", "spec": spec}).encode(),
            headers={"content-type": "application/json"}, repeatable=False,
        )  # fmt: skip
        began = time.monotonic()
        while not (notes / "again").exists():
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(f"no new life reported within {PATIENCE_S:.0f} s: {ours.log()}")
            time.sleep(0.1)
        hung, again = (float((notes / name).read_text()) for name in ("hung", "again"))
        events = client.transport.request("GET", "/api/v1/projects/default/jobs/hang/events").json()["items"]
        found = next(event for event in events if event["reason"] == "RankHung")
        return Took(parse_time(found["at"]) - hung, again - hung, found["data"]["ranks"] == [CULPRIT], found["message"])


def measure(rounds: int = ROUNDS) -> list[Bar]:
    took: list[Took] = []
    for _ in range(rounds):
        for kind, how in KINDS.items():
            took.append(hang(how))
            say(
                f"{kind}: seen {took[-1].seen_s:.1f} s, running again {took[-1].again_s:.1f} s after the hang: {took[-1].words}"
            )
    worst = max(one.again_s for one in took)
    note = f"median {statistics.median(one.again_s for one in took):.1f} s, seen after {max(one.seen_s for one in took):.1f} s at the most; NVRx {BEST_KNOWN_S} s"
    return [
        Bar("hang (5 s limit) until running again, worst", worst, 15.0, "s", note=note),
        Bar("hangs whose culprit was named", sum(one.named for one in took) / len(took), 1.0, "", "at least"),
    ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
