from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.client.client import Client
from tests.client.standin import StandIn


@pytest.fixture
def server() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture
def client(server: StandIn) -> Iterator[Client]:
    with Client(server.url, "pk_secret") as made:
        made.transport.pause = lambda _: None
        yield made
