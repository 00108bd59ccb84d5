"""Snapshots: the same files give the same bytes, tarfile reads them back, and nothing leaves the folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import socket
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput, TooLarge
from penstock.client import snapshot as module
from penstock.client.snapshot import Snapshot, take


def unpacked(snapshot: Snapshot, into: Path) -> None:
    """By the standard library's reader. (Python 3.11.2 has no extraction filters yet.)"""
    with tarfile.open(fileobj=io.BytesIO(b"".join(snapshot.pieces)), mode="r:gz") as tar:
        tar.extractall(into)


def names(snapshot: Snapshot) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(snapshot.pieces)), mode="r:gz") as tar:
        return tar.getnames()


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    work = lay(tmp_path / "work", {"train.py": "print(1)", "src/a/b.py": "", "data/x.bin": "\x00" * 3000})
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    (work / "latest").symlink_to("src/a")
    (work / "absolute").symlink_to(work / "train.py")
    (work / "empty").mkdir()
    os.utime(work / "train.py", (1_700_000_000, 1_700_000_000))
    snapshot = take(str(work))
    unpacked(snapshot, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "train.py").read_text() == "print(1)"
    assert (out / "train.py").stat().st_mtime == 1_700_000_000
    assert (out / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (out / "latest").readlink() == Path("src/a")
    assert (out / "absolute").readlink() == Path("train.py")
    assert (out / "empty").is_dir()
    assert snapshot.files == 6
    assert snapshot.digest == hashlib.sha256(b"".join(snapshot.pieces)).hexdigest()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = {f"{folder}/{number}.txt": str(number) for folder in "cab" for number in range(20)}
    digests = set()
    for seed in range(3):
        order = list(files.items())
        random.Random(seed).shuffle(order)
        work = lay(tmp_path / str(seed), dict(order))
        for path in sorted(work.rglob("*"), reverse=True):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        digests.add(take(str(work)).digest)
    assert len(digests) == 1
    header = take(str(work)).pieces[0][:10]
    assert header[4:8] == bytes(4)  # no time in gzip's header
    work.joinpath("a/0.txt").write_text("x")
    assert take(str(work)).digest not in digests


NAMES = st.text(st.characters(blacklist_characters="/\x00", codec="utf-8"), min_size=1, max_size=60).filter(
    lambda name: (
        name
        not in {
            ".",
            "..",
            ".git",
            "__pycache__",
            ".venv",
            "node_modules",
            "pyvenv.cfg",
            ".gitignore",
            ".penstockignore",
        }
        and len(name.encode()) <= 255
    )
)


@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map(tuple), st.binary(max_size=2000), max_size=8))
def test_any_names_and_bytes_come_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, ...], bytes]
) -> None:
    base = tmp_path_factory.mktemp("snap")
    work = base / "work"
    work.mkdir()
    written = {}
    for parts, data in files.items():
        path = work.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError:
            continue  # a file and a folder of one name
        written[path.relative_to(work)] = data
    snapshot = take(str(work))
    unpacked(snapshot, base / "out")
    assert {name: (base / "out" / name).read_bytes() for name in written} == written
    assert snapshot.files == len(written)


def test_names_that_are_no_text_and_long_ones(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe"
    with open(raw, "wb") as file:
        file.write(b"x")
    deep = "/".join(["d" * 60] * 5)
    lay(tmp_path, {f"{deep}/f": "y"})
    (tmp_path / "link").symlink_to(f"{deep}/f")
    found = names(take(str(tmp_path)))
    assert {os.fsdecode(b"\xff\xfe"), f"{deep}/f", "link"} <= set(found)


def test_what_is_always_left_out(tmp_path: Path) -> None:
    work = lay(
        tmp_path,
        {".git/config": "", "a/__pycache__/x.pyc": "", ".venv/bin/python": "", "b/node_modules/m": "", "keep.py": ""},
    )
    (work / "a/.venv").symlink_to("/usr")
    assert names(take(str(work))) == ["a", "b", "keep.py"]


def test_virtual_environments_are_left_out_whatever_their_name(tmp_path: Path) -> None:
    work = lay(tmp_path, {"env/pyvenv.cfg": "", "env/lib/x.py": "", "train.py": ""})
    (work / "env/bin").mkdir()
    (work / "env/bin/python").symlink_to("/usr/bin/python3")
    assert names(take(str(work))) == ["env", "train.py"]


def test_ignore_files(tmp_path: Path) -> None:
    work = lay(
        tmp_path,
        {
            ".gitignore": "*.log\ndata/\n/top.txt\n!important.log\n",
            ".penstockignore": "!data/\nsecret\n",
            "a.log": "",
            "important.log": "",
            "data/set.csv": "",
            "top.txt": "",
            "sub/top.txt": "",
            "sub/.gitignore": "*.tmp\n!b.log\n",
            "sub/b.log": "",
            "sub/c.log": "",
            "sub/x.tmp": "",
            "x.tmp": "",
            "secret/key": "",
        },
    )
    found = [name for name in names(take(str(work))) if not Path(name).name.startswith(".")]
    assert found == ["data", "data/set.csv", "important.log", "sub", "sub/b.log", "sub/top.txt", "x.tmp"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "..", "a/../../outside", "sub/up/up/up"])
def test_links_that_leave_are_refused(tmp_path: Path, target: str) -> None:
    lay(tmp_path, {"outside": "secret", "work/sub/f": ""})
    work = tmp_path / "work"
    (work / "sub" / "up").symlink_to("..")
    (work / "bad").symlink_to(target)
    if target == "sub/up/up/up":  # each step stays inside the folder until the last
        (work / "bad").unlink()
        (work / "bad").symlink_to("sub/up/../outside")
    with pytest.raises(InvalidInput, match=r"bad is a symbolic link out of the work folder"):
        take(str(work))
    (work / ".penstockignore").write_text("bad\n")
    assert "bad" not in names(take(str(work)))


def test_links_that_stay_are_kept_even_when_they_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "later").symlink_to("made-by-the-job")
    assert names(take(str(tmp_path))) == ["later"]


def test_too_many_files_names_the_biggest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 10)
    work = lay(tmp_path, {f"images/{n}": "xx" for n in range(30)} | {"train.py": "1"})
    with pytest.raises(TooLarge, match="31 files") as caught:
        take(str(work))
    assert caught.value.details[0].path == "images"
    assert caught.value.details[0].message == "60 in 30 files"
    assert all(word in caught.value.advice for word in ("--workdir", ".penstockignore", "--no-snapshot"))


def test_a_huge_folder_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    work = lay(tmp_path, {f"d{n}/{m}": "" for n in range(10) for m in range(10)})
    with pytest.raises(TooLarge, match="at least 2"):
        take(str(work))


def test_too_many_bytes(tmp_path: Path) -> None:
    work = lay(tmp_path, {"weights.bin": "x" * 5000, "train.py": "1"})
    with pytest.raises(TooLarge) as caught:
        take(str(work), max_bytes=4000)
    assert [problem.path for problem in caught.value.details] == ["weights.bin", "train.py"]
    (work / ".penstockignore").write_text("*.bin\n")
    assert take(str(work), max_bytes=4000).files == 2


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert take(str(tmp_path)).files == 0
    with pytest.raises(InvalidInput, match="does not exist"):
        take(str(tmp_path / "none"))


def test_sockets_and_pipes_are_left_out_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("sock")
        snapshot = take(".")
    assert snapshot.files == 0
    assert sorted(note.split()[0] for note in snapshot.notes) == ["pipe", "sock"]


def test_a_file_that_goes_away_or_keeps_changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, {"gone": "1", "log": "1", "stays": "1"})
    plain = os.fstat
    count = 0

    def restless(descriptor: int) -> os.stat_result:
        nonlocal count
        count += 1
        (tmp_path / "log").write_text("x" * count)
        return plain(descriptor)

    found = module._Walk.entries

    def entries(walk: module._Walk) -> list[module.Entry]:
        listed = found(walk)
        (tmp_path / "gone").unlink()
        return listed

    monkeypatch.setattr(module._Walk, "entries", entries)
    monkeypatch.setattr(os, "fstat", restless)
    snapshot = take(str(tmp_path))
    monkeypatch.undo()
    assert names(snapshot) == ["log", "stays"]
    assert sorted(note.split("/")[-1].split()[0] for note in snapshot.notes) == ["gone", "log"]
    gzip.decompress(b"".join(snapshot.pieces))


def test_a_folder_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    """What was a file at the walk and is a link when it is read is not read."""
    lay(tmp_path, {"a": "1"})
    (tmp_path / "b").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="cannot read"):
        module._read(str(tmp_path / "b"), 1000, [])


def test_the_reader_never_sees_a_path_outside(tmp_path: Path) -> None:
    lay(tmp_path, {"..a": "", "a..": "", "-rf": "", "a\nb": "", "~": ""})
    for name in names(take(str(tmp_path))):
        assert not name.startswith("/")
        assert ".." not in name.split("/")


def test_what_cannot_be_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cwd").symlink_to("x")

    def refused(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "readlink", refused)
    with pytest.raises(InvalidInput, match="cannot read sub/cwd: Permission denied") as caught:
        take(str(tmp_path))
    assert all(word in caught.value.advice for word in (".penstockignore", "--no-snapshot"))


def test_the_whole_machine_is_refused() -> None:
    with pytest.raises(InvalidInput, match="whole machine") as caught:
        take("/")
    assert all(word in caught.value.advice for word in ("--workdir", "--no-snapshot"))


def test_a_current_folder_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InvalidInput, match="current folder cannot be found"):
        take(".")
