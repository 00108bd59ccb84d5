"""A bad canary is taken back within ten seconds of traffic, and what is no different never: the planner under made-up traffic.

In virtual time, through the very planner that decides, with 100 requests a second and more; benchmarks/serving_rollout_live.py
has the same through Envoy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.harness import Bar, alone, percentile, say
from benchmarks.serving_traffic import Outcome, Traffic, Way, outcome
from penstock.serving.spec import Rollout, Step
from penstock.serving.state import RolloutPhase

CANARY = Rollout(strategy="canary", steps=(Step(weight=10), Step(weight=50)))
SHADOW = Rollout(strategy="shadow", steps=(Step(weight=10),))
RATES = (100, 200, 500)
RATE = 200  # that the bar is of
ROUNDS = 60
ALIKE = 1000
BAD = {
    "10% errors": (CANARY, Way(errors=0.1)),
    "+50% latency": (CANARY, Way(median=0.03)),
    "5% wrong answers": (SHADOW, Way(agrees=0.95)),
}
_WAY = Way(errors=0.01, spread=0.4)


def measure() -> list[Bar]:
    bars, value = [], float("inf")
    for what, (spec, way) in BAD.items():
        notes = []
        for rate in RATES:
            ends = [outcome(spec, Traffic(rate, candidate=way), seed) for seed in range(ROUNDS)]
            notes.append(f"{rate}/s {told(ends)}")
            say(f"   {what}: {notes[-1]}")
            if rate == RATE:
                value = percentile([taken(end) for end in ends], 0.95)
        bars.append(
            Bar(f"{what}: rolled back after (made up)", value, 10, "s", note="P95 at 200/s; " + "; ".join(notes))
        )
    traffic = Traffic(100, _WAY, _WAY, jitter=0.3, own=0.05)
    back = [outcome(CANARY, traffic, seed).phase for seed in range(ALIKE)].count(RolloutPhase.ROLLED_BACK)
    note = f"{ALIKE} A/A rollouts, 1% errors of both, P95 {_WAY.spread:g} about the median, uneven seconds"
    return [*bars, Bar("false rollbacks (made up)", back, 0, "", note=note)]


def taken(end: Outcome) -> float:
    return end.seconds if end.phase is RolloutPhase.ROLLED_BACK else float("inf")


def told(ends: Sequence[Outcome]) -> str:
    seconds = [taken(end) for end in ends]
    within = sum(value <= 10 for value in seconds) / len(seconds)
    return (
        f"median {percentile(seconds, 0.5):g} s, P95 {percentile(seconds, 0.95):g} s, {100 * within:.0f}% within 10 s"
    )


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
