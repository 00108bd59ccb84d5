"""``penstock.data``: the names that a training script uses."""

from __future__ import annotations

from penstock.worker.data.errors import DataDamaged, DataError, OtherData
from penstock.worker.data.loader import Options, TokenLoader
from penstock.worker.data.prepare import Options as PrepareOptions
from penstock.worker.data.prepare import prepare

__all__ = ["DataDamaged", "DataError", "Options", "OtherData", "PrepareOptions", "TokenLoader", "prepare"]
