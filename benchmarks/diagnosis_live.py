"""Two ranks of the trials' training that go on until SIGTERM: ``python -m benchmarks.diagnosis_live FOLDER``. Prints their pids.

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

RANKS = 2
STEPS = 1_000_000


class Over(Exception):
    """SIGTERM was heard."""


def _hear(_number: int, _frame: FrameType | None) -> None:
    raise Over


def main() -> int:
    folder = Path(sys.argv[1])
    watch.COUNT_S = 0.2  # type: ignore[misc]
    watch.EVERY_S = 0.2  # type: ignore[misc]
    data, saves = folder / "data", folder / "saves"
    make_data(data)
    saves.mkdir()
    gc.freeze()
    fabric, cages = Fabric(RANKS), Cages(RANKS)
    options = [Options(rank, RANKS, STEPS, fabric.address(0), 29_511, str(data), str(saves)) for rank in range(RANKS)]
    signal.signal(signal.SIGTERM, _hear)
    life = Life(folder / "trial", fabric, cages, options, {})
    try:
        print(json.dumps([life.pids[rank] for rank in range(RANKS)]), flush=True)
        while life.poll():
            time.sleep(0.05)
        return 1
    except Over:
        return 0
    finally:
        life.end()
        cages.close()
        fabric.close()


if __name__ == "__main__":
    sys.exit(main())
