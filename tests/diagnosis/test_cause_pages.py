"""docs/causes/ says what the knowledge base says."""

from __future__ import annotations

from tools import cause_pages


def test_the_pages_are_the_data() -> None:
    there = {file.name: file.read_text() for file in cause_pages.FOLDER.glob("*")}
    assert there == cause_pages.pages(), "`python -m tools.cause_pages` writes them"
