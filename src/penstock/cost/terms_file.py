"""The part of the price file that says how capacity is paid for: YAML text -> Terms, every error at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

from penstock.base.errors import InvalidInput, Problem
from penstock.base.text import one_line
from penstock.cost.terms import RULES, Commitment, Terms
from penstock.documents import TextLoader, moment

SECTIONS = ("reserved", "spot", "node_hour", "idle")
_DEEP = 6  # what is deeper is no price
_RESERVED = ("name", "gpus", "model", "gpu_hour", "nodes", "node_hour", "from", "until")


def parse(text: str, name: str = "the price file") -> Terms:
    """Reads ``SECTIONS`` of a file that ``prices.parse`` has accepted as YAML. Raises InvalidInput."""
    problems: list[Problem] = []
    try:
        whole = TextLoader(text).get_single_data()
    except (ValueError, yaml.YAMLError) as exc:
        raise InvalidInput(f"{name} cannot be read", details=[Problem("", one_line(str(exc)))]) from exc
    whole = whole if isinstance(whole, dict) else {}
    found = Terms(
        _commitments(whole.get("reserved") or [], problems),
        _rates(whole.get("node_hour") or {}, "node_hour", problems),
        _patterns(whole.get("spot") or {}, problems),
        _rates(_mapping(whole.get("spot")).get("gpu_hour") or {}, "spot.gpu_hour", problems),
        str(whole.get("idle", "own")),
    )
    if found.idle not in RULES:
        problems.append(Problem("idle", f"must be one of {', '.join(RULES)}"))
    if problems:
        lines = dict(_lines(yaml.compose(text, yaml.SafeLoader), ""))
        told = [replace(problem, line=_line(problem.path, lines)) for problem in problems]
        told.sort(key=lambda problem: problem.line or 0)
        raise InvalidInput(f"{name} has {len(told)} error(s)", details=told)
    return found


def _lines(node: yaml.Node | None, path: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The line of every path: ``reserved[0].until``."""
    if node is None or depth > _DEEP:  # an alias may hold itself
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = f"{path}.{key.value}" if path else str(key.value)
            yield where, key.start_mark.line + 1
            yield from _lines(value, where, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{path}[{index}]", value.start_mark.line + 1
            yield from _lines(value, f"{path}[{index}]", depth + 1)


def _line(path: str, lines: Mapping[str, int]) -> int | None:
    """That of a path, or of the nearest above it that is written at all."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _patterns(spot: object, problems: list[Problem]) -> tuple[str, ...]:
    names = _mapping(spot).get("nodes", [])
    for key in set(_mapping(spot)) - {"nodes", "gpu_hour"}:
        problems.append(Problem(one_line(f"spot.{key}", 100), "is not known; known are nodes, gpu_hour"))
    if not isinstance(spot, dict) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        problems.append(Problem("spot", "must be a mapping with `nodes`, a list of names or patterns (spot-*)"))
        return ()
    return tuple(names)


def _rates(value: object, path: str, problems: list[Problem]) -> dict[str, Decimal]:
    if not isinstance(value, dict):
        problems.append(Problem(path, "must be a mapping of names to prices"))
        return {}
    return {str(key): _rate(rate, one_line(f"{path}.{key}", 100), problems) for key, rate in value.items()}


def _rate(value: object, path: str, problems: list[Problem]) -> Decimal:
    try:
        rate = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:
        rate = Decimal("NaN")
    if not rate.is_finite() or not 0 <= rate <= 10**9:
        problems.append(Problem(path, "must be a price for one hour, from 0 to 1000000000"))
        return Decimal(0)
    return rate


def _commitments(value: object, problems: list[Problem]) -> tuple[Commitment, ...]:
    if not isinstance(value, list):
        problems.append(Problem("reserved", "must be a list"))
        return ()
    made = [_commitment(item, f"reserved[{index}]", problems) for index, item in enumerate(value)]
    names = [each.name for each in made]
    for index, each in enumerate(made):
        if each.name in names[:index]:
            problems.append(Problem(f"reserved[{index}].name", "is given twice"))
        for other in made[:index]:
            if set(each.nodes) & set(other.nodes) and each.start < other.end and other.start < each.end:
                problems.append(Problem(f"reserved[{index}].nodes", f"{other.name!r} covers them at the same time"))
    return tuple(made)


def _commitment(item: object, path: str, problems: list[Problem]) -> Commitment:
    said = _mapping(item)
    for key in set(said) - set(_RESERVED):
        problems.append(Problem(one_line(f"{path}.{key}", 100), f"is not known; known are {', '.join(_RESERVED)}"))
    start, end = (_moment(said.get(key), f"{path}.{key}", problems) for key in ("from", "until"))
    if start >= end:
        problems.append(Problem(f"{path}.until", "must be later than `from`"))
    if not isinstance(said.get("name"), str):
        problems.append(Problem(f"{path}.name", "is missing: what the invoice calls it"))
    nodes, gpus = said.get("nodes", []), said.get("gpus", 0)
    if not isinstance(nodes, list) or not isinstance(gpus, int) or gpus < 0 or bool(nodes) == bool(gpus):
        problems.append(
            Problem(path, "give either `nodes` (a list) with `node_hour`, or `gpus`, `model` and `gpu_hour`")
        )
        return Commitment(str(said.get("name")), Decimal(0), start, end)
    rate_of = "node_hour" if nodes else "gpu_hour"
    if gpus and not isinstance(said.get("model"), str):
        problems.append(Problem(f"{path}.model", "is missing: the model, exactly as `penstock nodes` shows it"))
    rate = _rate(said.get(rate_of), f"{path}.{rate_of}", problems)
    names = tuple(dict.fromkeys(map(str, nodes)))
    return Commitment(str(said.get("name")), rate, start, end, gpus, str(said.get("model", "")), names)


def _moment(value: object, path: str, problems: list[Problem]) -> float:
    """UTC where no zone is said; NaN, which is in no order with any other, where it is no time."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            at = moment(value)
            return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    problems.append(Problem(path, "must be a date (2026-01-31) or a time (2026-01-31T12:00:00Z)"))
    return math.nan
