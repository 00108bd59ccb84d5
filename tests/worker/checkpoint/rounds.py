"""Savers that are killed: ``python -m tests.worker.checkpoint.rounds FOLDER`` starts one for each line that it reads.

Each is a fork of this process, which has imported torch once; it loads, checks what it loaded, and then saves and prunes
until it is killed. Each tensor holds its checkpoint's step, so that a mixture of two would show.
"""

from __future__ import annotations

import os
import sys

import torch

from penstock.worker.checkpoint.public import Checkpointer, Options


class Weights(torch.nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        for index in range(4):
            self.register_buffer(f"w{index}", torch.full((40, 1000), float(step)))


def saver(directory: str) -> int:
    torch.set_num_threads(1)
    weights = Weights(-1)
    tiers = (f"{directory}-tier",) if os.path.isdir(f"{directory}-tier") else ()
    options = Options(reserve=0, tiers=tiers)
    ckpt = Checkpointer(directory, weights=weights, keep=2, every=1, options=options)
    start = ckpt.load()
    found = {float(end) for tensor in weights.buffers() for end in (tensor.min(), tensor.max())}
    if found != {float(start - 1)}:
        tell(f"WRONG {start} {sorted(found)}")
        return 1
    tell(f"start {start}")
    step = start
    while True:
        for tensor in weights.buffers():
            tensor.fill_(float(step))
        ckpt.save(step)
        ckpt.wait()
        tell(f"saved {step}")
        step += 1


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main() -> int:
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(saver(sys.argv[1]))
        tell(f"pid {child}")
        os.waitpid(child, 0)
        tell("dead")
    return 0


if __name__ == "__main__":
    sys.exit(main())
