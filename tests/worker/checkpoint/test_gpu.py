"""Checkpoints of what is on a GPU: every byte comes back, through a pinned buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.worker.checkpoint.public import Checkpointer

pytestmark = pytest.mark.gpu


def training() -> tuple[Any, Any, Any]:
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=50)


def steps(parts: tuple[Any, Any, Any], count: int) -> list[float]:
    model, optimizer, scheduler = parts
    losses = []
    for _ in range(count):
        batch = torch.randn(64, 512, device="cuda")
        loss = (torch.nn.functional.dropout(model(batch), 0.1) - batch).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    return losses


def made(path: Path, parts: tuple[Any, Any, Any]) -> Checkpointer:
    return Checkpointer(str(path), model=parts[0], optimizer=parts[1], scheduler=parts[2], every=10**9)


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    parts = training()
    torch.manual_seed(1)
    torch.cuda.manual_seed(1)
    steps(parts, 5)
    checkpointer = made(tmp_path, parts)
    assert checkpointer.load() == 0
    checkpointer.save(4)
    checkpointer.wait()
    staging = checkpointer._staging
    assert staging is not None and staging.result()._pinned
    assert all(view is None or view.is_pinned() for view in staging.result().views)
    uninterrupted = steps(parts, 5)
    checkpointer.close()

    again = training()
    steps(again, 1)  # other weights, and an optimizer with its state on the GPU
    resumed = made(tmp_path, again)
    assert resumed.load() == 5
    assert steps(again, 5) == uninterrupted
    resumed.close()
    for one, other in zip(parts[0].state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    """The loop goes on overwriting the weights while they are written."""
    parts = training()
    steps(parts, 2)
    checkpointer = made(tmp_path, parts)
    before = {name: value.clone() for name, value in parts[0].state_dict().items()}
    checkpointer.save(1)
    steps(parts, 20)
    checkpointer.wait()
    checkpointer.load()
    for name, value in parts[0].state_dict().items():
        assert torch.equal(value, before[name])
    checkpointer.close()


def test_odd_kinds_and_layouts(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("halves", torch.randn(33, 7, device="cuda").to(torch.bfloat16))
            self.register_buffer("turned", torch.randn(64, 48, device="cuda").t())
            self.register_buffer("small", torch.tensor(3.5, device="cuda", dtype=torch.float64))
            self.register_buffer("eight", torch.randn(9, 9, device="cuda").to(torch.float8_e4m3fn))
            self.register_buffer("here", torch.arange(5))

    odd = Odd()
    kept = {name: value.clone() for name, value in odd.state_dict().items()}
    checkpointer = Checkpointer(str(tmp_path), odd=odd, every=10**9)
    checkpointer.step(0)
    checkpointer.save(1)
    checkpointer.wait()
    for value in odd.state_dict().values():
        value.zero_()
    checkpointer.load()
    checkpointer.close()
    for name, value in odd.state_dict().items():
        assert torch.equal(
            value.view(torch.uint8) if value.dtype.itemsize == 1 else value,
            kept[name].view(torch.uint8) if value.dtype.itemsize == 1 else kept[name],
        ), name
