"""What a simulated attempt leaves in its run folder, so that the next server goes on with it: format 1.

``run.json``: what was launched, when, and how fast its time passes; from it the end can be worked out by anybody.
``exit.json``: how it ended, in the words of the local engine's. The folder, made with ``mkdir``, is the claim.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from penstock.engines.spec import Launch, Observation, RankExit, Stage

FORMAT = 1
RUN, EXIT = "run.json", "exit.json"


def claim(run_dir: str) -> bool:
    """Whether this call made the folder."""
    os.makedirs(os.path.dirname(run_dir), exist_ok=True)
    try:
        os.mkdir(run_dir)
    except FileExistsError:
        return False
    return True


def write_run(launch: Launch, started_at: float, speed: float) -> None:
    body = {
        "format": FORMAT,
        "started_at": started_at,
        "speed": speed,
        "command": list(launch.command),
        "groups": [
            {"node": group.node, "node_rank": group.node_rank, "gpus": group.gpus, "gpu_milli": group.gpu_milli}
            for group in launch.groups
        ],
        "procs": launch.procs,
        "time_limit_s": launch.time_limit_s,
        "grace_s": launch.grace_s,
    }
    write(f"{launch.run_dir}/{RUN}", body)


def write_exit(run_dir: str, seen: Observation) -> None:
    body = {
        "format": FORMAT,
        "reason": seen.reason,
        "message": seen.message,
        "exit_code": seen.exit_code,
        "signal": seen.signal,
        "started_at": seen.started_at,
        "ended_at": seen.ended_at,
        "ranks": [asdict(rank) for rank in seen.ranks],
    }
    write(f"{run_dir}/{EXIT}", body)


def read(run_dir: str, name: str) -> dict[str, Any] | None:
    """None where it is not there, or was being written when the power went."""
    with contextlib.suppress(OSError, ValueError), open(f"{run_dir}/{name}", encoding="utf-8") as file:
        return dict(json.load(file))
    return None


def ended(attempt_id: str, record: Mapping[str, Any], now: float) -> Observation:
    """exit.json as an observation."""
    return Observation(
        attempt_id,
        Stage.EXITED,
        now,
        started_at=record["started_at"],
        ended_at=record["ended_at"],
        reason=record["reason"],
        message=record["message"],
        exit_code=record["exit_code"],
        signal=record["signal"],
        ranks=tuple(RankExit(**rank) for rank in record["ranks"]),
    )


def write(path: str, body: Mapping[str, Any]) -> None:
    """In one step."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(body, file)
    os.replace(f"{path}.part", path)


def abandon(run_dir: str) -> None:
    """A folder that was claimed and in which nothing began: it may be claimed again."""
    with contextlib.suppress(OSError):
        os.unlink(f"{run_dir}/{RUN}.part")
    with contextlib.suppress(OSError):
        os.rmdir(run_dir)
