"""What a process counts of itself."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from penstock.worker import counting
from penstock.worker.counting import Counts


def test_what_a_socket_has_not_sent_yet_is_counted() -> None:
    counts = Counts()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        before = counts.read()["send_queue_bytes"]
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while client.send(b"x" * 65536):
                pass
        assert counts.read()["send_queue_bytes"] >= before + 65536
        peer.close()
    counts.close()


def test_throttling_goes_on_when_the_process_is_moved_to_another_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group counts from its own beginning: what was throttled before it was looked at is not told, and nothing is lost."""
    monkeypatch.setattr(counting, "_CGROUPS", str(tmp_path))
    group = {"": 100.0, "a": 7.0, "b": 50.0}

    def write(groups: str, **seconds: float) -> str:
        for name, value in {**group, **seconds}.items():
            (tmp_path / "cpu" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "cpu" / name / "cpu.stat").write_text(f"nr_throttled 1\nthrottled_time {value * 1e9:.0f}\n")
        return groups

    texts = iter([write("4:cpu:/a\n"), "4:cpu:/a\n", "4:cpu:/b\n", "4:cpu:/b\n"])
    counts = Counts()
    pages = counts._pages.text
    monkeypatch.setattr(counts._pages, "text", lambda path: next(texts) if path == "/proc/self/cgroup" else pages(path))
    assert counts._throttled() == {"throttled_s": 0.0}
    write("", a=9.0)
    assert counts._throttled() == {"throttled_s": 2.0}
    write("", a=9.5)
    assert counts._throttled() == {
        "throttled_s": 2.5
    }  # moved: the last words of the old group, and the new one's first
    write("", b=51.0)
    assert counts._throttled() == {"throttled_s": 3.5}
    counts.close()


def test_a_devices_bytes_count_once() -> None:
    """Not those of the loopback; a device that is gone by now was a link."""
    assert not counting._carries("lo")
    assert counting._carries("gone0")
    counts = Counts()
    assert counts.read()["net_tx_bytes"] >= 0
    counts.close()
