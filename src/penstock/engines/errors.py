"""What any engine may raise besides the house's own errors."""

from __future__ import annotations

from penstock.base.errors import EngineFailure


class Unreachable(EngineFailure):
    """The engine's own service does not answer: nothing is known of what was asked, and it is asked again."""
