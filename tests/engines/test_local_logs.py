"""Logs: what is kept, what is shown, in which order, at what price."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.local import logwriter
from penstock.engines.local.logreader import LocalLogReader
from penstock.engines.local.logwriter import LogWriter
from penstock.engines.spec import LogRequest
from tests.engines.conftest import World, until

Local = Callable[..., None]


def read(run_dir: str, **request: Any) -> str:
    async def all_of_it() -> bytes:
        pieces = LocalLogReader(run_dir).read(LogRequest(**request), lambda: True)
        return b"".join([piece async for piece in pieces])

    return asyncio.run(all_of_it()).decode()


def kept(folder: Path) -> list[tuple[int, bytes]]:
    return [(int(path.stem), path.read_bytes()) for path in sorted(folder.glob("*.log"))]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=40),
    first=st.integers(1, 400),
    newest=st.integers(8, 400),
)
def test_an_exact_prefix_and_the_newest_suffix_are_kept(chunks: list[bytes], first: int, newest: int) -> None:
    """However the bytes arrive, by write or through a pipe."""
    whole = b"".join(chunks)
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(folder + "/0", first, newest)
        for number, chunk in enumerate(chunks):
            _pipe_through(writer, chunk) if number % 2 else writer.write(chunk)
        writer.close()
        assert writer.offset == len(whole)
        segments = kept(Path(folder, "0"))
        for start, data in segments:
            assert data == whole[start : start + len(data)]
        head = b"".join(data for start, data in segments if start < first)
        assert head == whole[:first]
        tail = [(start, data) for start, data in segments if start >= first]
        size = sum(len(data) for _, data in tail)
        assert size <= newest
        if tail:
            assert tail[0][0] + size == len(whole)  # without a hole, to the very end
        if len(whole) > first + newest:
            assert size > newest - 2 * (newest // 8) - newest % 8


def _pipe_through(writer: LogWriter, data: bytes) -> None:
    reader, end = os.pipe2(os.O_NONBLOCK)
    os.write(end, data)
    os.close(end)
    while writer.pump(reader) is not None:
        pass
    os.close(reader)


@given(
    lines=st.lists(st.text(alphabet="abc \t", max_size=30), max_size=60),
    first=st.integers(1, 200),
    newest=st.integers(8, 200),
    ended=st.booleans(),
)
def test_the_reader_shows_what_is_kept_and_names_the_gap(
    lines: list[str], first: int, newest: int, ended: bool
) -> None:
    whole = ("\n".join(lines) + ("\n" if ended else "")).encode()
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(f"{folder}/logs/0", first, newest)
        writer.write(whole)
        writer.close()
        shown = read(folder, rank="0", raw=True)
        if "not kept" not in shown:
            assert shown.encode() == whole
            return
        head, _, tail = shown.partition("[... ")
        gap, _, rest = tail.partition(" of output not kept ...]\n")
        pieces = kept(Path(folder, "logs/0"))
        newest_part = b"".join(data for start, data in pieces if start >= first)
        assert head.encode() == whole[: whole.rfind(b"\n", 0, first) + 1]
        assert rest.encode() == (newest_part[newest_part.find(b"\n") + 1 :] or newest_part)
        assert whole.endswith(rest.encode())
        if gap.endswith("bytes"):
            assert int(gap.split()[0]) == len(whole) - len(head.encode()) - len(rest.encode())


@pytest.mark.parametrize("more", [{}, {"timestamps": True}])
def test_lines_around_a_gap_are_whole(tmp_path: Path, more: dict[str, bool]) -> None:
    writer = LogWriter(str(tmp_path / "logs/0"), 1001, 4001)
    writer.write(b"".join(b"line %d\n" % number for number in range(10_000)))
    writer.close()
    lines = [line.split(" ", 1)[1] if more else line for line in read(str(tmp_path), **more).splitlines()]
    at = next(place for place, line in enumerate(lines) if "not kept" in line)
    assert lines[:at] == [f"line {number}" for number in range(at)]
    rest = len(lines) - at - 1
    assert rest > 300
    assert lines[at + 1 :] == [f"line {number}" for number in range(10_000 - rest, 10_000)]
    assert lines[at].startswith("[... ")


def test_a_gap_in_an_endless_line_is_a_line_of_its_own(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "logs/0"), 100_000, 800_000)
    writer.write(b"x" * 2_000_000)
    writer.close()
    head, gap, rest = read(str(tmp_path)).split("\n")
    assert set(head) == set(rest) == {"x"}
    assert "not kept" in gap
    assert (len(head), len(rest) >= 700_000) == (100_000, True)


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(0, 40))
def test_tail_is_the_last_lines(lengths: list[int], count: int) -> None:
    lines = ["x" * length for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(f"{folder}/logs/0", 1 << 20, 1 << 20)
        writer.write("".join(line + "\n" for line in lines).encode())
        writer.close()
        assert read(folder, rank="0", tail=count).splitlines() == (lines[-count:] if count else [])


def test_a_tail_of_a_big_log_reads_only_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(str(tmp_path / "logs/0"), 64 << 20, 1 << 20)
    writer.write(b"".join(b"line %d\n" % number for number in range(500_000)))
    writer.close()
    read_bytes = 0
    real = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = real(fd, count, offset)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert read(str(tmp_path), tail=3).splitlines() == ["line 499997", "line 499998", "line 499999"]
    assert read_bytes < 1 << 18


def size_of(folder: str, pattern: str = "*.log") -> int:
    return sum(path.stat().st_size for path in Path(folder).glob(pattern))


def clocked(times: Iterator[float]) -> Callable[[], float]:
    return lambda: next(times)


def test_ranks_are_merged_by_time_with_prefixes(tmp_path: Path) -> None:
    zero = LogWriter(str(tmp_path / "logs/0"), 1 << 20, 1 << 20, clocked(itertools.count(100.0, 2.0)))
    one = LogWriter(str(tmp_path / "logs/1"), 1 << 20, 1 << 20, clocked(itertools.count(101.0, 2.0)))
    for word in (b"a", b"b", b"c"):
        zero.write(b"zero " + word + b"\n")
        one.write(b"one " + word + b"\n")
    zero.write(b"unfinished")
    run = str(tmp_path)
    merged = [
        "[rank 0] zero a",
        "[rank 1] one a",
        "[rank 0] zero b",
        "[rank 1] one b",
        "[rank 0] zero c",
        "[rank 1] one c",
    ]
    assert read(run).splitlines() == [*merged, "[rank 0] unfinished"]
    assert read(run, tail=2).splitlines() == ["[rank 1] one c", "[rank 0] unfinished"]
    assert read(run, since=103.0).splitlines() == [*merged[3:], "[rank 0] unfinished"]
    assert read(run, prefix=False, tail=1) == "unfinished"
    assert read(run, rank="1", timestamps=True).splitlines()[0] == "1970-01-01T00:01:41.000Z one a"
    assert LocalLogReader(run).ranks() == ["0", "1"]


def test_control_sequences_are_harmless_unless_raw(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "logs/0"), 1 << 20, 1 << 20)
    nasty = b"\x1b]0;owned\x07title \x1b[31mred\x1b[0m \xc2\x9b2J bell\x07\n"
    writer.write(nasty)
    shown = read(str(tmp_path))
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "owned" not in shown
    assert "red" in shown
    assert read(str(tmp_path), raw=True).encode() == nasty


def test_a_full_disk_drops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logwriter, "_RETRY_DISK_S", 3600.0)
    writer = LogWriter(str(tmp_path / "logs/0"), 1 << 20, 1 << 20)
    writer.write(b"before\n")
    real = os.write

    def full(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    writer.write(b"lost\n")
    monkeypatch.setattr(os, "write", real)
    writer._blocked_until = 0.0
    writer.write(b"after\n")
    writer.close()
    assert writer.dropped == 5
    assert read(str(tmp_path)).splitlines() == ["before", "[... 5 bytes of output not kept ...]", "after"]


def test_a_torn_index_row_is_passed_over(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "logs/0"), 1 << 20, 1 << 20)
    writer.write(b"one\n")
    writer.close()
    index = next((tmp_path / "logs/0").glob("*.idx"))
    index.write_bytes(index.read_bytes() + struct.pack("<d", 1.0)[:5])
    assert read(str(tmp_path), timestamps=True).endswith(" one\n")


def test_following_sees_lines_at_once_and_the_last_ones_always(local: Local) -> None:
    async def body(world: World) -> None:
        script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; printf last"
        launch = await world.begin("sh", "-c", script, wait=False)
        assert (await world.log(launch, follow=True)).split() == ["1", "2", "3", "4", "5", "last"]

    local(body)


def test_a_flood_keeps_its_ends_and_its_neighbours_awake(local: Local) -> None:
    async def body(world: World) -> None:
        limits = {"log_first_bytes": 1 << 20, "log_newest_bytes": 4 << 20}
        launch = await world.begin("sh", "-c", "echo begin; yes | head -c 200000000; echo end", wait=False, **limits)
        ended = await world.end_of(launch)
        assert ended.reason == "Completed"
        text = await world.log(launch)
        assert text.startswith("begin\ny\n")
        assert text.endswith("y\nend\n")
        assert "of output not kept" in text
        assert size_of(f"{launch.run_dir}/logs/0") <= 5 << 20

    local(body)


def test_a_slow_reader_of_a_flood_is_told_what_it_missed(local: Local) -> None:
    async def body(world: World) -> None:
        limits = {"log_first_bytes": 1 << 16, "log_newest_bytes": 1 << 20}
        launch = await world.begin("sh", "-c", "yes | head -c 30000000", wait=False, **limits)
        await until(lambda: os.path.exists(f"{launch.run_dir}/logs/0"))
        pieces = world.engine.logs(launch.run_dir).read(LogRequest(follow=True), lambda: world.over(launch) is not None)
        first = await anext(pieces)
        await world.end_of(launch)
        rest = [piece async for piece in pieces]
        assert b"not kept" in b"".join([first, *rest])
        assert max(map(len, rest)) <= 1 << 18

    local(body)


def test_progress_is_checked_bounded_and_told(local: Local) -> None:
    script = """
import os, json, sys
fd = int(os.environ["PENSTOCK_REPORT_FD"])
out = lambda text: os.write(fd, text.encode() + b"\\n")
out('{"step": 1, "total_steps": 10, "metrics": {"loss": 0.5}}')
out("no json"); out("[1]"); out('{"step": true}'); out('{"metrics": {"loss": "high"}}')
out('{"step": 2, "loss": 0.25, "name": "x"}')
out('{"step": 3, "metrics": {"loss": NaN}}')
"""

    async def body(world: World) -> None:
        launch = await world.begin("/usr/bin/python3", "-c", script, wait=False)
        ended = await world.end_of(launch)
        assert ended.progress is not None
        assert (ended.progress["step"], ended.progress["total_steps"]) == (3, None)
        points = await world.engine.logs(launch.run_dir).progress()
        assert [(point["step"], point["metrics"]) for point in points] == [
            (1, {"loss": 0.5}),
            (2, {"loss": 0.25}),
            (3, {"loss": None}),
        ]

    local(body)


def test_what_watch_says_is_kept_apart_and_bounded(local: Local) -> None:
    script = """
import json, os
fd = int(os.environ["PENSTOCK_REPORT_FD"])
def tell(event, **data):
    os.write(fd, json.dumps({"event": event, "data": data}).encode() + b"\\n")
tell("watched", life=1.0)
tell("checkpoint", state="saved", step=1)
for n in range(3000):
    tell("steps", n=n, filler="x" * 400)
"""

    async def body(world: World) -> None:
        launch = await world.begin("/usr/bin/python3", "-c", script, wait=False)
        await world.end_of(launch)
        reader = world.engine.logs(launch.run_dir)
        told = await reader.watched()
        assert told[0]["event"] == "watched" and told[-1]["data"]["n"] == 2999
        assert 900 < len(told) < 2000
        assert [point["event"] for point in await reader.progress()] == ["checkpoint"]

    local(body)


def test_a_flood_of_reports_stays_small(local: Local) -> None:
    script = """
import os
fd = int(os.environ["PENSTOCK_REPORT_FD"])
for step in range(100_000):
    os.write(fd, b'{"step": %d, "metrics": {"loss": 0.5}}\\n' % step)
"""

    async def body(world: World) -> None:
        launch = await world.begin("/usr/bin/python3", "-c", script, wait=False)
        ended = await world.end_of(launch)
        assert ended.progress is not None
        assert ended.progress["step"] == 99_999
        assert size_of(launch.run_dir, "progress.jsonl") <= 2 << 20
        assert sum(seen.progress is not None for seen in world.seen) < 40

    local(body)
