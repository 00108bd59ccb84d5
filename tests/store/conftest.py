from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL for the session; tests that stop it start it again."""
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def postgres_url(cluster: Cluster) -> str:
    return cluster.create_database()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/penstock.db"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.real, pytest.mark.needs("postgresql")])])
def url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases, empty."""
    return str(request.getfixturevalue(f"{request.param}_url"))
