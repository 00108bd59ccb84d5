"""What the house promises of its own files."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def requirements_below(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Collect every installed distribution that ``name`` brings on this machine."""
    key = (canonicalize_name(name), extras)
    if key in seen:
        return
    seen.add(key)
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in wanted):
            requirements_below(requirement.name, frozenset(requirement.extras), seen)


def test_constraints_pin_all_that_install_takes() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = [*PROJECT["project"]["dependencies"], *(text for texts in extras.values() for text in texts)]
    seen: set[tuple[str, frozenset[str]]] = set()
    for text in named:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), text
        requirements_below(requirement.name, frozenset(requirement.extras), seen)
    assert {name for name, _ in seen} - pins().keys() == set()


def test_each_ignored_lint_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("ignore = [") : text.index("\n]", text.index("ignore = ["))].splitlines()[1:]
    reason_above = False
    for line in block:
        if line.strip().startswith("#"):
            reason_above = True
        else:
            assert reason_above or "#" in line, line


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(re.findall(r"^  make ([a-z-]+)", told, re.MULTILINE))


def test_license_and_notice_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()
    assert (ROOT / "NOTICE").read_text().startswith("Penstock\n")


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs/decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [name[:4] for name in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    index = (folder / "README.md").read_text()
    assert [name for name in files if f"({name})" not in index] == []
