"""``penstock checkpoint`` on an object store, and its imports and exports, as a user calls them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from penstock.base.errors import InvalidInput, NotFound, Unavailable
from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.bucket import Bucket
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, FolderInUse
from penstock.worker.checkpoint.public import Checkpointer
from tests.cli.conftest import Cli
from tests.worker.checkpoint.s3_server import KEY, S3Server

URL = "s3://models/run/7"


def weights(value: float) -> torch.nn.Linear:
    made = torch.nn.Linear(5, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def save(directory: Path, *steps: int) -> list[folder.Entry]:
    for step in steps:
        ckpt = Checkpointer(str(directory), model=weights(step), keep=9)
        ckpt.save(step)
        ckpt.close()
    return folder.entries(str(directory))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    for name, value in (("ACCESS_KEY_ID", KEY[0]), ("SECRET_ACCESS_KEY", KEY[1]), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = S3Server("rclone", tmp_path / "s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()


@pytest.mark.real
def test_ls_verify_export_and_prune_in_a_store(tmp_path: Path, s3: S3Server, cli: Cli) -> None:
    entries = save(tmp_path / "c", 1, 2, 3)
    with closing(Bucket(URL, 3, None)) as tier:
        for entry in entries:
            tier.promote(entry)
        assert cli("checkpoint", "prune", URL, "--keep", "1").code == FolderInUse.exit_code
    ran = cli("checkpoint", "ls", URL)
    assert ran.code == 0
    assert ran.out.count("committed") == 3
    assert ran.out.count(f"{URL}/") == 3
    assert cli("checkpoint", "verify", URL).out.count("verified") == 3
    (damaged,) = (tmp_path / "s3/models/run/7").glob(f"{Path(entries[2].path).name}/rank-00000.safetensors/000000")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    ran = cli("checkpoint", "verify", URL)
    assert ran.code == 1
    assert "CheckpointDamaged" in ran.out
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    ran = cli("checkpoint", "export", URL, str(out))
    assert "step 3 is damaged and not used" in ran.err
    assert ran.out.startswith("step 2: 2 tensors, ")
    assert torch.equal(load_file(out)["weight"], torch.full((3, 5), 2.0))
    assert os.listdir(out.parent) == ["model.safetensors"]
    ran = cli("checkpoint", "prune", URL, "--keep", "1")
    assert ran.out.startswith("step 1: removed (s3://models/run/7/1-")
    assert "damaged, and counted for nothing" in ran.err
    assert cli("checkpoint", "ls", URL).out.count("committed") == 2


@pytest.mark.real
def test_a_store_that_does_not_answer(s3: S3Server, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.always["GET"] = 403
    ran = cli("checkpoint", "ls", URL)
    assert ran.code == Unavailable.exit_code
    assert "s3://models/run/7: the store answered 403" in ran.err
    assert cli("checkpoint", "ls", "gs://b/x").code == CheckpointError.exit_code


def test_import_and_export(tmp_path: Path, cli: Cli) -> None:
    state = dict(weights(7.0).state_dict())
    save_file(state, tmp_path / "model.safetensors")
    ran = cli("checkpoint", "import", str(tmp_path / "model.safetensors"), str(tmp_path / "c"), "--step", "40")
    assert ran.code == 0
    assert ran.out.startswith("2 tensors, ")
    assert [entry.step for entry in folder.entries(str(tmp_path / "c"))] == [39]
    hf, dcp = tmp_path / "hf", tmp_path / "dcp"
    assert cli("checkpoint", "export", str(tmp_path / "c"), str(hf), "--max-shard", "16").code == 0
    assert sorted(os.listdir(hf)) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert cli("checkpoint", "export", str(tmp_path / "c"), str(dcp), "--format", "dcp").code == 0
    found = {"model": {name: torch.zeros_like(value) for name, value in state.items()}}
    dcp_load(found, checkpoint_id=dcp, no_dist=True)
    torch.save({"state_dict": state, "lr": 1}, tmp_path / "lightning.ckpt")
    for index, source in enumerate((hf, dcp, tmp_path / "lightning.ckpt")):
        ran = cli("checkpoint", "import", str(source), str(tmp_path / f"i{index}"))
        assert ran.code == 0, ran.err
        ckpt = Checkpointer(str(tmp_path / f"i{index}"), model=(model := weights(0.0)))
        assert ckpt.load() == 0
        ckpt.close()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert "left out: lr" in ran.err
    assert torch.equal(found["model"]["weight"], state["weight"])


def test_a_file_of_the_folder_where_it_is_called(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c", 1)
    monkeypatch.chdir(tmp_path)
    assert cli("checkpoint", "export", "c", "m.safetensors").code == 0
    assert torch.equal(load_file("m.safetensors")["bias"], torch.ones(3))


def test_what_is_refused(tmp_path: Path, cli: Cli) -> None:
    c = str(tmp_path / "c")
    assert cli("checkpoint", "import", str(tmp_path / "none"), c).code == NotFound.exit_code
    (tmp_path / "empty").mkdir()
    ran = cli("checkpoint", "import", str(tmp_path / "empty"), c)
    assert ran.code == CheckpointError.exit_code
    assert "model.safetensors.index.json" in ran.err
    torch.save({"w": torch.zeros(1), "model": weights(1.0)}, tmp_path / "whole.pt")
    ran = cli("checkpoint", "import", str(tmp_path / "whole.pt"), c)
    assert ran.code == CheckpointError.exit_code
    assert "refused, never unpickled" in ran.err
    assert "Save it again as safetensors" in ran.err
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "whole.pt").read_bytes())
    ran = cli("checkpoint", "import", str(tmp_path / "m.safetensors"), c)
    assert ran.code == Damaged.exit_code
    assert "is a pickle" in ran.err
    assert not os.path.exists(c)
    save(tmp_path / "own", 1)
    assert cli("checkpoint", "export", str(tmp_path / "own"), c, "--max-shard", "many").code == InvalidInput.exit_code
    none = cli("checkpoint", "export", str(tmp_path / "own"), c, "--max-shard", "0")
    assert none.code == InvalidInput.exit_code and "--max-shard must be more than 0" in none.err
    ran = cli("checkpoint", "export", str(tmp_path / "own"), str(tmp_path / "empty/../own"), "--format", "dcp")
    assert "is a folder with something in it" in ran.err
