"""The closed list of reasons: why something is as it is. One spelling in events, conditions, tables and metrics."""

from __future__ import annotations

from enum import StrEnum, auto


class _Named(StrEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:  # noqa: ARG004 - enum's signature
        return name


class Reason(_Named):
    """PascalCase, as Kubernetes writes conditions' reasons; the comment is what a person is told."""

    # a job's way to its start
    Created = auto()
    Updated = auto()
    Deleted = auto()
    WaitingForResources = auto()
    WaitingForDependency = auto()
    WaitingForArraySlot = auto()
    WaitingBehind = auto()  # an earlier job is first in line
    Unschedulable = auto()  # no node could ever hold it as the fleet stands
    HeldByAdministrator = auto()  # by the engine's: it starts when they let it go
    BackingOff = auto()  # waits before a new attempt
    HandedOver = auto()  # to an engine that schedules itself, which has it in its own line
    Admitted = auto()
    AttemptStarted = auto()
    AttemptEnded = auto()
    Started = auto()
    RankExited = auto()
    RankRestarted = auto()  # a restart in place, by the launcher
    Restarting = auto()  # a new attempt
    Requeued = auto()  # its engine took it back into its line; there it starts again
    Progressing = auto()
    NodeAvoided = auto()  # a node is at fault: the job is kept off it
    NodeForgiven = auto()  # it may be used again before its time: no other fits, or it is back
    GpuIdle = auto()  # GPUs that it holds have done nothing for a while
    GpuIdleEnded = auto()
    RankHung = auto()  # nothing gets on: which rank holds it up, and what every rank was doing
    HangEnded = auto()  # it went on by itself
    Straggling = auto()  # a rank works longer than its peers, step after step
    StragglingEnded = auto()
    SlowedDown = auto()  # its steps take clearly longer than before, and go on so
    SlowdownEnded = auto()
    SaveAsked = auto()  # somebody asked for a checkpoint now
    FaultInjected = auto()  # a game day: somebody broke something on purpose
    FaultEnded = auto()
    CancelRequested = auto()
    # how it ended
    Completed = auto()
    Failed = auto()  # a rank exited non-zero, or by a signal nobody asked for
    OutOfMemory = auto()
    TimeLimit = auto()
    Cancelled = auto()
    Preempted = auto()
    Reclaimed = auto()
    Resizing = auto()  # it runs on fewer nodes than it would have, and there is room: it saves and starts again larger
    IdleReclaimed = auto()
    QuotaExceeded = auto()
    Hung = auto()  # it made no progress, and was ended for that
    NodeLost = auto()
    NodeDrained = auto()
    IdleTimeout = auto()
    CommandNotFound = auto()
    NotExecutable = auto()
    WorkdirMissing = auto()
    EnvironmentMissing = auto()
    LaunchFailed = auto()
    SupervisorLost = auto()
    RestartsExhausted = auto()
    CrashLoop = auto()  # it failed again and again at one step, which is the script's fault
    DependencyFailed = auto()
    # nodes
    Joined = auto()
    Changed = auto()
    Labelled = auto()
    Cordoned = auto()
    Uncordoned = auto()
    Drained = auto()
    Lost = auto()
    Restored = auto()
    FindingRaised = auto()  # something is wrong with it: the finding and its evidence
    FindingEnded = auto()
    HealthActed = auto()  # what Penstock's policy did or advises, and on which findings
    HealthHeld = auto()  # what it would have done, and why not: budget, breaker, shadow
    # engines
    EngineAdded = auto()
    EngineChanged = auto()
    EngineRemoved = auto()
    EngineUnreachable = auto()  # its service does not answer: what it runs is as it was last seen
    EngineReached = auto()  # again
    # queues
    QueuesChanged = auto()
    QueuesCompiled = auto()  # into an engine's own accounts
    ReservationCreated = auto()
    ReservationEnded = auto()  # before its time
    ReservationBegan = auto()  # and those who may not be on its nodes were told to leave
    # money
    BudgetSet = auto()
    BudgetDeleted = auto()
    BudgetWarning = auto()  # a threshold of a project's budget is reached
    BudgetExceeded = auto()
    # inference services
    VersionCreated = auto()  # its specification changed in what the replicas run
    ReplicaReady = auto()  # it has answered a first request
    ReplicaLost = auto()
    Scaled = auto()
    RolloutStarted = auto()
    RolloutAdvanced = auto()
    RolloutPaused = auto()
    Promoted = auto()
    RolledBack = auto()
    ModelRefused = auto()
    GatewayChanged = auto()  # it does not go by what a service wants
    GatewayRestarted = auto()
    # the house
    ServerStarted = auto()
    ServerStopped = auto()
    LeaseTaken = auto()
    TokenCreated = auto()
    TokenRevoked = auto()
    TokenMisused = auto()  # shown for what it is not for: another node's telemetry
    UserCreated = auto()
    UserUpdated = auto()
    BackupTaken = auto()
    BackupRestored = auto()
    OrphanEnded = auto()  # a process found on a node that no job owns
    SessionOpened = auto()
    SessionClosed = auto()
