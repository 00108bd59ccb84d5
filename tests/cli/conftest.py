from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest

from penstock.base.settings import Settings
from penstock.cli import main
from penstock.client.verb import Invocation
from tests.client.standin import StandIn

NOW = 1_795_319_000.0  # 2026-11-22T03:43:20Z


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Cli(Protocol):
    def __call__(self, *argv: str, settings: Settings | None = None) -> Ran: ...


@pytest.fixture
def server() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture
def settings(server: StandIn, tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path / "data"), url=server.url, token="pk_t", width=100)


@pytest.fixture
def served() -> list[Settings]:
    """The settings that `penstock up` was to serve with."""
    return []


@pytest.fixture
def cli(
    settings: Settings, served: list[Settings], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """Runs the command line in this process, at a fixed time, and answers what it wrote."""
    plain = Invocation.__init__

    def at_a_fixed_time(call: Invocation, *arguments: object) -> None:
        plain(call, *arguments)  # type: ignore[arg-type]
        call.now = NOW

    monkeypatch.setattr(Invocation, "__init__", at_a_fixed_time)

    def serve(given: Settings) -> int:
        served.append(given)
        return 0

    def run(*argv: str, settings: Settings | None = None) -> Ran:
        capfd.readouterr()
        code = main.run(argv, settings or default, serve)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    default = settings
    return run


def with_(settings: Settings, **fields: object) -> Settings:
    return replace(settings, **fields)  # type: ignore[arg-type]
