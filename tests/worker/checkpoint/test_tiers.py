"""Tiers: every checkpoint gets a second, verified home; a lost or damaged first one is loaded from there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, FolderInUse
from penstock.worker.checkpoint.public import Checkpointer, Options, verify
from penstock.worker.checkpoint.tiers import Tier
from tests.worker.checkpoint.test_faults import two_checkpoints
from tests.worker.checkpoint.training import Training


def with_tier(tmp_path: Path, **more: float) -> Options:
    return Options(tiers=(str(tmp_path / "tier"),), tier_keep=2, **more)  # type: ignore[arg-type]  # of one field alone


def test_what_is_committed_is_copied_and_loaded_when_the_first_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training()
    ckpt = training.checkpointer(tmp_path / "c", with_tier(tmp_path), every=5)
    training.run(ckpt, ckpt.load(), 20)
    ckpt.close()
    copies = folder.entries(str(tmp_path / "tier"))
    assert copies[-1].step == 19
    assert len(copies) <= 2
    for entry in copies:
        verify(entry.path)
    shard = Path(folder.entries(str(tmp_path / "c"))[-1].path, "rank-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    other = Training(seed=1)
    ckpt = other.checkpointer(tmp_path / "c", with_tier(tmp_path))
    assert ckpt.load() == 20
    ckpt.close()
    assert "step 19 is damaged" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "c")
    again = Training(seed=2)
    ckpt = again.checkpointer(tmp_path / "c", with_tier(tmp_path), every=2)
    assert ckpt.load() == 20
    again.run(ckpt, 20, 22)
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path / "c"))] == [21]
    assert folder.entries(str(tmp_path / "tier"))[-1].step == 21


def test_a_copy_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    two_checkpoints(tmp_path / "c")
    entry = folder.entries(str(tmp_path / "c"))[-1]
    half = tmp_path / "tier" / f".tmp-{entry.id}"
    half.mkdir(parents=True)
    (tmp_path / "tier/.tmp-of-another").mkdir()
    shard = Path(entry.path, "rank-00000.safetensors").read_bytes()
    (half / "rank-00000.safetensors").write_bytes(shard[:9000] + bytes(100) + shard[9100:12000])
    tier = Tier(str(tmp_path / "tier"), 2, None, {})
    assert tier.promote(entry)
    assert not tier.promote(entry)
    verify(folder.entries(str(tmp_path / "tier"))[0].path)
    assert min(os.listdir(tmp_path / "tier")) == ".lock"
    assert len(os.listdir(tmp_path / "tier")) == 2
    with pytest.raises(FolderInUse):
        Tier(str(tmp_path / "tier"), 2, None, {}).promote(entry)
    tier.close()


def test_a_damaged_one_is_not_promoted(tmp_path: Path) -> None:
    two_checkpoints(tmp_path / "c")
    entry = folder.entries(str(tmp_path / "c"))[-1]
    shard = Path(entry.path, "rank-00001.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    tier = Tier(str(tmp_path / "tier"), 2, None, {})
    with pytest.raises(Damaged):
        tier.promote(entry)
    assert folder.entries(str(tmp_path / "tier")) == []
    tier.close()


def test_a_limit_on_bandwidth_is_kept(tmp_path: Path) -> None:
    two_checkpoints(tmp_path / "c")
    entry = folder.entries(str(tmp_path / "c"))[-1]
    tier = Tier(str(tmp_path / "tier"), 2, 100_000, {})
    began = time.monotonic()
    tier.promote(entry)
    size = sum(path.stat().st_size for path in Path(entry.path).glob("*.safetensors"))
    assert time.monotonic() - began >= 0.9 * size / 100_000
    tier.close()


def test_what_is_no_tier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gs://b: a tier is a folder or s3://BUCKET/PREFIX"):
        Checkpointer(str(tmp_path), model=torch.nn.Linear(2, 2), options=Options(tiers=("gs://b",)))


def test_a_tier_that_cannot_be_written_does_not_stop_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tier").write_text("no folder")
    training = Training()
    ckpt = training.checkpointer(tmp_path / "c", with_tier(tmp_path), every=5)
    training.run(ckpt, 0, 5)
    ckpt.close()
    assert "was not copied to" in capsys.readouterr().err
    assert [entry.step for entry in folder.entries(str(tmp_path / "c"))] == [4]
