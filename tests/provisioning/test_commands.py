from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.base.settings import Settings
from penstock.cli import main
from penstock.provisioning.conf import ConfFile, Line
from penstock.provisioning.write import put
from tests.provisioning.fleets import full, text

Ran = tuple[int, str, str]
Cli = Callable[..., Ran]


@pytest.fixture
def cli(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """With no server: none is asked."""
    settings = Settings(data_dir=str(tmp_path / "data"))

    def run(*argv: object) -> Ran:
        capfd.readouterr()
        code = main.run(["provision", *map(str, argv)], settings, lambda _: 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(text(full()))
    return path


def test_render_prints_the_files(cli: Cli, fleet: Path) -> None:
    code, out, _ = cli("render", "slurm", fleet)
    assert code == 0
    assert "### gres.conf" in out
    code, out, _ = cli("render", "slurm", fleet, "-o", "json")
    assert json.loads(out)["topology.conf"].splitlines()[1] == "SwitchName=leaf1 Nodes=gpu[001-008]"


def test_render_lint_diff(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "etc/slurm"
    code, _, err = cli("render", "slurm", fleet, "--out", folder)
    assert (code, "slurmdbd.conf" in err) == (0, True)
    assert (folder / "slurmdbd.conf").stat().st_mode & 0o777 == 0o600
    assert cli("render", "slurm", fleet, "--diff", folder)[:2] == (0, "")
    assert cli("lint", "slurm", folder, "--fleet", fleet)[:2] == (0, "")
    assert cli("lint", "slurm", fleet)[:2] == (0, "")

    changed = full()
    changed["pools"][0]["gpus"] = {"model": "h100", "count": 4}
    changed["accounting"]["database"]["password"] = "other secret"
    fleet.write_text(text(changed))
    code, out, _ = cli("render", "slurm", fleet, "--diff", folder)
    assert code == 1
    assert "+NodeName=gpu[001-016] Name=gpu Type=h100 File=/dev/nvidia[0-3]" in out
    assert "secret" not in out
    assert "slurmdbd.conf: the password differs" in out
    code, out, _ = cli("lint", "slurm", folder, "--fleet", fleet)
    assert code == 1
    assert "has 8 GPUs here, and 4 in the fleet file" in out
    assert cli("render", "slurm", fleet, "--out", folder)[0] == 0
    assert cli("lint", "slurm", folder, "--fleet", fleet)[0] == 0


def test_what_others_wrote_is_not_replaced_unasked(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "slurm.conf").write_text("ClusterName=mine\n")
    (folder / "plugstack.conf").write_text("x\n")
    code, _, err = cli("render", "slurm", fleet, "--out", folder)
    assert (code, "--force" in err) == (5, True)
    assert sorted(os.listdir(folder)) == ["plugstack.conf", "slurm.conf"]
    assert cli("render", "slurm", fleet, "--out", folder, "--force")[0] == 0
    assert "ClusterName=c1" in (folder / "slurm.conf").read_text()
    assert (folder / "plugstack.conf").read_text() == "x\n"


def test_our_own_file_that_is_no_more_goes(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    cli("render", "slurm", fleet, "--out", folder)
    changed = full(topology=None)
    changed["slurm"]["version"] = "25.05"
    fleet.write_text(text(changed))
    assert cli("render", "slurm", fleet, "--out", folder)[0] == 0
    assert not (folder / "topology.conf").exists()


def test_nothing_is_half_written(tmp_path: Path) -> None:
    bad = [ConfFile("slurm.conf", (Line.of(ClusterName="c"),)), ConfFile("gres.conf", (Line.of(Name="a\nb"),))]
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(ValueError, match="must"):
            put(bad, folder)
    assert list(tmp_path.iterdir()) == []


def test_lint_of_files_that_others_wrote(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=c\nGresTypes=gpu\nNodeName=n1 Gres=gpu:2 CPUs=4\n")
    (tmp_path / "gres.conf").write_text("Name=gpu File=/dev/nvidia0\n")
    (tmp_path / "slurmdbd.conf").write_text("DbdHost=h\n")
    (tmp_path / "slurmdbd.conf").chmod(0o644)
    code, out, err = cli("lint", "slurm", tmp_path)
    assert code == 1
    assert "gres.conf:1: warning: the line names no nodes" in out
    assert "n1 has 1 gpu here and 2 in slurm.conf" in out
    assert "has the mode 0644" in out
    assert "3 found" in err
    code, out, _ = cli("lint", "slurm", tmp_path, "-o", "json")
    assert [one["level"] for one in json.loads(out)["items"]] == ["warning", "warning", "error"]


def test_what_is_wrong_with_a_fleet_file_is_told(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    fleet.write_text("kind: Fleet\nname: c1\ncontrollers: [{host: h}]\npools:\n- {name: a, nodes: 'n[1-'}\n")
    code, _, err = cli("render", "slurm", fleet)
    assert code == 2
    assert "line 5" in err
    assert "pools[0].memory" in err
    assert cli("render", "slurm", tmp_path / "none.yaml")[0] == 2
    assert cli("lint", "slurm", tmp_path / "none")[0] == 2


def test_a_file_that_cannot_be_read_hides_no_other(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    cli("render", "slurm", fleet, "--out", folder)
    (folder / "slurmdbd.conf").unlink()
    (folder / "slurmdbd.conf").mkdir(0o700)
    code, out, _ = cli("lint", "slurm", folder)
    assert (code, out) == (0, "slurmdbd.conf: warning: cannot be read. Lint the folder as a user who may read it\n")
    code, out, _ = cli("render", "slurm", fleet, "--diff", folder)
    assert (code, out) == (1, "slurmdbd.conf: what is there cannot be read\n")
