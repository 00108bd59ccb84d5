"""Two servers on one PostgreSQL: one leads, the other takes over when it dies, and nothing is submitted twice."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster
from tests.system.house import House, until
from tests.system.test_kills import Load, check, judge, marks

__all__ = ["marks"]
pytestmark = [pytest.mark.real, pytest.mark.needs("postgresql")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A private PostgreSQL."""
    one = Cluster()
    one.start()
    yield one
    one.remove()


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[House, House]]:
    """Two servers with data folders of their own; the second shows the first one's token."""
    url = cluster.create_database()
    first = House("--database-url", url, "--local-nodes", "2")
    second = House("--database-url", url, "--local-nodes", "2")
    first.start()
    second.start()
    (Path(second.data_dir) / "token").write_text(first.token)
    yield first, second
    for house in (second, first):
        house.finish()


def test_the_second_takes_over(pair: tuple[House, House]) -> None:
    first, second = pair
    name = first.run(["sh", "-c", "sleep 8; exit 3"], resources={"cpus": 0.1})
    first.reach(name, "Running")
    assert second.phase(name) == "Running"
    first.end(signal.SIGKILL)
    begun = time.monotonic()
    quick = second.run(["true"])
    assert second.ended(quick)["status"]["phase"] == "Succeeded"
    assert time.monotonic() - begun < 30
    assert second.ended(name)["status"]["exit_code"] == 3
    assert second.job(name)["status"]["attempt"] == 1
    assert second.get("audit/verify")["ok"]
    first.start()


def test_a_server_that_stops_hands_over_at_once(pair: tuple[House, House]) -> None:
    first, second = pair
    first.end(signal.SIGTERM)
    name = second.run(["true"])
    assert second.ended(name, 20)["status"]["phase"] == "Succeeded"
    first.start()


def test_a_server_that_slept_through_its_lease_changes_nothing(pair: tuple[House, House]) -> None:
    """Stopped in its tracks, overtaken, woken: its late decisions are fenced off."""
    first, second = pair
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)
    names = [second.run(["sh", "-c", "sleep 0.2"], resources={"cpus": 0.1}) for _ in range(5)]
    for name in names:
        second.ended(name)
    first.process.send_signal(signal.SIGCONT)
    more = [first.run(["true"], resources={"cpus": 0.1}) for _ in range(5)]
    for name in more:
        assert first.ended(name)["status"]["attempt"] == 1
    assert second.get("audit/verify")["ok"]


def test_kills_in_turns_under_load(pair: tuple[House, House], marks: Path) -> None:
    rng = random.Random(3)
    first, _ = pair
    loads = [Load(house, marks, pace_s=0.2) for house in pair]
    threads = [threading.Thread(target=load.run, args=(who,)) for who, load in enumerate(loads)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            time.sleep(rng.uniform(0.5, 3))
            victim = pair[number % 2]
            victim.end(signal.SIGKILL)
            time.sleep(rng.uniform(0, 6))
            victim.start()
    finally:
        for load in loads:
            load.stop.set()
        for thread in threads:
            thread.join(60)
    loads[0].expected |= loads[1].expected
    until(lambda: first.get("version"), "the first does not answer")
    judge(check(first, loads[0], marks))
