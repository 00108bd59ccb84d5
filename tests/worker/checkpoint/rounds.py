"""A process that saves and prunes until it is killed; ``python -m tests.worker.checkpoint.rounds FOLDER``.

Each tensor holds its checkpoint's step, so that a mixture of two would show.
"""

from __future__ import annotations

import sys

import torch

from penstock.worker.checkpoint.public import Checkpointer, Options


class Weights(torch.nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        for index in range(4):
            self.register_buffer(f"w{index}", torch.full((40, 1000), float(step)))


def main() -> int:
    weights = Weights(-1)
    ckpt = Checkpointer(sys.argv[1], weights=weights, keep=2, every=1, options=Options(reserve=0))
    start = ckpt.load()
    found = {float(end) for tensor in weights.buffers() for end in (tensor.min(), tensor.max())}
    if found != {float(start - 1)}:
        sys.stdout.write(f"WRONG {start} {sorted(found)}\n")
        return 1
    sys.stdout.write(f"start {start}\n")
    sys.stdout.flush()
    step = start
    while True:
        for tensor in weights.buffers():
            tensor.fill_(float(step))
        ckpt.save(step)
        ckpt.wait()
        sys.stdout.write(f"saved {step}\n")
        sys.stdout.flush()
        step += 1


if __name__ == "__main__":
    sys.exit(main())
