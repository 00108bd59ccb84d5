"""YAML text -> values; every error of the text at once, each with its line and path, in words for whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from penstock.base.errors import InvalidInput, Problem, TooLarge
from penstock.base.text import one_line

MAX_BYTES = 1 << 20
MAX_NODES = 200_000
MAX_DEPTH = 64
MAX_PROBLEMS = 100
Path = tuple[str | int, ...]


# pydantic's words are for programmers; these are for whoever wrote the file.
_PLAINLY = {
    "tuple_type": "must be a list, such as [python, train.py]",
    "list_type": "must be a list",
    "string_type": "must be text: put quotes around it",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping (name: value)",
    "model_type": "must be a mapping (name: value)",
    "too_short": "must not be empty",
}


class TextLoader(yaml.SafeLoader):
    """SafeLoader to which dates are text: its own are made while the text is read, and one that no calendar has (a 31st
    of June) would hide all else that is wrong.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and kind
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def moment(text: str) -> datetime:
    """A date or a time as YAML writes them. Raises ValueError."""
    return datetime.fromisoformat(re.sub(r"\s+(?=[-+Z])", "", text.strip()))


class _Loader(TextLoader):
    """Without aliases: nobody needs them here, and they expand without bound ("billion laughs")."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML is half typed
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken here", event.start_mark)
        return super().compose_node(parent, index)


def read(text: str) -> tuple[list[tuple[Any, dict[Path, int]] | None], list[Problem]]:
    """Each document's value with the line of every path in it (None where it has none), and what is wrong with the text.

    With several documents every path is told with its document's number before it: ``[1].spec``. Raises InvalidInput
    where the text is not YAML at all, TooLarge.
    """
    if len(text) > MAX_BYTES:
        raise TooLarge(f"the file has {len(text):,} characters; at the most {MAX_BYTES:,} are taken")
    nodes = _compose(text)
    found: list[tuple[Any, dict[Path, int]] | None] = []
    problems: list[Problem] = []
    for index, node in enumerate(nodes):
        lines: dict[Path, int] = {}
        wrong = list(_walk(node, (), lines))
        value = None
        if not wrong:
            value, odd = _construct(node)
            wrong = [] if odd is None else [odd]
        found.append(None if wrong else (value, lines))
        problems += numbered(wrong, index, len(nodes))
    return found, problems


def numbered(problems: list[Problem], index: int, documents: int) -> list[Problem]:
    """With the document's number before the path, where there are several."""
    return [Problem(f"[{index}].{p.path}", p.message, p.line) for p in problems] if documents > 1 else problems


def _compose(text: str) -> list[yaml.Node]:
    loader = None
    try:
        loader = _Loader(text)
        nodes = []
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                nodes.append(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = one_line(" ".join(x for x in (error.context, error.problem) if x))
        line = mark.line + 1 if mark else None
        raise InvalidInput("this is not YAML", details=[Problem("", what, line)]) from error
    except (yaml.YAMLError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else one_line(str(error))
        raise InvalidInput("this is not YAML", details=[Problem("", what)]) from error
    finally:
        if loader is not None:
            loader.dispose()
    return nodes


def _construct(node: yaml.Node) -> tuple[Any, Problem | None]:
    """The document's value; or what in it has a type that is not taken, or is no value of its type (a 31st of June)."""
    try:
        return _Loader("").construct_document(node), None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else node.start_mark.line + 1
        return None, Problem("", one_line(str(error.problem or error.context)), line)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        return None, Problem("", one_line(str(error)), node.start_mark.line + 1)


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Iterator[Problem]:
    """Note every path's line; yield what YAML allows and we do not (twice the same key, keys that are not text)."""
    lines[path] = node.start_mark.line + 1
    if len(path) > MAX_DEPTH or len(lines) > MAX_NODES:
        yield Problem(show(path), "nested too deep or too large", lines[path])
        return
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield Problem(show(path), "a key must be text", line)
            elif name in seen:
                yield Problem(show((*path, name)), "stands here a second time", line)
            seen.add(name)
            yield from _walk(value, (*path, name), lines)
            lines[(*path, name)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index), lines)


def validate(
    model: type[BaseModel], value: Any, lines: dict[Path, int] | None = None
) -> tuple[Any | None, list[Problem]]:
    """The model's instance, or all that is wrong with ``value``."""
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, problems_of(error, lines or {})


def problems_of(error: ValidationError, lines: dict[Path, int]) -> list[Problem]:
    """pydantic's errors as Problems; ``lines`` maps paths to 1-based lines."""
    return [_problem(e, lines) for e in error.errors(include_url=False, include_context=False, include_input=False)]


def _problem(error: Any, lines: dict[Path, int]) -> Problem:
    path: Path = tuple(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is not a field here"
    elif error["type"] == "missing":
        message = "is missing"
    else:
        message = _PLAINLY.get(error["type"], message)
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
    return Problem(show(path), message[:1].lower() + message[1:] if message[:2] != "I " else message, line)


def show(path: Path) -> str:
    """``("spec", "env", 0)`` -> ``spec.env[0]``, with strangers' text shortened."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + one_line(part, 60)
    return text


def bounded(problems: list[Problem]) -> list[Problem]:
    """At the most MAX_PROBLEMS, and a last one that counts the rest."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    return [*problems[:MAX_PROBLEMS], Problem("", f"and {len(problems) - MAX_PROBLEMS} more")]


def summary(problems: list[Problem], file: str = "this file") -> str:
    return f"{len(problems)} {'thing is' if len(problems) == 1 else 'things are'} wrong with {file}"
