"""The copy into the staging buffer: in shares, by several threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.worker.checkpoint import staging
from penstock.worker.checkpoint.layout import make_layout
from penstock.worker.checkpoint.staging import Staging
from penstock.worker.checkpoint.tensors import place
from penstock.worker.checkpoint.writing import write_shard


@pytest.mark.parametrize("threads", [1, 3])
def test_what_was_copied_is_written(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_SHARE", 100_000)  # tensors of several shares, and shares of several tensors
    tensors = [torch.randn(1_000_000), torch.randn(700, 900).t(), torch.empty(0), torch.tensor(3.0)]
    tensors += [torch.randn(size) for size in range(1, 3000, 13)]
    placed = [place(f"t{index}", tensor) for index, tensor in enumerate(tensors)]
    layout = make_layout("f", [item.box for item in placed])
    header = layout.header({})
    buffer = Staging(layout, pinned=False, threads=threads)
    for turn in range(3):
        for tensor in tensors:
            tensor.add_(1)
        path = tmp_path / f"{turn}"
        buffer.copy([item.local for item in placed], header)
        write_shard(str(path), buffer.source(), 1 << 16)
        data = path.read_bytes()
        assert data[: len(header)] == header
        for item, start in zip(placed, layout.starts, strict=True):
            expected = item.local.contiguous().numpy().tobytes()
            assert data[start : start + len(expected)] == expected, item.box.name
    buffer.close()
