"""Imports and exports: to the bit, from and to what the others write, and no pickle of theirs runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, OtherModel
from penstock.worker.checkpoint.exporting import export, export_folder
from penstock.worker.checkpoint.foreign import find_dcp, find_torch, read_metadata
from penstock.worker.checkpoint.importing import INDEX, Found, find_safetensors, is_safetensors, write_imported
from penstock.worker.checkpoint.public import Checkpointer, Reader, verify
from penstock.worker.checkpoint.tensors import DTYPES
from penstock.worker.checkpoint.to_dcp import export_dcp
from tests.worker.checkpoint.training import Training


def odd() -> dict[str, torch.Tensor]:
    """Every type, and the shapes that are easily forgotten. Bit patterns, also those that are no number."""
    found = {}
    for name, dtype in DTYPES.items():
        data = torch.arange(16 * 24, dtype=torch.int64).mul(37).remainder(2 if dtype == torch.bool else 256)
        found[f"{name}.m"] = data.to(torch.uint8).view(dtype).reshape(4, -1).clone()
        found[f"{name}.scalar"] = found[f"{name}.m"].flatten()[1].clone()
        found[f"{name}.empty"] = torch.empty(0, dtype=dtype)
        found[f"{name}.none"] = torch.empty((3, 0, 2), dtype=dtype)
    return found


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert {name: bits(value) for name, value in one.items()} == {name: bits(value) for name, value in other.items()}


def brought(found: Found, tmp_path: Path, step: int = 0) -> folder.Entry:
    entry, _ = write_imported(found, str(tmp_path / "c"), step)
    verify(entry.path)
    return entry


def read(entry: folder.Entry, like: dict[str, torch.Tensor], part: str = "model") -> dict[str, torch.Tensor]:
    state = {f"{part}.{name}": torch.zeros_like(value) for name, value in like.items()}
    dcp_load(state, storage_reader=Reader(entry.path), no_dist=True)
    return {name.removeprefix(f"{part}."): value for name, value in state.items()}


def without_complex(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors has no C128."""
    return {name: value for name, value in tensors.items() if not name.startswith("C128")}


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_to_the_bit_and_back(tmp_path: Path, sharded: bool) -> None:
    tensors = without_complex(odd())
    save_file(tensors, tmp_path / "in.safetensors")
    entry = brought(find_safetensors(str(tmp_path / "in.safetensors"), "model"), tmp_path)
    same(read(entry, tensors), tensors)
    manifest = folder.checked_manifest(entry)
    if not sharded:
        out = tmp_path / "out.safetensors"
        assert export(entry.path, manifest, str(out), "model")[0] == len(tensors)
        same(load_file(out), tensors)
        return
    out = tmp_path / "hf"
    export_folder(entry.path, manifest, str(out), "model", 2000)
    index = json.loads((out / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    found: dict[str, torch.Tensor] = {}
    for file in files:
        assert (out / file).stat().st_size < 2000 + 16384
        with safe_open(out / file, "pt") as opened:
            assert all(index["weight_map"][name] == file for name in opened.keys())  # noqa: SIM118 - no dictionary
        found |= load_file(out / file)
    same(found, tensors)
    again = write_imported(find_safetensors(str(out), "model"), str(tmp_path / "again"), 0)[0]
    same(read(again, tensors), tensors)
    with pytest.raises(CheckpointError, match="is a folder with something in it"):
        export_folder(entry.path, manifest, str(out), "model", 2000)


def test_dcp_to_the_bit_and_back(tmp_path: Path) -> None:
    tensors = odd()
    dcp_save({"model": tensors, "note": {"lr": 0.5, "seen": [1, "two"]}}, checkpoint_id=tmp_path / "in", no_dist=True)
    entry = brought(find_dcp(str(tmp_path / "in"), "model"), tmp_path)
    same(read(entry, tensors), tensors)
    export_dcp(entry.path, folder.checked_manifest(entry), str(tmp_path / "out"))
    state: dict[str, Any] = {
        "model": {name: torch.zeros_like(value) for name, value in tensors.items()},
        "note": {"lr": 0.0, "seen": []},
    }
    dcp_load(state, checkpoint_id=tmp_path / "out", no_dist=True)
    same(state["model"], tensors)
    assert state["note"] == {"lr": 0.5, "seen": [1, "two"]}


def test_a_training_goes_through_dcp_and_on(tmp_path: Path) -> None:
    """Saved here, exported, read by plain DCP into torch's own state dictionaries, saved by it, imported, gone on with."""
    training = Training()
    ckpt = training.checkpointer(tmp_path / "a", every=3)
    training.run(ckpt, 0, 6)
    ckpt.close()
    entry = folder.entries(str(tmp_path / "a"))[-1]
    export_dcp(entry.path, folder.checked_manifest(entry), str(tmp_path / "dcp"))
    plain = Training(seed=1)
    plain.one()
    state: dict[str, Any] = {
        "model": get_model_state_dict(plain.model),
        "optimizer": get_optimizer_state_dict(plain.model, plain.optimizer),
        "scheduler": plain.scheduler.state_dict(),
    }
    dcp_load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    model: dict[str, Any] = get_model_state_dict(training.model)
    same(model, state["model"])
    ours: dict[str, Any] = get_optimizer_state_dict(training.model, training.optimizer)
    for name, values in ours["state"].items():
        same(values, state["optimizer"]["state"][name])
    assert state["optimizer"]["param_groups"] == ours["param_groups"]
    assert state["scheduler"] == training.scheduler.state_dict()
    dcp_save(state, checkpoint_id=tmp_path / "theirs", no_dist=True)
    brought(find_dcp(str(tmp_path / "theirs"), "model"), tmp_path, step=6)
    again = Training(seed=2)
    ckpt = again.checkpointer(tmp_path / "c")
    assert ckpt.load() == 6
    ckpt.close()
    same(again.state(), training.state())
    found: dict[str, Any] = get_optimizer_state_dict(again.model, again.optimizer)
    for name, values in ours["state"].items():
        same(values, found["state"][name])
    assert again.scheduler.state_dict() == training.scheduler.state_dict()


def test_a_model_alone_begins_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training()
    save_file(training.state(), tmp_path / "model.safetensors")
    assert is_safetensors(str(tmp_path))
    brought(find_safetensors(str(tmp_path), "model"), tmp_path)
    other = Training(seed=1)
    ckpt = other.checkpointer(tmp_path / "c", every=1)
    assert ckpt.load() == 0
    assert "which has no optimizer and no scheduler: begun afresh" in capsys.readouterr().err
    same(other.state(), training.state())
    other.run(ckpt, 0, 2)
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path / "c"))] == [0, 0, 1]
    with pytest.raises(OtherModel, match=r"model.0.weight is \[9, 12\] here and \[12, 12\] in the checkpoint"):
        Training(width=9).checkpointer(tmp_path / "only", every=1).load() if brought_again(tmp_path) else None


def brought_again(tmp_path: Path) -> bool:
    write_imported(find_safetensors(str(tmp_path), "model"), str(tmp_path / "only"), 0)
    return True


class Tied(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(7, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors(tmp_path: Path) -> None:
    model, state = Tied(0), Tied(0).state_dict()
    ckpt = Checkpointer(str(tmp_path / "a"), model=model)
    ckpt.save(1)
    ckpt.close()
    entry = folder.entries(str(tmp_path / "a"))[-1]
    export(entry.path, folder.checked_manifest(entry), str(tmp_path / "both.safetensors"), "model")
    same(load_file(tmp_path / "both.safetensors"), state)
    export_dcp(entry.path, folder.checked_manifest(entry), str(tmp_path / "dcp"))
    save_file({"embed.weight": state["embed.weight"]}, tmp_path / "one.safetensors")  # as Hugging Face saves it
    torch.save(state, tmp_path / "model.pt")
    for index, found in enumerate(
        (
            find_safetensors(str(tmp_path / "both.safetensors"), "model"),
            find_safetensors(str(tmp_path / "one.safetensors"), "model"),
            find_dcp(str(tmp_path / "dcp"), "model"),
            find_torch(str(tmp_path / "model.pt"), "model"),
        )
    ):
        write_imported(found, str(tmp_path / f"c{index}"), 5)
        other = Tied(1)
        ckpt = Checkpointer(str(tmp_path / f"c{index}"), model=other)
        assert ckpt.load() == 5
        ckpt.close()
        same(other.state_dict(), state)
        assert other.head.weight is other.embed.weight


def test_torch_save_to_the_bit(tmp_path: Path) -> None:
    tensors = odd()
    torch.save({f"module.{name}": value for name, value in tensors.items()}, tmp_path / "ddp.pt")
    same(read(brought(find_torch(str(tmp_path / "ddp.pt"), "model"), tmp_path), tensors), tensors)
    usual = {name: value for name, value in tensors.items() if name.split(".")[0] in {"F32", "BF16", "I64", "BOOL"}}
    torch.save(usual, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    entry = write_imported(find_torch(str(tmp_path / "old.pt"), "model"), str(tmp_path / "old"), 0)[0]
    same(read(entry, usual), usual)
    training = Training()
    training.one()
    whole = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(), "epoch": 3}
    torch.save(whole, tmp_path / "whole.pt")
    found = find_torch(str(tmp_path / "whole.pt"), "model")
    assert [text.split(":")[0] for text in found.left_out] == ["optimizer", "epoch"]
    same(read(brought(found, tmp_path), training.state()), training.state())


class Boom:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"w": torch.zeros(2), "x": Boom(mark)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="refused, never unpickled"):
        find_torch(str(tmp_path / "evil.pt"), "model")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Boom(mark)))
    with pytest.raises(CheckpointError):
        find_torch(str(tmp_path / "plain.pkl"), "model")
    dcp_save({"w": torch.zeros(2), "n": 1}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    (tmp_path / "dcp/.metadata").write_bytes(pickle.dumps(Boom(mark)))
    with pytest.raises(CheckpointError, match=r"is refused: it asks for io\.open"):
        find_dcp(str(tmp_path / "dcp"), "model")
    for module, name in (("builtins", "getattr"), ("builtins", "eval"), ("torch", "load"), ("os", "system")):
        payload = b"c" + f"{module}\n{name}\n".encode() + b"(c__main__\nX\nS'a'\ntR."
        (tmp_path / "dcp/.metadata").write_bytes(payload)
        with pytest.raises(CheckpointError, match="is refused"):
            read_metadata(str(tmp_path / "dcp"))
    getattr_of_known = b"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\nMetadata\nS'__subclasses__'\ntR."
    (tmp_path / "dcp/.metadata").write_bytes(getattr_of_known)
    with pytest.raises(CheckpointError, match=r"it asks for builtins\.getattr"):
        read_metadata(str(tmp_path / "dcp"))
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Boom(mark)))
    with pytest.raises(Damaged, match="is a pickle"):
        find_safetensors(str(tmp_path / "m.safetensors"), "model")
    assert not mark.exists()


def test_an_object_of_dcp_that_needs_code_is_left_out(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    dcp_save({"model": {"w": torch.ones(2)}, "x": {"boom": Boom(mark)}}, checkpoint_id=tmp_path / "d", no_dist=True)
    mark.unlink(missing_ok=True)
    found = find_dcp(str(tmp_path / "d"), "model")
    assert found.left_out == [f"x.boom: {tmp_path}/d: x.boom holds more than tensors and plain data: refused"]
    same(read(brought(found, tmp_path), {"w": torch.ones(2)}), {"w": torch.ones(2)})
    assert not mark.exists()


@pytest.mark.parametrize("how", ["short", "header", "offsets", "index", "outside", "dcp-short", "dcp-outside"])
def test_a_source_that_is_damaged_is_named_and_nothing_is_committed(tmp_path: Path, how: str) -> None:
    file = tmp_path / "hf" / "model.safetensors"
    file.parent.mkdir()
    save_file({"w": torch.zeros(100), "b": torch.zeros(3)}, file)
    data = file.read_bytes()
    source = str(file)
    if how == "short":
        file.write_bytes(data[:-8])
    elif how == "header":
        file.write_bytes(data[:20] + b"\xff" + data[21:])
    elif how == "offsets":
        file.write_bytes(data.replace(b"[100]", b"[101]"))
    elif how in {"index", "outside"}:
        name = "model.safetensors" if how == "index" else "../hf/model.safetensors"
        (file.parent / INDEX).write_text(json.dumps({"weight_map": {"w": name, "missing": name}}))
        source = str(file.parent)
    else:
        source = str(tmp_path / "dcp")
        dcp_save({"w": torch.zeros(100)}, checkpoint_id=source, no_dist=True)
        if how == "dcp-short":
            shard = tmp_path / "dcp/__0_0.distcp"
            shard.write_bytes(shard.read_bytes()[:-50])
        else:
            metadata = tmp_path / "dcp/.metadata"
            metadata.write_bytes(metadata.read_bytes().replace(b"__0_0.distcp", b"../0/.distcp"))
    with pytest.raises(Damaged, match=f"{tmp_path}|outside the folder"):
        write_imported(
            (find_dcp if how.startswith("dcp") else find_safetensors)(source, "model"), str(tmp_path / "c"), 0
        )
    assert folder.entries(str(tmp_path / "c")) == []
