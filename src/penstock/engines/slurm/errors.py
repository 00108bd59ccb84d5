"""What may go wrong between the engine and a site; translated at the seam, so that nothing above knows of Slurm."""

from __future__ import annotations

from penstock.base.errors import EngineFailure


class Unreachable(EngineFailure):
    """The site does not answer: nothing is known of what was asked, and it is asked again."""


class Refused(EngineFailure):
    """Slurm answered, and will not: its own words are the message."""
