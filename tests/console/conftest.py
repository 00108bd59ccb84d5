"""A fleet in memory behind the real API application, called without a socket."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.console.fleet import TOKEN, Fleet, sample

ORIGIN = "http://localhost"


@pytest.fixture
def fleet() -> Fleet:
    return sample(time.time())


@pytest.fixture
def visitor(fleet: Fleet) -> Iterator[TestClient]:
    """Not signed in."""
    with TestClient(fleet.app(), base_url=ORIGIN, follow_redirects=False) as client:
        yield client


@pytest.fixture
def browser(visitor: TestClient) -> TestClient:
    """Signed in as the fleet's user."""
    answer = visitor.post("/login", data={"token": TOKEN, "next": "/"}, headers={"Origin": ORIGIN})
    assert answer.status_code == 303
    return visitor
