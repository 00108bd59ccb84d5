"""What other programs say of nodes, as findings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.health.intake.known import KNOWN
from penstock.telemetry.spec import Severity

NOW = 1_800_000_000.0


def read(name: str, text: Any, node: str = "n1") -> list[tuple[str, str, str, str, bool, str]]:
    body = text if isinstance(text, str) else json.dumps(text)
    found = KNOWN[name](body, node, NOW)
    assert all(one.source == name and one.at <= NOW and one.evidence for one in found)
    return [(one.node, one.rule, one.code, one.device, one.active, one.severity) for one in found]


def test_gpud() -> None:
    said = [
        {
            "component": "accelerator-nvidia-error-xid",
            "states": [
                {
                    "time": "2026-11-26T06:00:00Z",
                    "name": "error_xid",
                    "health": "Unhealthy",
                    "reason": "XID 79 (GPU has fallen off the bus) detected on GPU-1",
                    "suggested_actions": {"description": "", "repair_actions": ["REBOOT_SYSTEM"]},
                }
            ],
        },
        {"component": "disk", "states": [{"health": "Healthy", "reason": "ok"}]},
        {
            "component": "network-latency",
            "states": [{"health": "Degraded", "reason": "slow", "suggested_actions": None}],
        },
        {"component": "tailscale", "states": None},
        {"component": "cpu", "states": [{"health": "Initializing"}]},
    ]
    assert read("gpud", said) == [
        ("n1", "Xid", "79", "", True, Severity.CRITICAL),
        ("n1", "External", "Disk", "", False, Severity.WARNING),
        ("n1", "External", "NetworkLatency", "", True, Severity.WARNING),
    ]


def test_nvsentinel() -> None:
    event = {
        "version": 1,
        "agent": "gpu-health-monitor",
        "componentClass": "GPU",
        "checkName": "GpuMemWatch",
        "isFatal": True,
        "isHealthy": False,
        "message": "GPU 0 reported a double bit ECC error",
        "recommendedAction": "COMPONENT_RESET",
        "errorCode": ["XID-48"],
        "entitiesImpacted": [
            {"entityType": "GPU_UUID", "entityValue": "GPU-1"},
            {"entityType": "PCI", "entityValue": "x"},
        ],
        "generatedTimestamp": "2026-10-28T10:15:30Z",
        "nodeName": "n42",
    }
    well = {"checkName": "GpuThermalWatch", "isFatal": False, "isHealthy": True, "message": "", "nodeName": "n42"}
    assert read("nvsentinel", [event, well], "") == [
        ("n42", "Xid", "48", "GPU-1", True, Severity.CRITICAL),
        ("n42", "External", "GpuThermalWatch", "", False, Severity.WARNING),
    ]
    with pytest.raises(InvalidInput, match="which node"):
        read("nvsentinel", {"checkName": "x"}, "")


def test_npd_of_kubernetes_and_of_its_own() -> None:
    conditions = [
        {"type": "KernelDeadlock", "status": "True", "reason": "DockerHung", "message": "blocked for more than 120 s"},
        {"type": "ReadonlyFilesystem", "status": "False", "reason": "FilesystemIsNotReadOnly", "message": ""},
        {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped"},
        {"type": "MemoryPressure", "status": "Unknown"},
    ]
    expected = [
        ("n1", "External", "KernelDeadlock", "", True, Severity.CRITICAL),
        ("n1", "External", "ReadonlyFilesystem", "", False, Severity.CRITICAL),
        ("n1", "External", "NodeNotReady", "", True, Severity.CRITICAL),
    ]
    assert read("npd", conditions) == expected
    nodes = {"kind": "NodeList", "items": [{"metadata": {"name": "n1"}, "status": {"conditions": conditions}}]}
    assert read("npd", nodes, "") == expected
    with pytest.raises(InvalidInput, match="which node"):
        read("npd", conditions, "")


def test_nhc_in_its_log_and_as_slurms_reason() -> None:
    log = """SUCCESS:  nhc:  Health check passed:  check_gpu_count: Expected 8 and found 8
ERROR:  nhc:  Health check failed:  check_nvlink_status: GPU 3 has inactive nvlink. FaultCode: NHC2016
ERROR:  nhc:  Health check failed:  check_fs_mount:  /home not mounted
noise
"""
    assert read("nhc", log) == [
        ("n1", "External", "CheckGpuCount", "", False, Severity.CRITICAL),
        ("n1", "External", "CheckNvlinkStatus", "", True, Severity.CRITICAL),
        ("n1", "External", "CheckFsMount", "", True, Severity.CRITICAL),
    ]
    reason = "NHC: Health check failed:  check_ps_service:  chronyd not running"
    assert read("nhc", reason) == [("n1", "External", "CheckPsService", "", True, Severity.CRITICAL)]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["Unhealthy", "True", "Ready", "GPU", "1x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["component", "states", "health", "items", "status", "conditions", "type", "metadata", "nodeName"]
            )
            | st.sampled_from(["entitiesImpacted", "errorCode", "suggested_actions", "time", "reason", "checkName"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("name", sorted(KNOWN))
@given(body=JSON | st.text())
def test_whatever_comes_is_findings_or_refused(name: str, body: Any) -> None:
    try:
        found = KNOWN[name](body if isinstance(body, str) else json.dumps(body), "n1", NOW)
    except InvalidInput:
        return
    assert all(one.code.isalnum() and one.node for one in found)
