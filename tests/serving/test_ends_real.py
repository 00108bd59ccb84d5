"""A service from end to end where its surroundings are others': TLS before callers, PostgreSQL behind the server, answers that
its owner's own function compares.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.client.client import Client
from tests.postgres import Cluster
from tests.serving.gateway.test_gateway_wires_real import certificate
from tests.serving.gateway.world import free_port
from tests.serving.test_services import SERVER, ready, spec
from tests.system.house import House, until

pytestmark = [pytest.mark.real, pytest.mark.needs("postgresql")]
JUDGE = "def same(one, other):\n    return one[:3] == other[:3], f'{one} against {other}'\n"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    cluster = Cluster()
    cluster.start()
    yield cluster.create_database()
    cluster.remove()


@pytest.fixture(scope="module")
def secured(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, ssl.SSLContext]]:
    cert, key = certificate(tmp_path_factory.mktemp("tls"), "localhost")
    flags = ("--database-url", database, "--tls-cert", cert, "--tls-key", key, "--gateway-port", str(free_port()))
    house = House(*flags)
    house.start()
    house._client = Client(data_dir=house.data_dir)
    Path(house.data_dir, "server.py").write_text(SERVER)
    os.chmod(Path(house.data_dir, "server.py"), 0o644)
    yield house, ssl.create_default_context(cafile=cert)
    for service in house.client.services.list():
        house.client.services.delete(service.name)
    until(lambda: not list(house.client.services.list()), "services do not end")
    house.finish()


def ask(house: House, trusted: ssl.SSLContext, name: str) -> str:
    url = str(house.client.services.get(name).status["url"])
    assert url.startswith("https://")
    try:
        with urllib.request.urlopen(f"{url}/x", timeout=20, context=trusted) as answer:
            return str(answer.read().decode())
    except OSError:  # nothing listens yet, or no route is there yet
        return ""


def test_tls_before_callers_and_answers_that_ones_own_function_compares(
    secured: tuple[House, ssl.SSLContext], tmp_path: Path
) -> None:
    house, trusted = secured
    services = house.client.services
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "judge.py").write_text(JUDGE)
    model = services.carry(str(tmp_path / "model"))
    compare = {"how": "function", "function": "model.judge:same"}
    rollout = {
        "strategy": "shadow",
        "shadow_time": "1s",
        "compare": compare,
        "analysis": {"min_requests": 5, "p95_ratio": None, "p50_ratio": None},
    }

    def serves(word: str) -> dict[str, Any]:
        return {**spec(house, word, rollout=rollout), **model}

    services.create("secured", serves("one of them"))
    ready(house, "secured", 1)
    assert until(lambda: ask(house, trusted, "secured"), "no answer") == "one of them"

    services.replace("secured", serves("one of others"))
    ended = ("Promoted", "RolledBack")
    until(
        lambda: ask(house, trusted, "secured") and services.rollouts("secured")[0]["phase"] in ended,
        "nothing is decided",
    )
    last = services.rollouts("secured")[0]
    assert last["phase"] == "Promoted", last["message"]
    compared = [entry for entry in last["evidence"] if "compared" in entry]
    assert compared[-1]["agreed"] == compared[-1]["compared"] >= 5

    services.replace("secured", serves("another"))
    until(lambda: ask(house, trusted, "secured") and services.rollouts("secured")[0]["phase"] in ended, "nothing again")
    last = services.rollouts("secured")[0]
    assert last["phase"] == "RolledBack"
    assert "answers agree" in last["message"]
    [example, *_] = [entry for entry in last["evidence"] if entry.get("examples")][-1]["examples"]
    assert "one of others" in str(example)
    assert " against " in str(example)
