"""DCP over this format: saved on N ranks, loaded on M, equal to the last bit; and nothing unverified, nothing pickled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.exporting import export
from penstock.worker.checkpoint.layout import Box, make_layout
from penstock.worker.checkpoint.public import Checkpointer, Damaged, Reader, Stager, Unencodable, Writer, latest
from penstock.worker.checkpoint.staging import streamed

ROOT = Path(__file__).resolve().parents[3]


def content(value: float) -> dict[str, Any]:
    return {"w": torch.full((300, 7), value), "inner": {"b": torch.full((), value), "lr": value, "name": "x"}}


def test_alone_it_saves_and_loads(tmp_path: Path) -> None:
    save(content(2.5), checkpoint_id="step-40", storage_writer=Writer(str(tmp_path)), no_dist=True)
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [40]
    found = content(0.0)
    load(found, storage_reader=Reader(str(tmp_path)), no_dist=True)
    assert torch.equal(found["w"], content(2.5)["w"])
    assert found["inner"] == {"b": torch.tensor(2.5), "lr": 2.5, "name": "x"}


def test_retention_and_a_damaged_one(tmp_path: Path) -> None:
    for step in range(4):
        save(content(step), storage_writer=Writer(str(tmp_path), step, keep=2), no_dist=True)
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [2, 3]
    newest = folder.entries(str(tmp_path))[-1]
    shard = Path(newest.path, "rank-00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(bytes(data))
    found = content(0.0)
    load(found, storage_reader=Reader(str(tmp_path)), no_dist=True)
    assert found["inner"]["lr"] == 2
    with pytest.raises((Damaged, CheckpointException), match="not what was written"):
        load(content(0.0), storage_reader=Reader(newest.path), no_dist=True)


def test_objects_that_would_need_pickle_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises((Unencodable, CheckpointException), match="no plain data"):
        save({"a": object(), "w": torch.ones(3)}, storage_writer=Writer(str(tmp_path)), no_dist=True)
    assert os.listdir(tmp_path) == [".lock"]
    save({"w": torch.ones(3)}, storage_writer=Writer(str(tmp_path)), no_dist=True)
    assert latest(str(tmp_path)) is not None


def test_the_stager_keeps_its_buffer(tmp_path: Path) -> None:
    stager, state = Stager(), content(1.0)
    first = stager.stage(state)
    at = first["w"].data_ptr()
    state["w"].fill_(9.0)
    assert first["w"][0, 0].item() == 1.0
    assert stager.stage(state)["w"].data_ptr() == at
    stager.close()


def test_it_reads_what_the_checkpointer_wrote(tmp_path: Path) -> None:
    layer = torch.nn.Linear(8, 4)
    ckpt = Checkpointer(str(tmp_path), model=layer)
    ckpt.save(3)
    ckpt.close()
    found = {"model": {name: torch.zeros_like(value) for name, value in layer.state_dict().items()}}
    load(found, storage_reader=Reader(str(tmp_path)), no_dist=True)
    assert torch.equal(found["model"]["weight"], layer.weight)


@pytest.mark.real
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (2, 3)])
def test_saved_on_n_ranks_loaded_on_m(tmp_path: Path, before: int, after: int) -> None:
    for verb, ranks in (("save", before), ("load", after)):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*launcher, "-m", "tests.worker.checkpoint.sharded", verb, str(tmp_path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "{'lr': 0.25, 'seen': [1, 'two'], 'when': (3, None)}" in done.stdout
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [1, 2]


def test_columns_and_rows_of_many_ranks_are_exported_whole(tmp_path: Path) -> None:
    series = folder.new_series([])
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    parts = []
    for rank in (0, 1):
        ticket = saving.Ticket(str(tmp_path), folder.save_id(series, 1), 3, rank, 2)
        rows, columns = whole[rank * 2 : rank * 2 + 2], whole[:, rank * 3 : rank * 3 + 3]
        boxes = [
            Box("model.rows", "BF16", (4, 6), (rank * 2, 0), (2, 6)),
            Box("model.columns", "BF16", (4, 6), (0, rank * 3), (4, 3)),
        ]
        layout = make_layout(saving.shard_name(rank), boxes)
        source = streamed(layout, [rows, columns], layout.header(saving.notes_of(ticket)))
        saving.begin(ticket)
        parts.append(saving.write_part(ticket, source, layout, {}, {}))
    path, manifest = saving.conclude(saving.Ticket(str(tmp_path), folder.save_id(series, 1), 3, 0, 2), parts[0])
    export(path, manifest, str(tmp_path / "out.safetensors"), "model")
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["rows"], whole)
    assert torch.equal(found["columns"], whole)
