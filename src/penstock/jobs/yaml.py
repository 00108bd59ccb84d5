"""YAML text -> Job documents; every error of the text at once, each with its line and path."""

from __future__ import annotations

from penstock.base.errors import InvalidInput, Problem
from penstock.documents import MAX_BYTES, bounded, numbered, read, summary, validate
from penstock.jobs.spec import JobDocument

__all__ = ["MAX_BYTES", "parse_jobs"]


def parse_jobs(text: str) -> list[JobDocument]:
    """All Job documents of a YAML text. Raises InvalidInput that lists what is wrong in all of them; TooLarge."""
    found, problems = read(text)
    if not found:
        raise InvalidInput("the file holds no document", details=[Problem("", "write at least one Job", 1)])
    documents: list[JobDocument] = []
    for index, one in enumerate(found):
        if one is None:
            continue
        document, wrong = validate(JobDocument, *one)
        problems += numbered(wrong, index, len(found))
        if document is not None:
            documents.append(document)
    problems += _twins(documents)
    if problems:
        raise InvalidInput(summary(problems), details=bounded(problems))
    return documents


def _twins(documents: list[JobDocument]) -> list[Problem]:
    seen: set[tuple[str | None, str]] = set()
    wrong = []
    for document in documents:
        key = (document.project, document.name)
        if key in seen:
            wrong.append(Problem("name", f"{document.name!r} is the name of two documents"))
        seen.add(key)
    return wrong
