"""Every finding that an agent tells by its rules has a cause, or is known to have none; and no cause waits for a rule that is not."""

from __future__ import annotations

from penstock.diagnosis.causes.telling import CAUSES
from penstock.telemetry import rules
from penstock.telemetry.conditions import GROWTHS, LEVELS
from penstock.telemetry.kernel_lines import LINE_RULES

AGENT = (
    {level.rule for level in LEVELS}
    | {growth.rule for growth in GROWTHS}
    | {line.rule for line in LINE_RULES}
    | {name for name, _, _ in rules._BEST.values()}
    | {"GpuMissing", "GpuHung", "LinkFlap", "ClockSkew"}
)
# These tell of no cause by themselves: of the agent, of services, or of what other findings say better.
NONE = {
    "GpuHwSlowdown",
    "ServiceDown",
    "MemoryLow",
    "ClockUnsynchronized",
    "SlurmNode",
    "MachineCheck",
    "MemoryCorrected",
    "KernelLogLost",
    "AmdGpu",
    "NicError",
    "ConntrackFull",
    "GpuRecovery",
}


def test_every_rule_of_the_agent_has_its_cause() -> None:
    told = {name.split()[0] for name in CAUSES}
    assert AGENT - told - NONE == set()
    assert NONE <= AGENT


def test_no_cause_waits_for_a_rule_that_nobody_tells() -> None:
    assert {name.split()[0] for name in CAUSES} - AGENT == set()
