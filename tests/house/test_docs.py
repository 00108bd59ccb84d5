"""What the documents say is so: settings, reasons, metrics, and every command of the README."""

from __future__ import annotations

import dataclasses
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from penstock.base.errors import InvalidInput
from penstock.base.reasons import Reason
from penstock.base.settings import Settings
from penstock.cli.catalogue import ENTRIES
from penstock.cli.main import parser_of

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text()
README = (ROOT / "README.md").read_text()


def section(title: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    body = REFERENCE.split(f"## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE))


def test_every_setting_is_told_and_no_other() -> None:
    assert section("Settings") == {field.name for field in dataclasses.fields(Settings)}


def test_every_reason_is_told_and_no_other() -> None:
    assert section("Reasons") == {str(reason) for reason in Reason}


def test_every_metric_is_told_and_no_other() -> None:
    found = {"penstock_http_request_duration_seconds"}
    for file in (ROOT / "src/penstock").rglob("*.py"):
        for name, kind in re.findall(r'Sample\(\s*"(\w+)",\s*"(\w+)"', file.read_text()):
            found.add(f"penstock_{name}" + ("_total" if kind == "counter" else ""))
    assert section("Metrics") == found


def commands() -> list[str]:
    """The README's lines that run penstock."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("||") if part.strip().startswith("penstock ")]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_is_one(command: str) -> None:
    words = shlex.split(command)[1:]
    entry = ENTRIES[words[0]]
    verb = import_module(entry.module).VERBS[entry.name]
    arguments = words[1 : words.index("--")] if "--" in words else words[1:]
    try:
        parser_of(entry, verb).parse_args(arguments)
    except InvalidInput as error:
        pytest.fail(f"{command}: {error}")


def test_the_readme_has_commands() -> None:
    assert len(commands()) > 20
