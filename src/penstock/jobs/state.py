"""A Job's phases, the one table of what may follow what, and how an observation moves it."""

from __future__ import annotations

from enum import StrEnum

from penstock.base.reasons import Reason


class Phase(StrEnum):
    PENDING = "Pending"  # waits: for resources, a dependency, an array slot, a back-off, or in its engine's own line
    STARTING = "Starting"  # admitted, with a placement; the engine has been or is being told
    RUNNING = "Running"
    STOPPING = "Stopping"  # a cancel, drain or limit runs its grace
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


FINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
ACTIVE = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})  # holds resources

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # Stopping: an engine that schedules itself has it in its line, and must let go of it first.
    Phase.PENDING: frozenset(
        {Phase.STARTING, Phase.STOPPING, Phase.FAILED, Phase.CANCELLED, Phase.RUNNING, Phase.SUCCEEDED}
    ),
    Phase.STARTING: frozenset(
        {Phase.RUNNING, Phase.STOPPING, Phase.PENDING, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
    ),
    Phase.RUNNING: frozenset({Phase.STOPPING, Phase.PENDING, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}),
    Phase.STOPPING: frozenset({Phase.PENDING, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}),
    Phase.SUCCEEDED: frozenset({Phase.PENDING}),  # only by a new generation of the spec
    Phase.FAILED: frozenset({Phase.PENDING}),
    Phase.CANCELLED: frozenset({Phase.PENDING}),
}

# The end of an attempt -> the phase of its job when no new attempt follows.
END_PHASE: dict[str, Phase] = {
    Reason.Completed: Phase.SUCCEEDED,
    Reason.Cancelled: Phase.CANCELLED,
    Reason.IdleTimeout: Phase.CANCELLED,
    Reason.DependencyFailed: Phase.CANCELLED,
}

# Ends that are nobody's failure: a new attempt follows and max_restarts is not spent.
BLAMELESS = frozenset(
    {
        Reason.Preempted,
        Reason.Reclaimed,
        Reason.IdleReclaimed,
        Reason.NodeDrained,
        Reason.NodeAvoided,
        Reason.Resizing,
        Reason.Updated,
    }
)
# Ends that trying again cannot mend.
HOPELESS = frozenset(
    {
        Reason.Completed,
        Reason.Cancelled,
        Reason.IdleTimeout,
        Reason.TimeLimit,
        Reason.CommandNotFound,
        Reason.NotExecutable,
        Reason.WorkdirMissing,
        Reason.EnvironmentMissing,
        Reason.RestartsExhausted,
        Reason.CrashLoop,
        Reason.DependencyFailed,
    }
)

# Ends of attempts whose program never ran.
NEVER_BEGAN = frozenset(
    {
        Reason.CommandNotFound,
        Reason.NotExecutable,
        Reason.WorkdirMissing,
        Reason.EnvironmentMissing,
        Reason.LaunchFailed,
    }
)


def may_follow(before: Phase, after: Phase) -> bool:
    return before == after or after in TRANSITIONS[before]


def end_phase(reason: str) -> Phase:
    """The final phase for an attempt's end: Failed unless the table says otherwise."""
    return END_PHASE.get(reason, Phase.FAILED)
