"""`make lint`: every check runs, whatever fails before it, so that one run shows all there is to mend."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff check", (str(BIN / "ruff"), "check", ".")),
    ("ruff format", (str(BIN / "ruff"), "format", "--check", ".")),
    ("mypy --strict", (str(BIN / "mypy"),)),
    ("import contracts", (str(BIN / "lint-imports"), "--no-logo", "--no-cache")),
    ("ratchets", (sys.executable, "tools/ratchets.py")),
)


def main() -> int:
    """Run all checks from the repository's root; the exit status says whether all held."""
    root = Path(__file__).resolve().parent.parent
    # import-linter reads the tree it is started in, also where an installed copy of Penstock exists.
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    failed = []
    for name, command in CHECKS:
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        took = time.monotonic() - began
        print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {name} ({took:.1f} s)", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print((done.stdout + done.stderr).strip(), flush=True)
    if failed:
        print(f"make lint: {len(failed)} of {len(CHECKS)} checks failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
