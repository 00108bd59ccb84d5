"""All causes that are known, as data: ``CAUSES`` by id. The files beside this one are read when the first is asked for.

A file is a layer of the system; what its fields mean stands in README.md. A file that is wrong is our own mistake: it raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from penstock.telemetry.spec import Severity

LAYERS = (
    "input",
    "storage",
    "checkpoint",
    "job",
    "host",
    "software",
    "gpu",
    "network",
    "config",
    "collective",
    "workload",
    "numerics",
    "fleet",
)
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the second takes ten times as long


@dataclass(frozen=True, slots=True)
class LookAlike:
    """What a cause is easily taken for: another cause's id, or words; and how the two are told apart."""

    cause: str
    how: str


@dataclass(frozen=True, slots=True)
class Injection:
    """How the cause is made on a small machine without GPUs. "replay": only by recorded telemetry; "both": its effect
    for real, its telemetry recorded.
    """

    kind: Literal["real", "replay", "both"]
    how: str


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why a training is slow, stands still, fails or learns nonsense."""

    id: str
    name: str
    layer: str
    severity: Severity
    what_it_is: str  # two or three sentences for who knows no systems
    signals: tuple[str, ...]
    evidence: str  # what tells it from all others
    look_alikes: tuple[LookAlike, ...]
    what_to_do: tuple[str, ...]  # commands and settings, the first one first
    injection: Injection
    sources: tuple[str, ...]


class _Causes(Mapping[str, Cause]):
    """Reads the files when it is first asked for something: most starts never ask."""

    def __getitem__(self, name: str) -> Cause:
        return _read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read())

    def __len__(self) -> int:
        return len(_read())


CAUSES: Mapping[str, Cause] = _Causes()


@cache
def _read() -> Mapping[str, Cause]:
    found: dict[str, Cause] = {}
    for layer in LAYERS:
        found |= {name: _cause(name, layer, entry) for name, entry in read_data(f"{layer}.yaml").items()}
    return found


def read_data(name: str) -> Any:
    """What a YAML file of this folder holds."""
    loader = _Loader(resources.files("penstock.diagnosis.knowledge").joinpath(name).read_text("utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _cause(name: str, layer: str, entry: Mapping[str, Any]) -> Cause:
    return Cause(
        id=name,
        name=entry["name"],
        layer=layer,
        severity=Severity(entry["severity"]),
        what_it_is=entry["what"],
        signals=tuple(entry["signals"]),
        evidence=entry["evidence"],
        look_alikes=tuple(LookAlike(other, how) for other, how in entry["look_alikes"].items()),
        what_to_do=tuple(entry["do"]),
        injection=Injection(**entry["injection"]),
        sources=tuple(entry["sources"]),
    )
