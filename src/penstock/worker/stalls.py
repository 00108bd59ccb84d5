"""Seconds that a training loop has waited for what is no part of its steps. Who makes it wait adds; ``watch`` takes them apart."""

from __future__ import annotations

from typing import Final

waited: Final[dict[str, float]] = {"checkpoint": 0.0}
