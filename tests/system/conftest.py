"""One server for the tests that do it no harm; those that kill theirs make their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.house import House


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Two nodes on this machine."""
    with House("--local-nodes", "2") as one:
        yield one
