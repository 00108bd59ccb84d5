"""``make demo`` itself: it ends well, and leaves nothing behind, whether it ends well or is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]


# Whoever runs the tests in the background may have them ignore SIGINT, which a child would inherit.
HEARS_CTRL_C = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]);"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, str(ROOT / "tools" / "demo.py")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip


def left_of(folder: Path) -> list[str]:
    """Processes that still know the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{folder}/penstock-demo-".encode() in told:
                found.append(f"{entry.name} {told[:80]!r}")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts its folder. Not tmp_path: every pytest that starts takes away others' way into its root."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def assert_clean(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while left_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_of(folder) == []
    assert list(folder.iterdir()) == []


def test_the_demo_ends_well(folder: Path) -> None:
    process = start(folder)
    output, _ = process.communicate(timeout=580)
    assert process.returncode == 0, output
    for line in ("resumed at step", "test accuracy", "RankRestarted", "the ledger's chain of hashes is whole"):
        assert line in output
    assert_clean(folder)


def test_interrupted_in_the_middle_it_cleans_up(folder: Path) -> None:
    process = start(folder)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "step" in line and "/" in line and "loss" in line:
            break
    assert process.poll() is None, seen
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, seen + rest
    assert_clean(folder)
