"""penstock.watch in ordinary loops: what it says each step was spent on, and that nothing of it is left afterwards."""

from __future__ import annotations

import gc
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import penstock
from penstock.diagnosis import reading
from penstock.diagnosis.state import Rank
from penstock.engines.reports import parse
from penstock.worker import configured, faults, report
from penstock.worker import watch as watching
from penstock.worker.counting import Counts
from penstock.worker.watch import Watcher, figures, tokens

WAIT_S = 0.02


class Job:
    """This process as rank 0 of a job whose reports are a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "watch" / "0"
        lines = path.read_bytes().splitlines() if path.exists() else []
        found = [parse(line, 0, json.loads(line)["at"]) for line in lines]
        return [each for each in found if each is not None]

    def rank(self) -> Rank:
        return reading.watched(self.events())[0]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    (tmp_path / "progress").mkdir()
    fd = os.open(tmp_path / "progress" / "0", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    monkeypatch.setenv("PENSTOCK_REPORT_FD", str(fd))
    monkeypatch.setenv("RANK", "0")
    report.channel.cache_clear()
    yield Job(tmp_path)
    report.channel.cache_clear()
    os.close(fd)


class Slow(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(WAIT_S)
        return torch.full((4,), float(index))


class Waits(nn.Module):
    """Takes its time, forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(WAIT_S)
        loss: torch.Tensor = self.inner(batch).square().mean()
        return loss


def loop(model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, per_step: Any = None) -> None:
    for n, batch in enumerate(loader):
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if per_step is not None:
            per_step(n, loss)


def test_each_phase_is_told_as_what_it_was(job: Job) -> None:
    model = Waits()
    loader = DataLoader(Slow(), batch_size=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = penstock.watch(model, optimizer, loader)
    loop(
        model,
        loader,
        optimizer,
        lambda n, _: torch.save(model.state_dict(), job.folder / f"{n}.pt") if n == 2 else None,
    )
    watcher.close()
    rank = job.rank()
    assert [step.step for step in rank.steps] == list(range(6))
    for step in rank.steps:
        assert step.data is not None and step.compute is not None and step.optimizer is not None
        assert step.data >= WAIT_S and step.compute >= WAIT_S and step.comm is not None and step.comm < WAIT_S / 2
        assert step.tokens == 1 and step.loss is not None
        parts = [step.data, step.compute, step.comm, step.optimizer, step.checkpoint or 0.0, step.gc or 0.0]
        assert sum(parts) <= step.total + 1e-4
    assert [step.step for step in rank.steps if step.checkpoint] == [3]
    assert rank.config["optimizer"] == "SGD" and rank.config["dtype"] == "float32"


def test_a_collection_of_garbage_is_no_computing(job: Job) -> None:
    class Collects(nn.Linear):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            gc.collect()
            return super().forward(batch).sum()

    model = Collects(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    loop(model, [torch.ones(2, 4)] * 3, optimizer)
    watcher.close()
    assert all(step.gc and step.gc > 1e-4 for step in job.rank().steps)


def test_a_loader_that_cannot_be_changed_is_iterated_through_the_watcher(job: Job) -> None:
    model = Waits()
    optimizer = torch.optim.SGD(model.parameters())
    batches = [torch.ones(1, 4)] * 3
    watcher = penstock.watch(model, optimizer, batches)
    assert len(watcher) == 3
    loop(model, watcher, optimizer)
    watcher.close()
    assert len(job.rank().steps) == 3


def test_accumulated_gradients_are_one_step(job: Job) -> None:
    model = Waits()
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    for _ in range(3):
        for _ in range(2):
            model(torch.ones(1, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    watcher.close()
    steps = job.rank().steps
    assert len(steps) == 3
    assert all(step.compute is not None and step.compute >= 2 * WAIT_S and step.tokens == 2 for step in steps)


def test_what_is_measured_without_gradients_is_no_step(job: Job) -> None:
    model = Waits()
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    with torch.no_grad():
        model(torch.ones(1, 4))
    loop(model, [torch.ones(1, 4)], optimizer)
    watcher.close()
    assert [step.tokens for step in job.rank().steps] == [1]


def test_a_parameter_that_gets_no_gradient_any_more(job: Job) -> None:
    """The hook sits on one parameter: where that is frozen later, another is found."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    for n in range(8):
        if n == 3:
            model[1].requires_grad_(requires_grad=False)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    watcher.close()
    assert all(step.compute for step in job.rank().steps)


def test_a_loss_that_is_no_number_is_told(job: Job) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    for value in (1.0, math.nan, math.inf):
        model(torch.ones(1, 4)).sum().backward()
        watcher.loss(torch.tensor(value))
        optimizer.step()
    watcher.close()
    losses = [step.loss for step in job.rank().steps]
    assert losses[0] == 1.0 and losses[1] is not None and math.isnan(losses[1]) and losses[2] == math.inf


def test_steps_are_counted_as_the_script_counts_them(job: Job) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    for n in range(500, 530):
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        optimizer.step()
        penstock.report(step=n, loss=loss)
    watcher.close()
    steps = job.rank().steps
    assert [step.step for step in steps] == list(range(500, 530))
    assert sum(step.loss is not None for step in steps) >= 25


def test_ranks_that_hold_the_same_have_the_same_checksums(job: Job) -> None:
    def sums(spoilt: float) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        with torch.no_grad():
            model.weight[0, 0] += spoilt
        optimizer = torch.optim.SGD(model.parameters())
        known = len(job.events())
        watcher = penstock.watch(model, optimizer, checksum_every=2)
        loop(model, [torch.ones(1, 4)] * 4, optimizer)
        watcher.close()
        return [each["data"]["checksum"] for each in job.events()[known:] if "checksum" in each["data"]]

    assert sums(0.0) == sums(0.0) != sums(1e-6)


@pytest.mark.parametrize(("change", "written"), [("write", 1), ("memory", 0), ("", None)])
def test_parameters_that_change_between_two_steps_of_the_optimizer(job: Job, change: str, written: int | None) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer, checksum_every=1)
    loop(model, [torch.ones(1, 4)] * 2, optimizer)
    if change == "write":
        with torch.no_grad():
            model.weight[0, 0] += 1
    elif change == "memory":
        model.weight.data[0, 0] += 1
    loop(model, [torch.ones(1, 4)] * 2, optimizer)
    watcher.close()
    told = [each["data"] for each in job.events() if "moved_step" in each["data"]]
    assert [(each["moved_step"], each["moved_written"]) for each in told] == ([] if written is None else [(1, written)])


def test_a_hang_of_a_game_day_ends_when_it_is_undone(tmp_path: Path) -> None:
    path, model = tmp_path / "inject.json", nn.Linear(1, 1)
    path.write_text(json.dumps({"faults": [{"fault": "hang", "strength": 600}]}))
    broken = faults.Faults(str(path), 0)
    broken.arm(model, torch.optim.SGD(model.parameters()))
    undone = threading.Timer(0.2, path.unlink)
    undone.start()
    model(torch.ones(1, 1))  # 600 s if it did not look
    undone.join()
    broken.disarm()
    assert not path.exists()


def test_nothing_is_left_of_it(job: Job) -> None:
    model, data = nn.Linear(4, 1), DataLoader(TensorDataset(torch.ones(4, 4)))
    optimizer = torch.optim.SGD(model.parameters())
    before = (torch.save, torch.distributed.distributed_c10d.Work.wait, len(gc.callbacks))
    watcher = penstock.watch(model, optimizer, data)
    assert isinstance(data, DataLoader) and type(data) is not DataLoader and torch.save is not before[0]
    assert watcher
    watcher.close()
    watcher.close()
    assert (torch.save, torch.distributed.distributed_c10d.Work.wait, len(gc.callbacks)) == before
    assert not model._forward_pre_hooks and not optimizer._optimizer_step_pre_hooks
    assert type(data) is DataLoader


@pytest.mark.parametrize("path", ["", "faults.json"])
def test_faults_have_hooks_only_where_the_job_asks_for_them_and_until_it_closes(
    job: Job, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("PENSTOCK_INJECT", path and str(job.folder / path))
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    watcher = penstock.watch(model, optimizer)
    assert bool(model.weight._backward_hooks) is bool(path)
    assert len(optimizer._optimizer_step_post_hooks) == (2 if path else 1)
    watcher.close()
    assert not model.weight._backward_hooks and not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_outside_a_job_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_REPORT_FD", raising=False)
    report.channel.cache_clear()
    model = nn.Linear(4, 1)
    watcher = penstock.watch(model, torch.optim.SGD(model.parameters()), [1, 2])
    assert isinstance(watcher, Watcher) and not watcher.active and list(watcher) == [1, 2]
    assert not model._forward_pre_hooks
    assert penstock.watch(model, None, object())
    with watcher.checkpoint():
        watcher.loss(1.0)
    watcher.close()


def test_what_is_kept_beside_a_file_of_reports_is_bounded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "BESIDE_BYTES", 2000)
    for n in range(100):
        report.tell("counters", {"rss_bytes": n})
    sizes = [
        (job.folder / "watch" / name).stat().st_size
        for name in ("0", "0.old")
        if (job.folder / "watch" / name).exists()
    ]
    assert len(sizes) == 2 and all(size < 2200 for size in sizes)
    assert (job.folder / "progress" / "0").stat().st_size == 0


def test_counters_of_this_kernel() -> None:
    counts = Counts()
    first = counts.read()
    assert {"cpu_s", "rss_bytes", "nonvoluntary", "open_files", "max_files"} <= first.keys()
    sum(range(100_000))
    second = counts.read()
    assert second["cpu_s"] >= first["cpu_s"] and second.keys() == first.keys()
    counts.close()


def test_the_environment_that_is_told_names_no_secret() -> None:
    told = configured.environment(
        {"NCCL_IB_DISABLE": "1", "NCCL_API_KEY": "s3cret", "HOME": "/root", "TORCH_TOKEN": "x"}
    )
    assert told == ["NCCL_IB_DISABLE=1"]


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ((torch.zeros(2, 8, dtype=torch.int64),), 16),
        ((torch.zeros(3, 5),), 3),
        ((torch.zeros(2, 7, 4),), 14),
        ((torch.zeros(2, 3, 8, 8),), 2),
        (({"input_ids": torch.zeros(2, 8, dtype=torch.int64)},), 16),
        ((1, "x"), 0),
    ],
)
def test_how_much_a_forward_pass_was_given(args: tuple[Any, ...], count: int) -> None:
    assert tokens(args, {}) == count


def test_figures_are_json() -> None:
    assert figures([1, math.nan, -math.inf, None, torch.tensor(2.5), "x"]) == [1.0, "nan", "-inf", None, 2.5, None]


def test_the_events_of_watch_have_one_list() -> None:
    from penstock.engines.reports import WATCH  # noqa: PLC0415

    assert frozenset(report.WATCH) == WATCH and watching.BATCH <= 20
