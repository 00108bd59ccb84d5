"""``python -m penstock.health.checks.here NAME...``: these checks on this node, a line of JSON each. The node's agent calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from penstock.health.checks.known import BY_NAME
from penstock.health.checks.run import run
from penstock.health.checks.spec import Subject, not_run


def subject() -> Subject:
    """The GPUs of this node, as the driver's own tool names them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Subject()
    try:
        asked = [program, "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Subject()
    names = [line.strip() for line in said.splitlines() if line.strip()]
    return Subject(len(names), names[0] if names else "")


def main(names: Sequence[str]) -> int:
    what = subject()
    for name in names:
        check = BY_NAME.get(name)
        found = run(check, what) if check is not None else not_run(name, "there is no such check in this version")
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
