"""`penstock checkpoint` on folders that real saves made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penstock.base.errors import InvalidInput, NotFound
from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import FolderInUse
from penstock.worker.checkpoint.public import Checkpointer
from tests.cli.conftest import Cli
from tests.cli.test_startup import imported


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Three checkpoints, the newest one damaged."""
    layer = torch.nn.Linear(5, 3)
    ckpt = Checkpointer(str(tmp_path / "c"), model=layer, keep=5)
    for step in (1, 2, 3):
        with torch.no_grad():
            layer.weight.fill_(step)
        ckpt.save(step)
    ckpt.close()
    shard = Path(folder.entries(str(tmp_path / "c"))[-1].path, "rank-00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    return tmp_path / "c"


def test_list_and_verify(saved: Path, cli: Cli) -> None:
    listed = cli("checkpoint", "ls", str(saved))
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == ["STEP", "1", "2", "3"]
    assert listed.out.count("committed") == 3
    verified = cli("checkpoint", "verify", str(saved))
    assert verified.code == 1
    assert verified.out.count("verified") == 2
    assert "CheckpointDamaged" in verified.out
    rows = json.loads(cli("checkpoint", "verify", str(saved), "-o", "json").out)["items"]
    assert [row["state"] for row in rows[:2]] == ["verified", "verified"]
    one = folder.entries(str(saved))[0]
    assert cli("checkpoint", "verify", one.path).code == 0


def test_prune_counts_whole_ones_alone(saved: Path, cli: Cli) -> None:
    ran = cli("checkpoint", "prune", str(saved), "--keep", "1")
    assert ran.code == 0
    assert ran.out.startswith("step 1: removed")
    assert "damaged, and counted for nothing" in ran.err
    assert [entry.step for entry in folder.entries(str(saved))] == [2, 3]
    assert cli("checkpoint", "prune", str(saved), "--keep", "0").code == InvalidInput.exit_code


def test_prune_leaves_a_job_at_work_alone(saved: Path, cli: Cli) -> None:
    ckpt = Checkpointer(str(saved), model=torch.nn.Linear(5, 3))
    assert cli("checkpoint", "prune", str(saved), "--keep", "1").code == FolderInUse.exit_code
    ckpt.close()


def test_export_takes_the_newest_whole_one(saved: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    ran = cli("checkpoint", "export", str(saved), str(out))
    assert ran.code == 0
    assert "step 3 is damaged and not used" in ran.err
    assert ran.out.startswith("step 2: 2 tensors, ")
    found = load_file(out)
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["weight"], torch.full((3, 5), 2.0))
    assert "It has tensors of: model." in cli("checkpoint", "export", str(saved), str(out), "--part", "x").err
    damaged = folder.entries(str(saved))[-1].path
    assert cli("checkpoint", "export", damaged, str(out)).code == NotFound.exit_code
    assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]


def test_a_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert cli("checkpoint", "ls", str(tmp_path / "none")).code == NotFound.exit_code
    assert cli("checkpoint", "ls", str(tmp_path)).code == 0


def test_it_needs_no_torch(saved: Path, tmp_path: Path) -> None:
    argv = ["checkpoint", "ls", str(saved)]
    modules = imported(f"from penstock.app import main; assert main({argv!r}) == 0", tmp_path)
    assert "xxhash" in modules
    assert not {name for name in modules if name.split(".")[0] in {"torch", "sqlalchemy", "starlette"}}


def test_what_holds_no_checkpoint_is_not_whole(saved: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    listed = cli("checkpoint", "ls", str(tmp_path / "other"))
    assert (listed.code, "no checkpoint is in" in listed.err) == (0, True)
    assert cli("checkpoint", "verify", str(tmp_path / "other")).code == 1
    out = cli("checkpoint", "export", str(saved), str(tmp_path / "nowhere" / "deep" / "model.safetensors"))
    assert out.code == InvalidInput.exit_code
    assert "nowhere/deep" in out.err
    assert "names no bucket" in cli("checkpoint", "ls", "s3://").err
