"""What may go wrong between the engine and a site; translated at the seam, so that nothing above knows of Slurm."""

from __future__ import annotations

from penstock.base.errors import EngineFailure
from penstock.engines.errors import Unreachable

__all__ = ["Refused", "Unreachable"]


class Refused(EngineFailure):
    """Slurm answered, and will not: its own words are the message."""
