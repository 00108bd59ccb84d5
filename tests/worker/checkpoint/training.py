"""A small training that the tests of checkpoints share: every kind of state that resuming must bring back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from penstock.worker.checkpoint.public import Checkpointer, Options

WIDTH = 12


class Sampler:
    """A data position: which of the samples comes next, and a generator of its own."""

    def __init__(self) -> None:
        self.at = 0
        self.chance = random.Random(7)

    def batch(self) -> torch.Tensor:
        self.at += 1
        return torch.full((4, WIDTH), self.at / 100 + self.chance.random())

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "chance": self.chance.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.chance.setstate(state["chance"])


class Training:
    def __init__(self, width: int = WIDTH, seed: int = 0) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is part of what is saved
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, width), torch.nn.Dropout(0.2), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.sampler = Sampler()

    def checkpointer(self, directory: object, options: Options | None = None, **more: Any) -> Checkpointer:
        return Checkpointer(
            str(directory),
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            loader=self.sampler,
            options=options or Options(),
            **more,
        )

    def one(self) -> float:
        noise = random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002 - as above
        loss = (self.model(self.sampler.batch()) * noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.item())

    def run(self, ckpt: Checkpointer | None, start: int, stop: int) -> list[float]:
        losses = []
        for step in range(start, stop):
            losses.append(self.one())
            if ckpt is not None and ckpt.step(step):
                break
        return losses

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}
