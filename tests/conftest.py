"""What every room's tests share: Hypothesis profiles, what is left out, free ports."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from benchmarks import soak_report
from tests.slurm_cluster import Cluster, cluster

ROOT = Path(__file__).resolve().parent.parent

# One noisy machine runs these beside much else: time is no claim of a property test, so there is no deadline.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=100, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("ci", max_examples=500, deadline=None, suppress_health_check=_QUIET, print_blob=True)
settings.register_profile("soak", max_examples=10_000, deadline=None, suppress_health_check=_QUIET, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

_LEFT_OUT = pytest.StashKey[dict[str, int]]()
_SOAK = pytest.StashKey[soak_report.Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-report", default=None, help="where `make soak` writes what the bars read")
    parser.addoption("--fuzz", action="store_true", help="Hypothesis properties alone, and how many cases each ran")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = {}
    config.stash[_SOAK] = soak_report.Report.new(soak_report.commit(ROOT), platform.node(), time.time())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count, what needs root, or a Debian package that `make test-deps` said is missing here."""
    path = ROOT / "build/left-out"
    missing = set(path.read_text().split()) if path.exists() else set()
    if os.geteuid() != 0:
        missing.add("root")
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    if config.getoption("--fuzz"):
        items[:] = [item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)]
    for item in items:
        needs = {name for mark in item.iter_markers("needs") for name in mark.args} & missing
        (left if needs else kept).append(item)
        for name in needs:
            config.stash[_LEFT_OUT][name] = config.stash[_LEFT_OUT].get(name, 0) + 1
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_LEFT_OUT] |= getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name, count in sorted(config.stash[_LEFT_OUT].items()):
        terminalreporter.write_line(
            f"left out: {count} tests that need {name}, which is not installed (make test-deps)"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Under --fuzz a property tells how many cases it really ran, and whether there are no more."""
    report = yield
    told = getattr(item, "hypothesis_statistics", "")
    if call.when == "call" and item.config.getoption("--fuzz") and told:
        ran = sum(int(number) for number in re.findall(r"(\d+) passing", told))
        report.user_properties.append((f"soak:{item.nodeid}", {"cases": ran, "all": "nothing left to do" in told}))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name.startswith("soak:"):
            _measured.setdefault(name.removeprefix("soak:"), value)


_measured: dict[str, Any] = {}


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    worker = getattr(session.config, "workeroutput", None)
    if worker is not None:  # of ``pytest -n``: it tells the process that prints; each leaves out the same
        worker["left_out"] = session.config.stash[_LEFT_OUT]
    path = session.config.getoption("--soak-report")
    if path and not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        report = session.config.stash[_SOAK]
        failed, passed = session.testsfailed, session.testscollected - session.testsfailed
        report.finish(at=time.time(), exit_status=int(exitstatus), passed=passed, failed=failed, measured=_measured)
        report.write(ROOT / path)


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[Any]]]:
    """Append what you start: whatever still runs at the test's end is killed, by its pid."""
    started: list[subprocess.Popen[Any]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder that jobs' users can pass through (pytest's own is closed to them)."""
    path = Path(tempfile.mkdtemp(prefix="penstock-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """A real Slurm, one a worker (tests/slurm_cluster.py): cancel what you submit, restart what you stop."""
    with cluster() as started:
        yield started
