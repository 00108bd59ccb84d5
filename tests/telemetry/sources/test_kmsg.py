"""The kernel's log: each record once, over restarts; boots, overruns, records in parts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from penstock.telemetry.sources import kmsg as module
from penstock.telemetry.sources.kmsg import Kmsg
from tests.telemetry.sources.contract import NOW
from tests.telemetry.sources.planted import RECORDED

LOG = RECORDED / "kmsg.txt"


def lines(source: Kmsg) -> list[str]:
    return [line.key for line in source.read(NOW).lines]


def test_records_of_a_real_kernel() -> None:
    reading = Kmsg(path=str(LOG), boot_id="b0", monotonic=lambda: 300.0).read(NOW)
    xid = next(line for line in reading.lines if "Xid" in line.text)
    assert (xid.key, xid.facility, xid.severity) == ("b0/360", "kern", 4)
    assert xid.at == pytest.approx(NOW - 300 + 214.558457)
    assert reading.lines[-1].text == "systemd[1]: Started something red" and reading.lines[-1].facility == "user"
    assert not any("SUBSYSTEM" in line.text for line in reading.lines)


def test_what_was_read_is_not_read_again_by_the_next_agent(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_bytes(LOG.read_bytes())
    cursor = str(tmp_path / "cursor.json")
    first = Kmsg(cursor, str(log), "b0")
    assert len(lines(first)) == 9
    first.close()
    with log.open("a") as file:
        file.write("6,400,300000000,-;one more\n")
    assert lines(Kmsg(cursor, str(log), "b0")) == ["b0/400"]
    assert lines(Kmsg(cursor, str(log), "b0")) == []
    assert len(lines(Kmsg(cursor, str(log), "another boot"))) == 10


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot_id": "b0", "sequence": "x"}', '{"sequence": 1}'])
def test_a_cursor_that_cannot_be_read_is_told_of(content: str, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor.json"
    cursor.write_text(content)
    reading = Kmsg(str(cursor), str(LOG), "b0").read(NOW)
    assert len(reading.lines) == 9
    assert "cannot be read" in reading.problem


def test_a_cursor_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    source = Kmsg(str(tmp_path / "no" / "folder"), str(LOG), "b0")
    assert len(source.read(NOW).lines) == 9
    assert "No such file" in source.read(NOW).problem


def test_a_log_that_was_written_over_is_told_of_and_read_on(tmp_path: Path) -> None:
    overruns = [True, True]

    def read(fd: int, size: int) -> bytes:
        if overruns and overruns.pop():
            raise OSError(errno.EPIPE, "Broken pipe")
        return os.read(fd, size)

    reading = Kmsg(path=str(LOG), boot_id="b0", read=read).read(NOW)
    assert len(reading.lines) == 9
    assert "records are lost" in reading.problem
    assert [(point.name, point.value) for point in reading.points] == [("penstock_kmsg_overruns_total", 2.0)]


def test_a_full_log_is_read_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("".join(f"6,{number},{number},-;line {number}\n KEY=value\n" for number in range(20_000)))
    source = Kmsg(path=str(log), boot_id="b0")
    read = []
    while found := lines(source):
        assert len(found) <= 2 * module.MAX_LINES
        read += found
    assert read == [f"b0/{number}" for number in range(20_000)]


def test_records_in_parts_of_any_size(tmp_path: Path) -> None:
    whole = lines(Kmsg(path=str(LOG), boot_id="b0"))
    for size in (1, 7, 100):

        def read(fd: int, _: int, size: int = size) -> bytes:
            return os.read(fd, size)

        source = Kmsg(path=str(LOG), boot_id="b0", read=read)
        assert lines(source) == whole


def test_a_record_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_bytes(b"6,1,1,-;" + b"x" * 1_000_000 + b"\n6,2,2,-;fine\n")
    source = Kmsg(path=str(log), boot_id="b0")
    assert source.read(NOW).lines[-1].text == "fine"


@pytest.mark.needs("root")
def test_this_machines_own_log_has_what_is_written_to_it() -> None:
    source = Kmsg()
    while source.read(NOW).lines:
        pass
    mark = f"penstock test {os.getpid()} of the kernel's log"
    Path("/dev/kmsg").write_text(mark + "\n")
    assert mark in [line.text for line in source.read(NOW).lines]
    source.close()
