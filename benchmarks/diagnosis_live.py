"""Two ranks of the trials' training that go on until SIGTERM: ``python -m benchmarks.diagnosis_live FOLDER [RANKS [LOADER_WORKERS]]``.
Prints their pids.

For tests that inject one fault after the other into one life.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks.diagnosis_net import Fabric
from benchmarks.diagnosis_ranks import Cages, Life
from benchmarks.diagnosis_train import Options, make_data
from penstock.worker import watch

RANKS = 2  # or as the second argument says
SHARES = 4096  # beside other tests, not before them
STEPS = 1_000_000


class Over(Exception):
    """SIGTERM was heard."""


def _hear(_number: int, _frame: FrameType | None) -> None:
    raise Over


def main() -> int:
    folder = Path(sys.argv[1])
    watch.COUNT_S = watch.EVERY_S = 0.2
    data, saves = folder / "data", folder / "saves"
    make_data(data)
    saves.mkdir(exist_ok=True)
    gc.freeze()
    size = int(sys.argv[2]) if len(sys.argv) > 2 else RANKS
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    fabric, cages = Fabric(size), Cages(size, SHARES)
    master = fabric.address(0)
    options = [
        Options(rank, size, STEPS, master, 29_511, str(data), str(saves), workers=workers) for rank in range(size)
    ]
    signal.signal(signal.SIGTERM, _hear)
    life = Life(folder / "trial", fabric, cages, options)
    try:
        print(json.dumps([life.pids[rank] for rank in range(size)]), flush=True)
        while life.poll():
            time.sleep(0.05)
        signal.pause()  # until it is told to stop, also when its ranks have ended
        return 1
    except Over:
        return 0
    finally:
        life.end()
        cages.close()
        fabric.close()


if __name__ == "__main__":
    sys.exit(main())
