"""The world of the autoscaling replays. It was committed, and stays, before any parameter of the planner was tuned.

One replica: Llama 3 8B on one A100 80GB, by the roofline in ``penstock.serving.replays.machine.Engine``, whose docstring
derives each number from published sizes; the same for both traces. Its service curve is measured by the same rule for
both: a load test of one replica at each of ``CONCURRENCIES`` with the requests of the trace's first ten minutes.

Cold start 60 s: 45 s is what a real vLLM took to be ready with a model of no size, and 16 GB of weights at 1 GB/s are 16.

Objective: 95 of 100 first tokens within 20 s. Of Mooncake's prompts the longest 5% take 9.2 s on a replica that is alone
with them, so less than 10 s no number of replicas would hold; 20 s is twice that. (Mooncake's paper has 30 s for it.)

Each policy begins with what the first minute's rate needs by the curve, and has 1 to 32 replicas; none goes below its
beginning within that minute, in which the windows that it looks at fill (without this, KPA's and HPA's empty windows took
both to one replica at once). ``FIRST`` are the
planner's parameters as first written, from which tuning began.
"""

from __future__ import annotations

from pathlib import Path

from penstock.serving.autoscaling import Tuning
from penstock.serving.replays.machine import Engine
from penstock.serving.replays.measure import CONCURRENCIES, PROFILED_S
from penstock.serving.spec import Autoscaling, Objective

DATA = Path(__file__).resolve().parent.parent / "data/serving"
TRACES = ("azure_llm_2023_code.csv.xz", "mooncake_fast25_conversation.jsonl.xz")
ENGINE = Engine()
assert (CONCURRENCIES, PROFILED_S) == ((1, 2, 4, 8, 16, 32, 64, 128, 256), 600.0)
COLD_START_S = 60.0
OBJECTIVE = Objective(ttft=20.0)
LEAST, MOST = 1, 32
FIRST = Autoscaling(min=LEAST, max=MOST, objective=OBJECTIVE)
FIRST_TUNING = Tuning(
    steady=60.0,
    quick=6.0,
    panic=2.0,
    headroom=0.15,
    horizon=30.0,
    guard=0.8,
    samples=20.0,
    correct=1.1,
    most_correction=3.0,
)
