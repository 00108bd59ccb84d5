"""What an active check is: a program of somebody else's, how it is called, and what its answer means. Frozen, and pure.

A check is run on the node itself, as root's agent there, and only while no job has the devices that it uses. It says one of
three things: passed, failed, or could not be run. The last one proves nothing, and lets no node back into service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Result(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked. ``model``: of its GPUs, as NVML names it. ``folder``: where a file may be written. ``limits``: what
    the site asks for instead of the shipped figures, by their name.
    """

    gpus: int = 0
    model: str = ""
    folder: str = "/tmp"  # noqa: S108 - fio makes and removes a file of its own there
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``devices``: those that failed, as the program names them; empty where it is the node. Figures are in base units."""

    check: str
    result: Result
    message: str
    devices: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


class Check(Protocol):
    """One file in this folder."""

    name: str
    program: str
    busy: bool  # it wants the GPUs for itself
    seconds: float  # after which it is given up

    def command(self, subject: Subject) -> Sequence[str]:
        """Its arguments; no shell."""

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        """Total: an answer that it does not know is "not run", with the words of it."""


def not_run(check: str, why: str) -> Outcome:
    return Outcome(check, Result.NOT_RUN, why)


def held_to(check: str, figures: Mapping[str, float], least: Mapping[str, float], unit: float, word: str) -> Outcome:
    """Passed where each figure that has a least is no lower. ``unit``: of the words' numbers."""
    short = {name: figures[name] for name in least if name in figures and figures[name] < least[name]}
    told = ", ".join(f"{name} {value / unit:.3g} {word}" for name, value in sorted(figures.items()))
    if short:
        words = ", ".join(
            f"{name} {value / unit:.3g} of at least {least[name] / unit:.3g} {word}"
            for name, value in sorted(short.items())
        )
        return Outcome(check, Result.FAILED, words, figures=dict(figures))
    return Outcome(check, Result.PASSED, told, figures=dict(figures))
