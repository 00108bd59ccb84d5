"""Logs of an attempt on a cluster: read here or through a stream, they are the same, whole, and in order."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engines.slurm import states
from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.files import FarFiles, Files, NearFiles, Want, reader
from penstock.engines.slurm.logs import SlurmLogReader, reports
from penstock.engines.slurm.reading import LateReader
from penstock.engines.spec import LogRequest
from tests.engines.conftest import until
from tests.engines.here import Here

Source = Callable[[str], Callable[[], Awaitable[Files]]]


def near(folder: str) -> Callable[[], Awaitable[Files]]:
    async def files() -> Files:
        return NearFiles(folder, os.geteuid())

    return files


def far(folder: str, transport: Here | None = None) -> Callable[[], Awaitable[Files]]:
    async def command() -> tuple[str, ...]:
        return reader(folder)

    async def files() -> Files:
        return FarFiles(transport or Here(), None, command)

    return files


SOURCES = pytest.mark.parametrize("source", [near, far])


def write(folder: str | Path, name: str, data: bytes) -> None:
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def read(files: Callable[[], Awaitable[Files]], world: int = 1, **request: Any) -> str:
    async def all_of_it() -> bytes:
        pieces = SlurmLogReader(files, world).read(LogRequest(**request), lambda: True)
        return b"".join([piece async for piece in pieces])

    return asyncio.run(all_of_it()).decode()


@pytest.mark.parametrize("recorded_on", [0, 3])
def test_who_follows_before_there_is_a_record_is_shown_everything(tmp_path: Path, recorded_on: int) -> None:
    record = Attempt("a.1", "/nowhere", str(tmp_path), None, "", "", states.Asked("a.1", ()))
    looks = 0
    write(tmp_path, "logs/0.out", b"all of it\n")

    def find() -> Attempt | None:
        nonlocal looks
        looks += 1
        return record if looks > recorded_on else None

    def opened(known: Attempt | None) -> SlurmLogReader:
        return SlurmLogReader(near(str(tmp_path if known else tmp_path / "nowhere")), 1)

    async def text(*, follow: bool, over: int) -> bytes:
        pieces = LateReader(find, opened).read(LogRequest(follow=follow), lambda: looks >= over)
        return b"".join([piece async for piece in pieces])

    assert asyncio.run(text(follow=True, over=recorded_on + 1)) == b"all of it\n"
    looks = 0
    assert asyncio.run(text(follow=False, over=99)) == (b"" if recorded_on else b"all of it\n")
    looks = 0
    assert asyncio.run(text(follow=True, over=0)) == (b"" if recorded_on else b"all of it\n"), "it ended unrecorded"


@SOURCES
def test_one_rank_is_shown_as_it_is(tmp_path: Path, source: Source) -> None:
    whole = b"".join(b"line %d\n" % number for number in range(100_000)) + b"no end"
    write(tmp_path, "logs/0.out", whole)
    assert read(source(str(tmp_path)), raw=True).encode() == whole
    assert read(source(str(tmp_path)), tail=2) == "line 99999\nno end"
    assert read(source(str(tmp_path)), tail=0) == ""
    assert read(source(str(tmp_path)), rank="1") == ""
    assert read(source(str(tmp_path / "nowhere"))) == ""


@settings(max_examples=25)
@given(st.lists(st.integers(1, 400), max_size=30), st.integers(0, 40))
def test_tail_is_the_last_lines(lengths: list[int], count: int) -> None:
    lines = ["x" * length for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "logs/0.out", "".join(line + "\n" for line in lines).encode())
        assert read(near(folder), tail=count).splitlines() == (lines[-count:] if count else [])


@SOURCES
def test_a_tail_of_a_big_log_reads_only_its_end(tmp_path: Path, source: Source) -> None:
    asked = 0

    async def files() -> Files:
        inner = await source(str(tmp_path))()
        real = inner.read

        async def counted(wants: list[Want]) -> list[bytes]:
            nonlocal asked
            asked += sum(want.count for want in wants)
            return await real(wants)

        inner.read = counted  # type: ignore[assignment,method-assign]
        return inner

    write(tmp_path, "logs/0.out", b"".join(b"line %d\n" % number for number in range(500_000)))
    assert read(files, tail=3).splitlines() == ["line 499997", "line 499998", "line 499999"]
    assert asked < 1 << 18


@SOURCES
def test_ranks_are_merged_by_time_with_prefixes(tmp_path: Path, source: Source) -> None:
    for rank, word in ((0, "zero"), (1, "one")):
        for number in range(3):
            write(tmp_path, f"logs/{rank}.out", f"{word} {number}\n".encode())
            size = (tmp_path / f"logs/{rank}.out").stat().st_size
            write(tmp_path, f"logs/{rank}.idx", f"{100 + 2 * number + rank} {size}\n".encode())
    write(tmp_path, "logs/0.out", b"unfinished")
    write(tmp_path, "logs/batch.out", b"srun: something\n")
    merged = [f"[rank {rank}] {word} {number}" for number in range(3) for rank, word in ((0, "zero"), (1, "one"))]
    files = source(str(tmp_path))
    assert read(files).splitlines() == [*merged, "[rank 0] unfinished"]
    assert read(files, tail=2).splitlines() == [merged[-1], "[rank 0] unfinished"]
    assert read(files, since=103.0).splitlines() == [*merged[3:], "[rank 0] unfinished"]
    assert read(files, prefix=False, tail=1) == "unfinished"
    assert read(files, rank="1", timestamps=True).splitlines()[0] == "1970-01-01T00:01:41.000Z one 0"
    assert read(files, rank="launcher") == "srun: something\n"


@SOURCES
def test_what_slurm_said_is_shown_where_no_rank_ever_began(tmp_path: Path, source: Source) -> None:
    write(tmp_path, "logs/batch.out", b"slurmstepd: error: execve(): bad interpreter\n")
    assert read(source(str(tmp_path))) == "slurmstepd: error: execve(): bad interpreter\n"


@SOURCES
def test_a_prefix_is_there_also_while_one_rank_alone_has_written(tmp_path: Path, source: Source) -> None:
    write(tmp_path, "logs/3.out", b"x\n")
    assert read(source(str(tmp_path)), 4) == "[rank 3] x\n"


@SOURCES
def test_control_sequences_are_harmless_unless_raw(tmp_path: Path, source: Source) -> None:
    nasty = b"\x1b]0;owned\x07title \x1b[31mred\x1b[0m \xc2\x9b2J bell\x07\n"
    write(tmp_path, "logs/0.out", nasty)
    shown = read(source(str(tmp_path)))
    assert not {"\x1b", "\x9b"} & set(shown)
    assert "owned" not in shown
    assert "red" in shown
    assert read(source(str(tmp_path)), raw=True).encode() == nasty


@SOURCES
def test_following_sees_new_ranks_and_all_of_the_end(tmp_path: Path, source: Source) -> None:
    async def main() -> None:
        over = False
        text = b""
        pieces = SlurmLogReader(source(str(tmp_path)), 2).read(LogRequest(follow=True), lambda: over)

        async def follow() -> None:
            nonlocal text
            async for piece in pieces:
                text += piece

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.05)
        for rank in (0, 1):
            write(tmp_path, f"logs/{rank}.out", b"first\n")
            line = b"[rank %d] first\n" % rank
            while line not in text:
                await asyncio.sleep(0.01)
        write(tmp_path, "logs/0.out", b"tail" * 100_000)
        over = True
        await following
        assert text.endswith(b"tail\n")
        assert len(text) > 400_000

    asyncio.run(main())


@SOURCES
def test_a_flood_is_merged_in_bounded_memory(tmp_path: Path, source: Source) -> None:
    """Of two ranks, one far ahead in time: the other's pieces wait in no heap."""
    block = b"".join(b"%07d\n" % number for number in range(1 << 17))
    for rank in (0, 1):
        for part in range(3):
            write(tmp_path, f"logs/{rank}.out", block)
            write(tmp_path, f"logs/{rank}.idx", b"%d %d\n" % (100 + 100 * rank + part, len(block) * (part + 1)))

    async def main() -> int:
        longest = shown = 0
        async for piece in SlurmLogReader(source(str(tmp_path)), 2).read(LogRequest(), lambda: True):
            longest, shown = max(longest, len(piece)), shown + len(piece)
        assert longest < 1 << 18
        return shown

    assert asyncio.run(main()) == 2 * 3 * len(block) // 8 * (8 + len("[rank 0] "))


def test_a_reader_that_is_lost_is_opened_again_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        transport = Here()
        over = False
        text = b""
        opened: list[Any] = []
        real = transport.open

        async def watched(*words: Any, **more: Any) -> Any:
            if len(opened) == 1:
                opened.append(None)
                raise Unreachable("lost")
            opened.append(await real(*words, **more))
            return opened[-1]

        transport.open = watched  # type: ignore[method-assign]

        async def follow() -> None:
            nonlocal text
            async for piece in SlurmLogReader(far(str(tmp_path), transport), 1).read(
                LogRequest(follow=True), lambda: over
            ):
                text += piece

        write(tmp_path, "logs/0.out", b"one\n")
        following = asyncio.create_task(follow())
        await until(lambda: text == b"one\n")
        await opened[0].close()
        write(tmp_path, "logs/0.out", b"two\n")
        over = True
        await following
        assert text == b"one\ntwo\n"
        assert len(opened) == 3

    asyncio.run(main())


def test_only_the_jobs_users_own_plain_files_are_read_here(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    logs = tmp_path / "run/logs"
    logs.mkdir(parents=True)
    (logs / "0.out").symlink_to(secret)
    os.link(secret, logs / "1.out")
    os.mkfifo(logs / "2.out")
    (logs / "3.out").mkdir()

    async def mine() -> Files:
        return NearFiles(str(tmp_path / "run"), os.geteuid())

    async def another() -> Files:
        return NearFiles(str(tmp_path / "run"), 54321)

    assert read(mine) == "[rank 1] s\n" or read(mine) == "s\n"
    assert read(another) == ""


@SOURCES
def test_progress_is_checked_and_told_in_order(tmp_path: Path, source: Source) -> None:
    write(tmp_path, "progress/0", b'{"at": 5, "step": 1, "total_steps": 9, "metrics": {"loss": 0.5}}\nno json\n[1]\n')
    write(tmp_path, "progress/0", b'{"at": 7.5, "step": 2, "loss": NaN}\n{"step": true}\n{"at": 1e99, "step": 3}\n')
    write(tmp_path, "progress/1", b'{"at": 6, "step": 1}\n')

    points = asyncio.run(SlurmLogReader(source(str(tmp_path)), 2).progress())
    assert [(point["rank"], point["step"]) for point in points] == [(0, 1), (1, 1), (0, 2), (0, 3)]
    assert points[0]["metrics"] == {"loss": 0.5}
    assert points[2]["metrics"] == {"loss": None}
    assert points[3]["at"] < 1e12


@SOURCES
def test_what_watch_says_lies_beside_the_reports(tmp_path: Path, source: Source) -> None:
    (tmp_path / "watch").mkdir()
    line = '{"at": %d, "rank": %d, "event": "steps", "data": {"step": [%d]}}\n'
    for name, rank, step in (("1", 1, 2), ("0.old", 0, 0), ("0", 0, 1)):
        write(tmp_path, f"watch/{name}", (line % (5 + step, rank, step)).encode())

    told = asyncio.run(SlurmLogReader(source(str(tmp_path)), 2).watched())
    assert [(event["rank"], event["data"]["step"]) for event in told] == [(0, [0]), (0, [1]), (1, [2])]


def test_a_flood_of_reports_is_thinned_out_and_its_last_one_kept() -> None:
    data = b"".join(b'{"at": %d, "step": %d}\n' % (number, number) for number in range(50_000))
    told = list(reports(data, 0, 1e9))
    assert 2000 < len(told) <= 4000
    assert told[-1]["step"] == 49_999
