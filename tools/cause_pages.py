"""Writes docs/causes/ from the knowledge base: ``python -m tools.cause_pages``. tests/diagnosis holds the two together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from penstock.diagnosis.knowledge.catalogue import CAUSES, Cause, LookAlike

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "causes"

HEAD = """\
# Causes

Everything that `penstock diagnose` may name: why trainings are slow, stand still, fail or learn nonsense. `penstock causes ID`
shows the same in a terminal. These pages are written by `python -m tools.cause_pages`; a test holds them and the data together.
"""
_INJECTED = {
    "real": "Made for real",
    "replay": "Only by recorded telemetry",
    "both": "Its effect for real, its telemetry recorded",
}


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    return {"README.md": _index()} | {f"{cause.id}.md": page(cause) for cause in CAUSES.values()}


def _index() -> str:
    parts = [HEAD]
    for layer, causes in groupby(CAUSES.values(), lambda cause: cause.layer):
        rows = [f"| [{cause.id}]({cause.id}.md) | {cause.severity} | {cause.name} |" for cause in causes]
        parts.append("\n".join([f"## {layer}\n", "| id | severity | cause |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def page(cause: Cause) -> str:
    """One cause as Markdown."""
    return "\n".join(_lines(cause))


def _lines(cause: Cause) -> Iterator[str]:
    yield from (
        f"# {cause.name}",
        "",
        f"`{cause.id}` · {cause.severity} · layer {cause.layer} · [all causes](README.md)",
    )
    yield from ("", cause.what_it_is, "", "## What to do", "")
    yield from (f"{number}. {what}" for number, what in enumerate(cause.what_to_do, 1))
    yield from ("", "## What tells it from others", "", cause.evidence, "")
    yield from ("| easily taken for | how to tell |", "|---|---|", *map(_row, cause.look_alikes))
    yield from ("", "## Where it shows", "", *(f"- {signal}" for signal in cause.signals))
    yield from ("", "## How it is tried out", "", f"{_INJECTED[cause.injection.kind]}. {cause.injection.how}.")
    yield from ("", "## Sources", "", *(f"- {source}" for source in cause.sources), "")


def _row(other: LookAlike) -> str:
    name = f"[{other.cause}]({other.cause}.md)" if other.cause in CAUSES else other.cause
    return f"| {name} | {other.how.replace('|', chr(92) + '|')} |"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    for file in FOLDER.glob("*.md"):
        if file.name not in wanted:
            file.unlink()


if __name__ == "__main__":
    write()
