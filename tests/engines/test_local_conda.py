"""A conda environment by its name: where conda itself would find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.engines.local.conda import locate


def made(path: Path) -> str:
    path.mkdir(parents=True)
    return str(path)


def test_a_folder_and_an_unknown_name_stay_what_they_are(tmp_path: Path) -> None:
    assert locate("/opt/envs/torch", str(tmp_path), "/usr/bin") == "/opt/envs/torch"
    assert locate("nope", str(tmp_path), "/usr/bin") == "nope"
    assert locate("nope", None, "/usr/bin") == "nope"


@pytest.mark.parametrize("root", ["miniforge3", "mambaforge", "miniconda3", "anaconda3", ".conda"])
def test_under_the_users_installations(tmp_path: Path, root: str) -> None:
    there = made(tmp_path / root / "envs/torch")
    assert locate("torch", str(tmp_path), "/usr/bin") == there


def test_the_list_that_conda_keeps_is_believed_where_the_folder_is_there(tmp_path: Path) -> None:
    there = made(tmp_path / "data/envs/torch")
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda/environments.txt").write_text(f"/gone/envs/torch\n{there}\n")
    assert locate("torch", str(tmp_path), "/usr/bin") == there


def test_the_installation_whose_conda_is_on_the_path(tmp_path: Path) -> None:
    there, binaries = made(tmp_path / "opt/conda/envs/torch"), made(tmp_path / "opt/conda/bin")
    Path(binaries, "conda").write_text("#!/bin/sh\n")
    Path(binaries, "conda").chmod(0o755)
    assert locate("torch", None, f"/usr/bin:{binaries}") == there
    assert locate("base", None, binaries) == "base"  # nothing installed there
    made(tmp_path / "opt/conda/conda-meta")
    assert locate("base", None, binaries) == str(tmp_path / "opt/conda")


def test_a_list_that_would_block_does_not(tmp_path: Path) -> None:
    (tmp_path / ".conda").mkdir()
    os.mkfifo(tmp_path / ".conda/environments.txt")
    assert locate("torch", str(tmp_path), "/usr/bin") == "torch"
