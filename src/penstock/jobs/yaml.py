"""YAML text -> Job documents; every error of the text at once, each with its line and path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from penstock.base.errors import InvalidInput, Problem
from penstock.documents import MAX_BYTES, bounded, numbered, read, summary, validate
from penstock.jobs.spec import JobDocument

__all__ = ["MAX_BYTES", "parse_jobs"]


def parse_jobs(text: str) -> list[JobDocument]:
    """All Job documents of a YAML text. Raises InvalidInput that lists what is wrong in all of them; TooLarge."""
    return parse(text, {})[0]


def parse(text: str, others: Mapping[str, Callable[[], type[BaseModel]]]) -> tuple[list[JobDocument], list[Any]]:
    """Jobs, and documents of the kinds that other rooms have, by their models. Raises as ``parse_jobs`` does."""
    found, problems = read(text)
    if not found:
        raise InvalidInput("the file holds no document", details=[Problem("", "write at least one Job", 1)])
    documents: list[JobDocument] = []
    beside: list[Any] = []
    for index, one in enumerate(found):
        if one is None:
            continue
        kind = one[0].get("kind") if isinstance(one[0], dict) else None
        other = others.get(kind) if isinstance(kind, str) else None
        document, wrong = validate(JobDocument if other is None else other(), *one)
        problems += numbered(wrong, index, len(found))
        if document is not None:
            (documents if other is None else beside).append(document)
    problems += [*_twins(documents), *_twins(beside)]
    if problems:
        raise InvalidInput(summary(problems), details=bounded(problems))
    return documents, beside


def _twins(documents: Sequence[Any]) -> list[Problem]:
    seen: set[tuple[str, str | None, str]] = set()
    wrong = []
    for document in documents:
        key = (document.kind, document.project, document.name)
        if key in seen:
            wrong.append(Problem("name", f"{document.name!r} is the name of two documents"))
        seen.add(key)
    return wrong
