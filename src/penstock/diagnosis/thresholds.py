"""The limits that the rules of the diagnosis share, with where each comes from; one rule's own stand beside it. Data, and pure.

Limits are shares and ratios within the run, never seconds: a machine that is half as fast gives the same verdict. Those marked
"measured" are between what healthy runs showed on a noisy machine of two cores and what the weakest injected fault showed.
"""

from __future__ import annotations

# -- which steps are looked at --------------------------------------------------------------------------------
WARM_UP = 5  # steps: allocators, caches and workers start; torch's own profiles skip as many
FEWEST = 12  # steps without which timing tells nothing
NEWEST = 400  # steps looked at: what is older tells of another time
CHANGE = 1.25  # the step's median after a change to that before; healthy drift with other tenants is below in most runs (measured)
CHANGE_PART = 0.75  # part of the later steps that are longer than nine tenths of the earlier ones: persistence
AROUND = 2  # steps on each side that the length of a step is evened with
CUT = 4.0  # times the median that a single step counts at the most, where a change is looked for
OUTLIERS = 0.02  # part of the steps, the longest, that a mean leaves out: one stall is told by its own rule

# -- time lost -----------------------------------------------------------------------------------------------------
LOST = 0.08  # part of a step below which a cause is not worth a word; healthy phases differ by less (measured)
WHOLE = 0.5  # part of a step at which a cause counts with its full strength
PERSISTENT = 0.7  # part of the steps in which a rank must be the slow one; NVRx and XPUTimer use 0.6 to 0.9

# -- phases ----------------------------------------------------------------------------------------------------------
DATA = 0.2  # of the step, on every rank: catalogue, data_loader_bound
DATA_RATIO = 2.0  # one rank's wait for data to its peers'
COMPUTE_RATIO = (
    1.5  # without an earlier time of the same run to compare with: 25 and 44 ms were healthy once (research, section 4)
)
COMPUTE_GREW = 1.25  # with one: the ratio to the peers now, to that before
TOKENS = 0.6  # of a rank's excess in work that its excess in tokens must account for
TRANSFER = (
    0.55  # of the step, without an earlier time to compare with; 0.35 was healthy with gloo (research, section 4)
)
TRANSFER_GREW = 1.6  # with one; x4.5 was a link cut to 200 Mbit/s
CHECKPOINT = 0.06  # of the wall time; an asynchronous save costs below 0.02
GC = 0.05  # of the wall time: catalogue, gc_pause
COLD = 3.0  # wait for data at first to that at last, and DATA of the step at first
FEWER = 4.0  # times fewer tokens a step
PER_TOKEN = 2.0  # times as long for each: the step's cost is no longer its work
STALL = 12.0  # one step to the median; 28 was a stop of 2 s (research), 5 happens on a loaded machine
STALL_PART = 0.03  # of the window's time that such steps must have cost
GAP = 0.6  # of a stall: how much longer than usual the rank's own counters were silent for it to be the one that stood still

# -- counters --------------------------------------------------------------------------------------------------------
RUN_DELAY = 0.2  # of the wall time waiting for a core; 0.15 was healthy on a noisy machine, 0.75 starved (research)
RUN_DELAY_RATIO = 1.6  # to the peers'
THROTTLED = 0.03  # of the wall time: catalogue, cgroup_throttle
EXPLAINED = 0.5  # of a rank's excess that a counter must account for to explain it
IO_PRESSURE = 0.12  # of the wall time that something waited for a disk
RETRANSMITS = 0.006  # of the segments; 0.0001 to 0.0009 healthy, 0.044 at 4% loss (research)
LEAK = 0.12  # growth of the resident memory over the window
LEAK_STEADY = 0.7  # part of the readings that rose
OPEN_FILES = 0.9  # of the limit
CLOCK = 0.01  # seconds from true time: catalogue, clock_skew
RETRIES = 3.0  # of the allocator, after the warm-up: in steady state there is none
MEMORY_PRESSURE = 0.1  # of the wall time

# -- losses --------------------------------------------------------------------------------------------------------
SPIKE = 6.0  # robust z: catalogue, loss_spike

# -- verdict -------------------------------------------------------------------------------------------------------
VERDICT = 0.4  # the least score of a verdict
STILL_S = (
    30.0  # without a step, from which on a running job is not called healthy; the hang watch waits as long at the least
)
STILL_STEPS = 20.0  # or so many steps' time, where steps are long
UNEXPLAINED = 2.0  # a slowdown without a cause is "unknown" from here on; below, other tenants do as much (61 to 110 ms, research)
AGAINST = 0.08  # of the score for each thing that speaks against
EXPLAINED_AWAY = 0.35  # what is left of a score where a better founded cause brings about the same signs
