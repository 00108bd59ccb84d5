"""Fleet files that tests begin from, as values: JSON is YAML."""

from __future__ import annotations

import copy
import json
from typing import Any

FULL: dict[str, Any] = {
    "kind": "Fleet",
    "name": "c1",
    "controllers": [{"host": "ctl1", "address": "10.0.0.1"}, {"host": "ctl2"}],
    "pools": [
        {
            "name": "h100",
            "nodes": "gpu[001-016]",
            "addresses": "10.1.0.[1-16]",
            "sockets": 2,
            "cores_per_socket": 48,
            "threads_per_core": 2,
            "memory": "2000Gi",
            "gpus": {
                "model": "h100",
                "count": 8,
                "affinity": [{"gpus": "0-3", "cores": "0-47"}, {"gpus": "4-7", "cores": "48-95"}],
            },
            "features": ["ib"],
            "weight": 10,
            "extra": {"MemSpecLimit": 8192},
        },
        {
            "name": "a100",
            "nodes": ["old[1-2]", "old7"],
            "hostnames": ["box[1-2]", "box7"],
            "port": 7000,
            "cpus": 64,
            "memory": "512Gi",
            "gpus": {"model": "a100", "count": 4, "autodetect": "nvml"},
        },
        {"name": "cpu", "nodes": "cpu1", "cpus": 32, "memory": "128Gi"},
    ],
    "racks": [{"name": "r1", "nodes": "gpu[001-008]"}],
    "topology": {
        "kind": "tree",
        "switches": [
            {"name": "leaf1", "nodes": "gpu[001-008]"},
            {"name": "leaf2", "nodes": ["gpu[009-016]", "cpu1"]},
            {"name": "leaf3", "nodes": ["old[1-2]", "old7"]},
            {"name": "spine", "switches": "leaf[1-3]"},
        ],
    },
    "partitions": [
        {"name": "gpu", "nodes": "gpu[001-016]", "default": True, "max_time": "7d", "default_time": "1h"},
        {
            "name": "urgent",
            "max_time": "90m",
            "priority_tier": 10,
            "priority_factor": 3,
            "preempt_mode": "off",
            "allow_accounts": ["ml", "ops"],
            "allow_qos": ["high"],
            "extra": {"OverSubscribe": "NO"},
        },
        {"name": "old", "nodes": ["old[1-2]", "old7"], "state": "drain"},
    ],
    "accounting": {
        "host": "dbd1",
        "database": {"host": "db1", "password": "not so secret"},
        "extra": {"PurgeJobAfter": "24months"},
    },
    "scheduler": {
        "parameters": {"bf_interval": 30, "bf_continue": True},
        "weights": {"age": 1000, "fairshare": 10000, "job_size": 10},
        "preempt": "partition",
        "preempt_mode": "requeue",
    },
    "slurm": {
        "version": "22.05",
        "munge_socket": "/run/munge/munge.socket.2",
        "jwt_key": "/etc/slurm/jwt.key",
        "default_memory_per_cpu": "4Gi",
        "cgroup": {"swap": True},
        "extra": {"MinJobAge": 300, "Prolog": "/etc/slurm/prolog one.sh", "ReturnToService": 2},
    },
}


def full(**changes: Any) -> dict[str, Any]:
    """A copy, with top-level parts replaced (None: left out)."""
    found = {**copy.deepcopy(FULL), **changes}
    return {name: part for name, part in found.items() if part is not None}


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1)
