"""A follower outlives the server that it follows, and says what it waits for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.base.settings import Settings
from penstock.client import resources
from penstock.jobs.commands import follow
from tests.cli.conftest import Cli, with_
from tests.client.standin import Reply, Request, StandIn, job, problem, sse

JOBS = "/api/v1/projects/default/jobs"
DIGITS = f"{JOBS}/digits"
ENDED = Reply(body=sse(("job", job(phase="Succeeded", reason="Completed"), "2")))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize("words", [("logs", "-f", "digits"), ("run", "--", "x")])
def test_a_server_that_comes_back_elsewhere_is_found(
    server: StandIn, cli: Cli, settings: Settings, words: tuple[str, ...]
) -> None:
    data = Path(settings.data_dir)
    data.mkdir()
    (data / "server.json").write_text(json.dumps({"url": server.url}))
    second = StandIn()
    second.answers |= {f"GET {DIGITS}/logs": Reply(body=[b"two\n"]), f"GET {DIGITS}/watch": ENDED}

    def log(_: Request) -> Reply:
        (data / "server.json").write_text(json.dumps({"url": second.url}))
        return Reply(body=[b"one\n"])

    server.answers |= {
        f"POST {JOBS}": Reply(201, job()),
        f"GET {DIGITS}/logs": log,
        f"GET {DIGITS}/watch": Reply(body=sse(("job", job(), "1"))),
    }
    ran = cli(*words, settings=with_(settings, url=None))
    second.close()
    assert ran.code == 0, ran.err
    assert ran.out in {"one\ntwo\n", "one\n"}  # the second server may tell of the end before its log is asked for
    assert second.seen(f"GET {DIGITS}/watch")
    for request in second.seen(f"GET {DIGITS}/logs"):
        assert "since=20" in request.query


@pytest.mark.parametrize("words", [("logs", "-f", "digits"), ("run", "--", "x")])
def test_a_server_that_stays_away(
    server: StandIn, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(follow, "RESUME_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(resources, "RESUME_PAUSES_S", (0.01, 0.01))
    away = problem(503, "Unavailable", "the server is stopping")

    def once(body: list[bytes]) -> object:
        replies = iter([Reply(body=body)])
        return lambda _: next(replies, away)

    server.answers |= {
        f"POST {JOBS}": Reply(201, job()),
        f"GET {DIGITS}/logs": once([b"one\n"]),  # type: ignore[dict-item]
        f"GET {DIGITS}/watch": once(sse(("job", job(), "1"))),  # type: ignore[dict-item]
    }
    ran = cli(*words)
    assert ran.out == "one\n"
    assert ran.code == 6
    assert "the job goes on: penstock logs -f digits" in ran.err


@pytest.mark.parametrize("words", [("logs", "-f", "digits"), ("run", "--", "x")])
def test_a_follower_says_why_it_waits(
    server: StandIn, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_S", 0.0)
    monkeypatch.setattr(resources, "RESUME_PAUSES_S", (0.3,) * 9)
    first = job(phase="Pending", reason="InsufficientCpu", message="needs 8 CPUs, 2 are free")
    replies = iter([Reply(body=sse(("job", first, "1")))])
    server.answers |= {
        f"POST {JOBS}": Reply(201, first),
        f"GET {DIGITS}/logs": Reply(body=b""),
        f"GET {DIGITS}/watch": lambda _: next(replies, ENDED),
    }
    ran = cli(*words)
    assert ran.code == 0
    assert ran.err.count("job digits waits: InsufficientCpu: needs 8 CPUs, 2 are free\n") == 1


def test_no_log_yet_is_told(server: StandIn, cli: Cli) -> None:
    waiting = job(phase="Pending", reason="InsufficientCpu", message="2 are free", attempt=0)
    server.answers |= {f"GET {DIGITS}/logs": Reply(body=b""), f"GET {DIGITS}": Reply(body=waiting)}
    ran = cli("logs", "digits")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "job digits has no log yet: Pending (InsufficientCpu: 2 are free)\n"


def test_a_log_is_no_document(cli: Cli) -> None:
    ran = cli("logs", "digits", "-o", "json")
    assert ran.code == 2
    assert "plain text" in ran.err
