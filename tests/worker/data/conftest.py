"""A small data set whose tokens say which sample they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.worker.data.prepare import Options, prepare

BLOCK = 8


def make_data(folder: Path, samples: int = 50, per_chunk: int = 7, first: int = 0) -> str:
    """Sample n is ``first + n``, eight times; chunks of seven samples, the last one of fewer."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "tokens.npy", np.repeat(np.arange(first, first + samples, dtype=np.uint16), BLOCK))
    out = str(folder / "tokens")
    prepare([str(folder / "tokens.npy")], out, Options(block_size=BLOCK, chunk_bytes=12 + per_chunk * BLOCK * 2))
    return out


@pytest.fixture
def data(tmp_path: Path) -> str:
    return make_data(tmp_path)
