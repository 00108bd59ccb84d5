"""``penstock.checkpoint``: the names that a training script uses."""

from __future__ import annotations

from penstock.worker.checkpoint.checkpointer import Checkpointer
from penstock.worker.checkpoint.dcp import Reader, Stager, Writer
from penstock.worker.checkpoint.errors import (
    CheckpointError,
    Damaged,
    FolderInUse,
    NewerFormat,
    OtherModel,
    SaveFailed,
    Unencodable,
)
from penstock.worker.checkpoint.options import Options
from penstock.worker.checkpoint.reading import verify
from penstock.worker.checkpoint.upkeep import latest

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Damaged",
    "FolderInUse",
    "NewerFormat",
    "Options",
    "OtherModel",
    "Reader",
    "SaveFailed",
    "Stager",
    "Unencodable",
    "Writer",
    "latest",
    "verify",
]
