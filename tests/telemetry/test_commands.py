"""``penstock agent``: a look for a person, a unit and a DaemonSet, and what it refuses."""

from __future__ import annotations

import configparser
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from penstock.base.settings import Settings
from penstock.cli.catalogue import ENTRIES
from penstock.cli.main import parser_of, run
from penstock.telemetry import commands
from penstock.telemetry.commands import VERBS
from tests.telemetry.sources.planted import tree


def penstock(folder: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(["agent", *words], Settings(str(folder / "data"), color=False), serve=lambda _: 1)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_look_at_a_recorded_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "node", "node.tree")
    flags = ("--once", "--node", "n0", "--root", root, "--node-exporter", "off", "--dcgm-exporter", "off")
    code, out, _ = penstock(tmp_path, *flags, "-o", "json", capsys=capsys)
    assert code == 0
    said = json.loads(out)
    sources = {one["source"]: one for one in said["sources"]}
    assert sources.keys() == {"kmsg", "clock", "pci", "host", "disk", "infiniband", "nvml"}
    assert sources["host"]["values"] > 40 and sources["kmsg"]["problem"]
    code, out, _ = penstock(tmp_path, *flags, capsys=capsys)
    assert code == 0 and "Nothing is wrong that one look can tell." in out


def test_a_unit_runs_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = penstock(
        tmp_path,
        "--render",
        "systemd",
        "--url",
        "https://p:1",
        "--gpus",
        "8",
        "--slurm",
        "--node",
        "n$0%",
        capsys=capsys,
    )
    assert code == 0
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # because the stub types it as a method
    unit.read_string(out)
    words = shlex.split(unit["Service"]["ExecStart"].replace("%%", "%").replace("$$", "$"))
    assert words[0].startswith("/")
    parsed = parser_of(ENTRIES["agent"], VERBS["agent"]).parse_args(words[2:])
    assert (parsed.url, parsed.gpus, parsed.slurm, parsed.node) == ("https://p:1", 8, True, "n$0%")


def test_a_daemonset_runs_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = 'registry.example/penstock:1.0"'
    flags = ("--render", "daemonset", "--url", "https://p:1", "--image", image, "--gpus", "8")
    code, out, _ = penstock(tmp_path, *flags, capsys=capsys)
    assert code == 0
    found = yaml.safe_load(out)
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (found["kind"], container["image"], pod["hostPID"]) == ("DaemonSet", image, True)
    parsed = parser_of(ENTRIES["agent"], VERBS["agent"]).parse_args(container["command"][2:])
    assert (parsed.root, parsed.gpus, parsed.listen) == ("/host", 8, "0.0.0.0:7072")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--node", "a b"), "is no node's name"),
        (("--listen", "7072"), "write HOST:PORT"),
        (("--listen", "127.0.0.1:x"), "write HOST:PORT"),
        (("--listen", "192.0.2.1:1"), "--listen 192.0.2.1:1"),
        (("--state-dir", "/proc/nothing"), "/proc/nothing"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = penstock(tmp_path, *words, capsys=capsys)
    assert code != 0 and problem in err


def test_one_agent_for_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with commands._alone(str(tmp_path / "state")):
        code, _, err = penstock(tmp_path, "--state-dir", str(tmp_path / "state"), capsys=capsys)
    assert code == 5 and "another agent uses" in err


def test_it_runs_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "penstock.app", "--data-dir", str(tmp_path), "agent", "--node", "n0", "--dry-run"]
    with subprocess.Popen([*words, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("metrics: http://127.0.0.1:")
        assert process.stderr.readline().startswith("node n0: kmsg, clock, pci")
        process.terminate()
        assert process.wait(20) == 0
