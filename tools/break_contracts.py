"""Break each import contract on purpose, in a copy of the tree, and see `lint-imports` fail: once per contract.

`make break-contracts` prints what happened; tests/house runs the same as a test. A contract of pyproject.toml that has
no entry here fails that test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Break:
    """Append ``code`` to ``file`` (made when it is not there), below src/penstock: ``contract`` must then fail."""

    contract: str
    what: str
    files: tuple[tuple[str, str], ...]


BREAKS = (
    Break("floors", "base imports the store", (("base/ids.py", "import penstock.store.events"),)),
    Break("floors", "an entrance imports its neighbour", (("api/asgi.py", "import penstock.cli.main"),)),
    Break(
        "floors", "an import upward inside a function", (("store/store.py", "def f():\n    import penstock.jobs.plan"),)
    ),
    Break("floors", "a room that no floor lists", (("attic/__init__.py", ""), ("attic/plan.py", "X = 1"))),
    Break("worker", "a room imports the worker", (("jobs/launch.py", "import penstock.worker.report"),)),
    Break("pure", "a planner takes the time by itself", (("scheduling/plan.py", "import time"),)),
    Break("pure", "a planner knows an engine", (("jobs/plan.py", "import penstock.engines.local"),)),
    Break(
        "pure",
        "a planner reaches a file system through another module",
        (("jobs/between.py", "import os"), ("jobs/state.py", "import penstock.jobs.between")),
    ),
    Break("light", "the command line imports SQLAlchemy", (("cli/main.py", "import sqlalchemy"),)),
    Break(
        "light",
        "the client reaches the store through another module",
        (("client/between.py", "import penstock.store.store"), ("client/client.py", "import penstock.client.between")),
    ),
    Break("light", "a room's commands import torch", (("jobs/commands.py", "import torch"),)),
    Break(
        "tables-store", "a room above reads the store's tables", (("jobs/queries.py", "import penstock.store.tables"),)
    ),
    Break("tables-tenancy", "jobs reads tenancy's tables", (("jobs/queries.py", "import penstock.tenancy.tables"),)),
    Break("tables-fleet", "jobs reads fleet's tables", (("jobs/queries.py", "import penstock.fleet.tables"),)),
    Break("tables-health", "jobs reads the tables of health", (("jobs/queries.py", "import penstock.health.tables"),)),
    Break("tables-jobs", "cost reads the tables of jobs", (("cost/queries.py", "import penstock.jobs.tables"),)),
    Break("tables-cost", "an entrance reads cost's tables", (("api/asgi.py", "import penstock.cost.tables"),)),
    Break(
        "tables-training",
        "cost reads the tables of training",
        (("cost/queries.py", "import penstock.training.tables"),),
    ),
    Break(
        "tables-serving",
        "cost reads the tables of serving",
        (("cost/queries.py", "import penstock.serving.tables"),),
    ),
    Break(
        "tables-scheduling",
        "an entrance reads scheduling's tables",
        (("api/asgi.py", "import penstock.scheduling.tables"),),
    ),
)


def contracts() -> dict[str, str]:
    """Every contract of pyproject.toml: id -> name."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {contract["id"]: contract["name"] for contract in config["tool"]["importlinter"]["contracts"]}


@contextmanager
def tree(breach: Break | None = None) -> Iterator[Path]:
    """A copy of what lint-imports reads, with ``breach`` in it."""
    with tempfile.TemporaryDirectory(prefix="penstock-contracts-") as name:
        copy = Path(name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for relative, code in breach.files if breach else ():
            path = copy / "src/penstock" / relative
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(f"\n\n{code}\n")
        yield copy


def lint(folder: Path, contract: str) -> tuple[bool, str]:
    """Whether ``contract`` holds in the tree at ``folder``, and what lint-imports says."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache", "--contract", contract]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def seen_to_fail(breach: Break) -> str:
    """Empty when the contract holds without the breach and fails with it; else what went otherwise."""
    with tree() as whole:
        held, told = lint(whole, breach.contract)
        if not held:
            return f"{breach.contract} is broken before anything was done to it:\n{told}"
    with tree(breach) as broken:
        held, told = lint(broken, breach.contract)
        if held:
            return f"{breach.contract} holds although {breach.what}"
        if "BROKEN" not in told:
            return f"{breach.contract}: lint-imports failed for another reason:\n{told}"
    return ""


def main() -> int:
    failed = 0
    for breach in BREAKS:
        problem = seen_to_fail(breach)
        failed += bool(problem)
        print(
            f"{'FAILED' if problem else 'ok    '} {breach.contract}: {breach.what}"
            + (f"\n{problem}" if problem else "")
        )
    for missing in sorted(contracts().keys() - {breach.contract for breach in BREAKS}):
        failed += 1
        print(f"FAILED {missing}: nothing here breaks it")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
