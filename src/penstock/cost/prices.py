"""The price file: YAML text -> Prices, with every error of the file at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path

import yaml

from penstock.base.errors import InvalidInput, Problem, TooLarge
from penstock.base.text import one_line
from penstock.cost import terms_file
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.cost.terms_file import SECTIONS

MAX_BYTES = 1 << 18
_RATES = ("cpu_hour", "memory_gib_hour")
_NOTES = ("as_of", "sources")  # for people: any YAML
_KEYS = ("currency", *_RATES, "gpu_hour", *SECTIONS, *_NOTES)
_DEAREST = Decimal(10) ** 9  # an hour of anything


def load(path: str | None) -> Prices:
    """The file at ``path``, or the one that ships with Penstock. Raises InvalidInput."""
    return load_both(path)[0]


def load_both(path: str | None) -> tuple[Prices, Terms]:
    """Prices, and how capacity is paid for. Raises InvalidInput."""
    name = path or "the price file"
    text = _read(path)
    problems: list[Problem] = []
    found: Prices | None = None
    try:
        found = parse(text, name)
    except InvalidInput as error:
        if not error.details or error.details[0].path == "":  # not YAML: there is nothing more to read
            raise
        problems += error.details
    terms: Terms | None = None
    try:
        terms = terms_file.parse(text, name)
    except InvalidInput as error:
        problems += error.details
    problems.sort(key=lambda problem: problem.line or 0)
    if found is None or terms is None:
        raise InvalidInput(f"{name} has {len(problems)} error(s)", details=problems)
    return found, terms


def _read(path: str | None) -> str:
    if path is None:
        return resources.files("penstock.cost").joinpath("prices.yaml").read_text("utf-8")
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise InvalidInput(f"the price file cannot be read: {exc}") from exc
    return data.decode("utf-8", "replace")


def parse(text: str, name: str = "the price file") -> Prices:
    """Raises InvalidInput that lists all that is wrong; TooLarge."""
    if len(text) > MAX_BYTES:
        raise TooLarge(f"{name} is larger than {MAX_BYTES // 1024} KiB")
    reader = _Reader()
    root = _compose(text, name)
    entries = reader.mapping(root, "", _KEYS)
    currency = reader.currency(entries.get("currency"))
    rates = {key: reader.rate(entries.get(key), key) for key in _RATES}
    models = {
        key: reader.rate(node, f"gpu_hour.{key}")
        for key, node in reader.mapping(entries.get("gpu_hour"), "gpu_hour").items()
    }
    default = models.pop("default", None)
    if default is None:
        reader.problems.append(Problem("gpu_hour.default", "is missing: the price of models that are not named"))
    if reader.problems:
        raise InvalidInput(f"{name} has {len(reader.problems)} error(s)", details=reader.problems)
    assert default is not None
    return Prices(currency, rates["cpu_hour"], rates["memory_gib_hour"], default, models)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        what = one_line(exc.problem or "cannot be read")
        raise InvalidInput(f"{name} is not YAML", details=[Problem("", what, line)]) from exc
    except (yaml.YAMLError, RecursionError) as exc:
        raise InvalidInput(f"{name} is not YAML", details=[Problem("", one_line(str(exc)))]) from exc


class _Reader:
    """Walks the nodes and collects what is wrong; what it answers is only used when nothing was."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def mapping(self, node: yaml.Node | None, path: str, known: tuple[str, ...] | None = None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._say(path, "must be a mapping of names to prices", node)
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            where = f"{path}.{name}" if path else name
            if name in found:
                self._say(where, "is given twice", key)
            elif known is not None and name not in known:
                self._say(where, f"is not known; known are {', '.join(known)}", key)
            elif not re.search(r"[A-Za-z0-9]", name):
                self._say(where, "is not a name", key)
            found[name] = value
        return found

    def currency(self, node: yaml.Node | None) -> str:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        if not re.fullmatch(r"[A-Z]{3}", text):
            self._say("currency", "must be three capital letters (ISO 4217), such as USD", node)
        return text

    def rate(self, node: yaml.Node | None, path: str) -> Decimal:
        if node is None:
            self._say(path, "is missing: a price for one hour", node)
            return Decimal(0)
        try:
            value = Decimal(node.value if isinstance(node, yaml.ScalarNode) else "")
        except InvalidOperation:
            value = Decimal("NaN")
        if not value.is_finite() or not 0 <= value <= _DEAREST:
            self._say(path, f"must be a number from 0 to {_DEAREST}", node)
            return Decimal(0)
        return value

    def _say(self, path: str, message: str, node: yaml.Node | None) -> None:
        line = node.start_mark.line + 1 if node is not None else None
        self.problems.append(Problem(one_line(path, 100), message, line))


def describe(prices: Prices) -> Iterator[str]:
    """Lines for people: what one hour costs."""
    yield f"one core-hour {prices.cpu_hour} {prices.currency}"
    yield f"one GiB-hour {prices.memory_gib_hour} {prices.currency}"
    for model, rate in sorted(prices.gpu_models.items()):
        yield f"one GPU-hour of {model} {rate} {prices.currency}"
    yield f"one GPU-hour of any other model {prices.gpu_hour} {prices.currency}"
