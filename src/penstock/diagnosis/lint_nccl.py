"""What is wrong with a job's ``NCCL_*`` variables: names, values, interfaces, fast paths turned off. Pure.

The variables are data, ``knowledge/nccl.yaml``, with their source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from penstock.base.text import one_line
from penstock.diagnosis.configured import Advice, Setup
from penstock.diagnosis.knowledge.catalogue import read_data

CAUSE: Final = "nccl_wrong_env"
_NEAR: Final = 0.85  # of letters alike: a name that is nearer than that is a misspelt one
_LONGEST: Final = 200  # of a name or value that is looked at
_UNSEEN: Final = 0.5  # of the strength where it is not known whether the case is given
_WORD: Final = re.compile(r"-?[0-9]{1,18}")


@cache
def data() -> Mapping[str, Any]:
    return dict(read_data("nccl.yaml"))


@cache
def _names() -> frozenset[str]:
    known = data()
    slow = (entry["name"] for entry in known["slow"])
    return frozenset((*known["values"], *known["others"], *known["foreign"], *known["per_rank"], *slow))


def rules(setup: Setup) -> Iterator[Advice]:
    """Of one rank."""
    for name, value in sorted(setup.env.items()):
        if name.startswith("NCCL_") and len(name) <= _LONGEST:
            yield from _name(name)
            yield from _value(name, value.strip())
            yield from _slow(setup, name, value.strip())
    yield from _interfaces(setup)
    yield from _cards(setup)


def _name(name: str) -> Iterator[Advice]:
    known = data()
    if name in _names() or name.startswith(tuple(known["foreign_prefixes"])):
        return
    near = get_close_matches(name, sorted(_names()), n=1, cutoff=_NEAR)
    if near:
        words = f"{name} is no variable of NCCL, so it does nothing; {near[0]} is one"
        yield Advice(CAUSE, name, 0.6, words, f"Write {near[0]}.")
    else:
        words = f"{name} is no variable that NCCL is known to read"
        yield Advice(CAUSE, name, 0.1, words, f"Remove {name}, unless a plugin reads it.")


def _value(name: str, value: str) -> Iterator[Advice]:
    rule = data()["values"].get(name)
    if rule is None or not value:
        return
    wrong = _wrong(rule, value)
    if wrong:
        shown = one_line(value, 40)
        why = f" ({rule['why']})" if "why" in rule else ""
        yield Advice(CAUSE, name, 0.6, f"{name}={shown}: {wrong}{why}", f"Unset {name}, or give it such a value.")


def _wrong(rule: Mapping[str, Any], value: str) -> str:
    """What the value should be; "" where it is."""
    if "one_of" in rule:
        return "" if value.upper() in _upper(rule["one_of"]) else f"it must be one of {', '.join(rule['one_of'])}"
    if "list_of" in rule:
        if re.search(r"[:;]", value):  # by collective, since 2.24
            return ""
        words = value[:_LONGEST].lstrip("^").upper().split(",")
        odd = [word for word in words if word.strip() not in _upper(rule["list_of"])]
        return f"{odd[0]!r} is none of {', '.join(rule['list_of'])}" if odd else ""
    least, most = rule.get("min"), rule.get("max")
    if not _WORD.fullmatch(value):
        return "it must be a whole number"
    if (least is not None and int(value) < least) or (most is not None and int(value) > most):
        return f"it must be {least} or more" if most is None else f"it must be from {least} to {most}"
    return ""


def _upper(words: Sequence[str]) -> frozenset[str]:
    return frozenset(word.upper() for word in words)


def _slow(setup: Setup, name: str, value: str) -> Iterator[Advice]:
    for entry in data()["slow"]:
        if entry["name"] != name or value.upper() not in _upper(entry["is"]):
            continue
        weight, against = _given(setup, entry)
        if weight > 0:
            evidence = f"{name}={value}: {entry['why']}"
            yield Advice(CAUSE, name, round(entry["strength"] * weight, 3), evidence, entry["do"], against)


def _given(setup: Setup, entry: Mapping[str, Any]) -> tuple[float, str]:
    """How likely the case is given in which the setting costs time, and what speaks against it."""
    if entry.get("unless_no_ib") and setup.seen and not setup.cards:
        return 0.0, ""
    backend = setup.text("backend")
    if backend and "nccl" not in backend:
        return _UNSEEN, f"the job's backend is {backend}, which does not read it"
    where = entry.get("where")
    if where == "across" and setup.nodes == 1:
        return 0.1, "the job runs on one node"
    if where == "within" and setup.neighbours == 1:
        return 0.1, "each node has one rank"
    if entry.get("unless_no_ib") and not setup.cards:
        return _UNSEEN, "it is not known whether the nodes have InfiniBand"
    return 1.0, ""


# -- interfaces and cards --------------------------------------------------------------------------------------


def matching(pattern: str, names: frozenset[str]) -> frozenset[str]:
    """Which interfaces or cards a value of NCCL_SOCKET_IFNAME or NCCL_IB_HCA chooses: prefixes, ``=`` exact, ``^`` all but."""
    but = pattern.startswith("^")
    rest = pattern[1:] if but else pattern
    exact = rest.startswith("=")
    words = [word.split(":")[0].strip() for word in rest.removeprefix("=").split(",")]
    words = [word for word in words if word]
    hit = {name for name in names if any(name == word if exact else name.startswith(word) for word in words)}
    return names - hit if but else frozenset(hit)


def _interfaces(setup: Setup) -> Iterator[Advice]:
    for name, exact in (("NCCL_SOCKET_IFNAME", False), ("GLOO_SOCKET_IFNAME", True), ("TP_SOCKET_IFNAME", True)):
        value = setup.env.get(name, "").strip()[:_LONGEST]
        if not value or not setup.interfaces:
            continue
        if not matching("=" + value if exact and value[0] not in "^=" else value, setup.interfaces):
            there = ", ".join(sorted(setup.interfaces - {"lo"})[:8])
            words = f"{name}={one_line(value, 60)} matches no interface of the node, which has {there}"
            yield Advice(
                CAUSE, name, 0.9, words, f"Set {name} to the interface of the training's network, or unset it."
            )


def _cards(setup: Setup) -> Iterator[Advice]:
    value = setup.env.get("NCCL_IB_HCA", "").strip()[:_LONGEST]
    if value and setup.cards and not matching(value, setup.cards):
        there = ", ".join(sorted(setup.cards)[:8])
        words = f"NCCL_IB_HCA={one_line(value, 60)} matches no card of the node, which has {there}: NCCL falls back to sockets"
        yield Advice(
            "nccl_socket_fallback",
            "NCCL_IB_HCA",
            0.9,
            words,
            "Set NCCL_IB_HCA to the cards' prefix (mlx5), or unset it.",
        )


def disagreeing(every: Sequence[Setup]) -> Iterator[Advice]:
    """Variables that must be the same on all ranks and are not: NCCL then hangs or fails at its start."""
    names = sorted(
        {name for setup in every for name in setup.env if name.startswith("NCCL_")} - set(data()["per_rank"])
    )
    for name in names:
        values = [setup.env.get(name, "") for setup in every]
        if len(set(values)) < 2:
            continue
        usual = max(sorted(set(values)), key=values.count)
        odd = tuple(setup.rank for setup in every if setup.env.get(name, "") != usual)
        told = sorted({setup.env.get(name, "") for setup in every if setup.rank in odd})
        words = f"{name} is {_shown(told[0])} on some ranks and {_shown(usual)} on the others"
        yield Advice(CAUSE, name, 0.7, words, f"Give {name} the same value on all ranks, best none.", ranks=odd)


def _shown(value: str) -> str:
    return repr(one_line(value, 40)) if value else "unset"
