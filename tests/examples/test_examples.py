"""Every job file among the examples is one that Penstock takes, and names files that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from penstock.jobs.yaml import parse_jobs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*/job.yaml"))


def test_there_are_examples() -> None:
    assert {path.parent.name for path in FILES} >= {"digits", "hello", "sweep", "torchrun"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_job_file_is_whole(path: Path) -> None:
    for document in parse_jobs(path.read_text()):
        scripts = [word for word in document.spec.command if word.endswith(".py")]
        assert all((path.parent / script).exists() for script in scripts)
        assert not scripts or document.spec.workdir == "."


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_needs_penstock_only_where_it_can_do_without(path: Path) -> None:
    tree = ast.parse(path.read_text())
    needed = [name.module for name in tree.body if isinstance(name, ast.ImportFrom)]
    assert "penstock" not in needed  # inside `try`, it is no statement of the module's own body
