"""A script's three lines: it resumes to the last bit, and says what is wrong with whatever it is given."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.checkpointer import STOPPED, young_daly
from penstock.worker.checkpoint.manifest import NAME, manifest_bytes, read_manifest
from penstock.worker.checkpoint.public import (
    Checkpointer,
    CheckpointError,
    Damaged,
    FolderInUse,
    NewerFormat,
    Options,
    OtherModel,
    SaveFailed,
    Unencodable,
    latest,
)
from tests.worker.checkpoint.training import WIDTH, Training


def saved(directory: Path, steps: int = 10, **more: Any) -> Training:
    training = Training()
    ckpt = training.checkpointer(directory, **({"every": 5} | more))
    training.run(ckpt, ckpt.load(), steps)
    ckpt.close()
    return training


@pytest.mark.parametrize("asynchronous", [True, False])
def test_resumed_training_equals_uninterrupted_to_the_last_bit(tmp_path: Path, asynchronous: bool) -> None:
    whole = Training()
    losses = whole.run(None, 0, 25)
    first = Training()
    options = Options(asynchronous=asynchronous)
    ckpt = first.checkpointer(tmp_path, options, every=5)
    assert ckpt.load() == 0
    first.run(ckpt, 0, 13)
    ckpt.close()
    second = Training(seed=99)  # whatever it begins with is replaced
    ckpt = second.checkpointer(tmp_path, options, every=5)
    assert ckpt.load() == 10
    assert second.run(ckpt, 10, 25) == losses[10:]
    ckpt.close()
    for name, value in whole.state().items():
        assert torch.equal(second.state()[name], value), name


def test_only_the_last_k_stay(tmp_path: Path) -> None:
    saved(tmp_path, 40, keep=2, options=Options(keep_every=14))
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [14, 34, 39]


def test_a_damaged_one_is_told_and_the_one_before_it_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    newest = folder.entries(str(tmp_path))[-1]
    shard = Path(newest.path, "rank-00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 16
    shard.write_bytes(bytes(data))
    training = Training(seed=3)
    ckpt = training.checkpointer(tmp_path)
    assert ckpt.load() == 5
    ckpt.close()
    told = capsys.readouterr().err
    assert re.search(r"step 9 is damaged and not used: .*rank-00000.safetensors: bytes \d+ to \d+ are not what", told)
    assert "step 4 loaded, every byte verified" in told
    entry = latest(str(tmp_path))
    assert entry is not None
    assert entry.step == 4


def test_none_that_is_whole_is_no_fresh_start(tmp_path: Path) -> None:
    saved(tmp_path)
    for entry in folder.entries(str(tmp_path)):
        os.truncate(os.path.join(entry.path, "rank-00000.safetensors"), 5000)
    with pytest.raises(Damaged, match="none of the 2 checkpoints"):
        Training().checkpointer(tmp_path).load()
    assert latest(str(tmp_path)) is None


def test_damaged_ones_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    saved(tmp_path, 10, keep=2)
    newest = folder.entries(str(tmp_path))[-1]
    os.truncate(os.path.join(newest.path, "rank-00000.safetensors"), 5000)
    training = Training()
    ckpt = training.checkpointer(tmp_path, every=3, keep=2)
    training.run(ckpt, ckpt.load(), 6)  # goes on from step 4, saves step 5
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [4, 9, 5]


def test_a_checkpoint_of_another_model_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    saved(tmp_path)
    ckpt = Training(width=14).checkpointer(tmp_path)
    with pytest.raises(OtherModel, match=re.escape(f"model.0.weight is [14, {WIDTH}] here and [12, {WIDTH}] in")):
        ckpt.load()
    ckpt.close()
    ckpt = Checkpointer(str(tmp_path), model=torch.nn.Linear(3, 3))
    with pytest.raises(OtherModel, match=r"model\.weight \[3, 3\] is not in the checkpoint"):
        ckpt.load()
    ckpt.close()
    ckpt = Checkpointer(str(tmp_path), net=torch.nn.Linear(3, 3))
    with pytest.raises(OtherModel, match="has no 'net'; it has"):
        ckpt.load()
    ckpt.close()


def test_a_part_may_be_left_out(tmp_path: Path) -> None:
    training = saved(tmp_path)
    other = Training(seed=4)
    ckpt = Checkpointer(str(tmp_path), model=other.model)
    assert ckpt.load() == 10
    ckpt.close()
    assert all(torch.equal(other.state()[name], value) for name, value in training.state().items())


def test_a_newer_manifest_is_refused_with_words(tmp_path: Path) -> None:
    saved(tmp_path)
    for entry in folder.entries(str(tmp_path)):
        path = Path(entry.path, NAME)
        manifest = read_manifest(path.read_bytes(), "")
        fields = {name: getattr(manifest, name) for name in type(manifest).__slots__}
        path.write_bytes(manifest_bytes(type(manifest)(**(fields | {"format": 9}))))
    ckpt = Training().checkpointer(tmp_path)
    with pytest.raises(NewerFormat, match="has format 9"):
        ckpt.load()
    ckpt.close()


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch unpickled",)


@pytest.mark.parametrize("name", [NAME, "rank-00000.safetensors"])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_never_unpickled(tmp_path: Path, name: str, archive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "ckpt", 5)
    monkeypatch.chdir(tmp_path)
    path = Path(folder.entries(str(tmp_path / "ckpt"))[0].path, name)
    if archive:
        torch.save(Trap(), path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    ckpt = Training().checkpointer(tmp_path / "ckpt")
    with pytest.raises(Damaged):
        ckpt.load()
    ckpt.close()
    assert not Path("unpickled").exists()


def test_state_that_would_need_pickle_is_refused_at_the_first_step(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"inner": {"made": object()}}

        def load_state_dict(self, state: Any) -> None: ...

    ckpt = Checkpointer(str(tmp_path), model=torch.nn.Linear(2, 2), odd=Odd())
    with pytest.raises(Unencodable, match=r"odd\.inner\.made is a builtins\.object"):
        ckpt.step(0)
    ckpt.close()


def test_other_objects_and_large_tensors_in_them_come_back(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(64, 64))
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    sgd = torch.optim.SGD(average.parameters(), lr=0.5, momentum=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd)

    class History:
        def __init__(self) -> None:
            small = torch.ones(2, dtype=torch.bfloat16)
            self.kept: Any = {"seen": (1, 2), "large": torch.arange(5000.0), "small": small}

        def state_dict(self) -> Any:
            return self.kept

        def load_state_dict(self, state: Any) -> None:
            self.kept = state

    history = History()
    ckpt = Checkpointer(str(tmp_path), average=average, scaler=scaler, plateau=plateau, history=history)
    ckpt.save(1)
    ckpt.close()
    want = history.kept
    history.kept = None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 8.0})
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    ckpt = Checkpointer(str(tmp_path), average=average, scaler=scaler, plateau=plateau, history=history)
    assert ckpt.load() == 2
    ckpt.close()
    assert history.kept["seen"] == (1, 2)
    assert torch.equal(history.kept["large"], want["large"])
    assert torch.equal(history.kept["small"], want["small"])
    assert scaler.get_scale() == 512.0
    assert any(bool(parameter.any()) for parameter in average.parameters())


def test_two_jobs_on_one_folder(tmp_path: Path) -> None:
    ckpt = Checkpointer(str(tmp_path), model=torch.nn.Linear(2, 2))
    with pytest.raises(FolderInUse, match="in this process"):
        Checkpointer(str(tmp_path), model=torch.nn.Linear(2, 2))
    code = (
        "import sys; from penstock.worker.checkpoint.folder import Lock; "
        f"Lock({str(tmp_path)!r}, {{'job': 'other'}}, patience=0.1).take()"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"is in use by a process outside any job (process {os.getpid()} on " in other.stderr
    ckpt.close()
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_dead_owner_left_is_cleared_and_what_is_committed_stays(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / ".tmp-000000000001-000001-aaaaaa").mkdir()
    (tmp_path / ".del-1-x").mkdir()
    Checkpointer(str(tmp_path), model=torch.nn.Linear(2, 2)).close()
    assert sorted(name for name in os.listdir(tmp_path) if name != ".lock") == [
        os.path.basename(entry.path) for entry in folder.entries(str(tmp_path))
    ]


def test_a_copied_folder_is_not_taken_for_a_newer_one(tmp_path: Path) -> None:
    saved(tmp_path)
    old, new = folder.entries(str(tmp_path))
    shutil.rmtree(new.path)
    shutil.copytree(old.path, new.path)
    entry = latest(str(tmp_path))
    assert entry is not None
    assert entry.step == 4


def test_save_now_on_request(tmp_path: Path) -> None:
    training = Training()
    ckpt = training.checkpointer(tmp_path, every=1000)
    training.run(ckpt, 0, 2)
    (tmp_path / folder.SAVE_NOW).touch()
    ckpt._asked_at = 0.0
    training.run(ckpt, 2, 4)
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [2]
    assert not (tmp_path / folder.SAVE_NOW).exists()


def test_save_now_on_sigterm_and_then_stop(tmp_path: Path) -> None:
    training = Training()
    ckpt = training.checkpointer(tmp_path, every=1000)
    training.run(ckpt, 0, 2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)
    assert len(training.run(ckpt, 2, 10)) == 1
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [2]
    with pytest.raises(SystemExit) as stopped:
        ckpt.step(3)
    assert stopped.value.code == STOPPED
    ckpt.close()


def test_by_time(tmp_path: Path) -> None:
    training = Training()
    ckpt = training.checkpointer(tmp_path, every="1h")
    training.run(ckpt, 0, 3)
    ckpt._last_began -= 3601
    training.run(ckpt, 3, 6)
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [3]


def test_the_interval_that_loses_least(tmp_path: Path) -> None:
    assert young_daly(2.0, 3600.0) == pytest.approx(120.0)
    with pytest.raises(CheckpointError, match="mtbf"):
        Training().checkpointer(tmp_path, every="auto")
    training = Training()
    ckpt = training.checkpointer(tmp_path, Options(mtbf=3600.0), every="auto")
    assert ckpt._interval == 600
    training.run(ckpt, 0, 1)
    ckpt.save(1)
    ckpt.wait()
    assert ckpt._interval == pytest.approx(young_daly(ckpt.figures.stall_s, 3600.0))
    ckpt.close()


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@pytest.mark.needs("root")
def test_a_full_disk_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        training = Training()
        ckpt = training.checkpointer(tmp_path, every=5)
        training.run(ckpt, ckpt.load(), 5)
        ckpt.wait()
        filler = tmp_path / "filler"
        fill_up(filler)
        training.run(ckpt, 5, 10)
        training.run(ckpt, 10, 12)
        while ckpt._flight is not None:
            ckpt._settle(strict=False, block=True)
        assert "the save of step 9 failed: [Errno 28] No space left on device" in capsys.readouterr().err
        entry = latest(str(tmp_path))
        assert entry is not None
        assert entry.step == 4
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]
        ckpt.save(12)
        with pytest.raises(SaveFailed, match="No space left"):
            ckpt.save(13)
        filler.unlink()
        training.run(ckpt, 12, 15)
        ckpt.close()
        assert [entry.step for entry in folder.entries(str(tmp_path))] == [4, 14]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_quota_that_is_exceeded_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of a file: the write itself is refused, after the space looked free."""
    training = Training()
    ckpt = training.checkpointer(tmp_path, every=5)
    training.run(ckpt, ckpt.load(), 5)
    ckpt.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        training.run(ckpt, 5, 10)
        ckpt._settle(strict=False, block=True)
        ckpt.save(10)
        with pytest.raises(SaveFailed, match="File too large"):
            ckpt.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the save of step 9 failed: [Errno 27] File too large; training goes on" in capsys.readouterr().err
    entry = latest(str(tmp_path))
    assert entry is not None
    assert entry.step == 4
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]
    training.run(ckpt, 11, 15)
    ckpt.close()
    assert [entry.step for entry in folder.entries(str(tmp_path))] == [4, 14]


@pytest.mark.needs("root")
def test_a_folder_that_becomes_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], check=True)
    try:
        saved(tmp_path, 5)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        training = Training()
        ckpt = training.checkpointer(tmp_path, every=2)
        assert ckpt.load() == 5
        training.run(ckpt, 5, 7)
        ckpt._settle(strict=False, block=True)
        ckpt.save(7)
        with pytest.raises(SaveFailed, match="Read-only file system"):
            ckpt.close()
        assert "cannot be written" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_short_of_memory_the_loop_waits_for_the_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = saved(tmp_path, options=Options(reserve=1 << 60))
    assert "no asynchronous saves: staging needs" in capsys.readouterr().err
    other = Training(seed=2)
    ckpt = other.checkpointer(tmp_path)
    assert ckpt.load() == 10
    ckpt.close()
    assert all(torch.equal(other.state()[name], value) for name, value in training.state().items())
