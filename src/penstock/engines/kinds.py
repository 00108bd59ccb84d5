"""The kinds of engines that can be added, found by name: no list to be kept, and none imported that is not used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from penstock.base.errors import InvalidInput, Problem
from penstock.engines.adding import Option, Plugin

_HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.parent.name for path in _HERE.glob("*/options.py"))


def options(kind: str) -> tuple[Option, ...]:
    return cast("tuple[Option, ...]", _light(kind).OPTIONS)


def where(kind: str, values: Mapping[str, Any]) -> str:
    """Where it is reached, in a few words."""
    return str(_light(kind).where(values))


def problems(kind: str, values: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with these options, unknown ones too."""
    known = {option.name: option for option in options(kind)}
    found = [
        Problem(f"options.{name[:80]}", f"{kind} engines have no such option: {', '.join(known)}")
        for name in values
        if name not in known
    ]
    for name, value in values.items():
        if name in known and not _fits(known[name], value):
            found.append(Problem(f"options.{name}", f"is no {_FORMS[known[name].form]}"))
    return found or list(_light(kind).problems(values))


def plugin(kind: str) -> Plugin:
    """Imports the kind's engine. Raises InvalidInput where there is no such kind."""
    _check(kind, "plugin")
    return cast("Plugin", import_module(f"penstock.engines.{kind}.plugin"))


_FORMS = {
    "text": "text of one line, at most 1,000 characters",
    "switch": "true or false",
    "pairs": "mapping of names to texts, numbers, true or false",
}


def _fits(option: Option, value: Any) -> bool:
    if option.form == "switch":
        return isinstance(value, bool)
    if option.form == "pairs":
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and (isinstance(one, bool | int) or _line(one)) for key, one in value.items()
        )
    return _line(value)


def _line(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000 and value.isprintable()


def _light(kind: str) -> Any:
    _check(kind, "options")
    return import_module(f"penstock.engines.{kind}.options")


def _check(kind: str, module: str) -> None:
    if not kind.isidentifier() or not (_HERE / kind / f"{module}.py").is_file():
        raise InvalidInput(f"there is no kind of engine {kind[:40]!r}", hint=f"There are: {', '.join(names())}.")
