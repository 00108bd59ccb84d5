"""Each ratchet catches what it is for, and lets pass what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import ratchets

SRC = "src/penstock/jobs/sample.py"
LONG = "def f():\n" + "    pass\n" * 60

CAUGHT = [
    ("file-length", SRC, "x = 1\n" * 601),
    ("function-length", SRC, LONG),
    ("function-length", "tests/jobs/test_x.py", "class A:\n" + "".join(f"    {line}\n" for line in LONG.splitlines())),
    ("arguments", SRC, "def f(a, b, c, d, e, g, h, i): ..."),
    ("arguments", SRC, "class A:\n    def f(self, a, b, c, d, *, e, g, h, i): ..."),
    ("global", SRC, "def f():\n    global x\n    x = 1"),
    ("lazy", SRC, "def f():\n    import json"),
    ("lazy", SRC, "def f():\n    from penstock.base import ids"),
    ("lazy", SRC, "import importlib\ndef f():\n    importlib.import_module('json')"),
    ("environment", SRC, "import os\nx = os.environ['X']"),
    ("environment", SRC, "import os\nx = os.getenv('X')"),
    ("environment", SRC, "from os import environ"),
    ("empty-init", "src/penstock/jobs/__init__.py", '"""Jobs."""'),
    ("words", "src/penstock/jobs/utils.py", ""),
    ("words", "src/penstock/jobs/log_helpers.py", ""),
    ("words", SRC, "class JobManager: ..."),
    ("words", SRC, "class HTTPHandler: ..."),
    ("broad-except", SRC, "try:\n    x = 1\nexcept Exception:\n    pass"),
    ("broad-except", SRC, "try:\n    x = 1\nexcept:\n    pass"),
    ("broad-except", SRC, "try:\n    x = 1\nexcept (OSError, BaseException) as e:\n    raise ValueError from e"),
    ("broad-except", SRC, "import contextlib\nwith contextlib.suppress(Exception):\n    x = 1"),
    ("code-from-bytes", SRC, "import pickle"),
    ("code-from-bytes", SRC, "from torch import load\n"),
    ("code-from-bytes", SRC, "import yaml\nyaml.load('x', Loader=yaml.Loader)"),
    ("code-from-bytes", SRC, "import torch\ntorch.load('x')"),
    ("code-from-bytes", SRC, "eval('1')"),
    ("base-stdlib", "src/penstock/base/x.py", "import pydantic"),
    ("base-stdlib", "src/penstock/base/x.py", "from penstock.jobs import plan"),
    ("unfinished", SRC, "x = 1  # " + "TODO later"),
    ("unfinished", SRC, "x = 1  # noqa: E731"),
    ("unfinished", SRC, "x = 1  # type: ignore[arg-type]"),
    ("honest-tests", "tests/jobs/test_x.py", "from unittest import mock"),
    ("honest-tests", "tests/jobs/test_x.py", "import pytest\npytest.skip('x')"),
    ("honest-tests", "tests/jobs/test_x.py", "import pytest\n@pytest.mark.skipif(True, reason='x')\ndef f(): ..."),
]

PASSES = [
    (SRC, "x = 1\n" * 600),
    (SRC, "class A:\n    def f(self, a, b, c, d, *, e, g, h): ..."),
    ("src/penstock/app.py", "import os\nx = os.environ['X']"),
    ("src/penstock/worker/report.py", "import os\nx = os.environ['X']"),
    ("src/penstock/__init__.py", '"""The face."""'),
    ("src/penstock/jobs/__init__.py", ""),
    (SRC, "try:\n    x = 1\nexcept BaseException:\n    x = 2\n    raise"),
    (SRC, "class Community: ...\nclass Commonplace: ..."),
    (SRC, "import yaml\nyaml.safe_load('x')"),
    (SRC, "x = 1  # noqa: E731 - because a sample says so"),
    ("src/penstock/base/x.py", "import json\nfrom penstock.base.errors import NotFound"),
    ("tests/jobs/test_x.py", "def f():\n    import json"),
]


def findings(path: str, source: str) -> list[ratchets.Finding]:
    module = ratchets.Module.parse(path, source)
    return [finding for rule in ratchets.MODULE_RULES for finding in rule(module)]


@pytest.mark.parametrize(("rule", "path", "source"), CAUGHT)
def test_caught(rule: str, path: str, source: str) -> None:
    assert rule in {finding.rule for finding in findings(path, source)}


@pytest.mark.parametrize(("path", "source"), PASSES)
def test_passes(path: str, source: str) -> None:
    assert findings(path, source) == []


def test_every_module_rule_has_a_sample() -> None:
    caught = {rule for rule, _, _ in CAUGHT}
    assert len(caught) == len(ratchets.MODULE_RULES)


def test_cycles_are_found_also_long_ones_and_chains_are_not() -> None:
    assert ratchets.cycles({"a": ["b"], "b": ["c"], "c": []}) == []
    assert ratchets.cycles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert sorted(ratchets.cycles({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c", "a"]})) == [["a", "b"], ["c", "d"]]


def test_lazy_cycle_in_a_real_package_is_found(tmp_path: Path) -> None:
    package = tmp_path / "src/penstock"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "a.py").write_text("import penstock.b\n")
    (package / "b.py").write_text("def f():\n    import penstock.a\n")
    assert [finding.message for finding in ratchets.import_cycles(tmp_path)] == ["penstock.a <-> penstock.b"]


def test_base_is_small() -> None:
    large = ratchets.Module.parse("src/penstock/base/a.py", "x = 1\n" * 301)
    assert list(ratchets.base_size([large])) == []
    assert [finding.rule for finding in ratchets.base_size([large, large])] == ["base-size"]


def test_an_exception_needs_a_reason_and_a_use() -> None:
    found = findings(SRC, "def f():\n    import json")
    text = '[[lazy]]\npath = "{}"\nname = "json"\nreason = "{}"\n'
    assert ratchets.judge(found, ratchets.read_allowed(text.format(SRC, "start-up"))) == []
    assert [f.rule for f in ratchets.judge(found, ratchets.read_allowed(text.format(SRC, " ")))] == ["lazy", "stale"]
    assert [f.rule for f in ratchets.judge([], ratchets.read_allowed(text.format(SRC, "start-up")))] == ["stale"]
