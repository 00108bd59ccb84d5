"""Faults of a disk, made on purpose in one of several checkpoints."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from penstock.worker.checkpoint import folder

KINDS = ("flip", "truncate", "missing", "stale", "swapped")


def inflict(directory: Path, chance: random.Random) -> str:
    """Damage the newest checkpoint in ``directory`` (which has an older one, of two shards each); says how."""
    old, new = (Path(entry.path) for entry in folder.entries(str(directory))[-2:])
    kind = chance.choice(KINDS)
    file = chance.choice(sorted(new.iterdir()))
    shards = sorted(new.glob("*.safetensors"))
    if kind == "flip":
        data = bytearray(file.read_bytes())
        at = chance.randrange(len(data))
        data[at] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(data))
    elif kind == "truncate":
        os.truncate(file, chance.randrange(file.stat().st_size))
    elif kind == "missing":
        file.unlink()
    elif kind == "stale":
        shutil.copyfile(old / file.name, file)
    else:
        one, other = shards[:2]
        one.rename(new / "x")
        other.rename(one)
        (new / "x").rename(other)
    return f"{kind} {file.name}"
