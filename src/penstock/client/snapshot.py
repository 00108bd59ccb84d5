"""A work folder as a gzip tar named by its SHA-256: what is edited after submission changes nothing in the job.

The same files give the same bytes: entries sorted, owner 0, permissions and whole-second mtimes kept, no time in the
gzip header. The tar is in GNU's format, written here in a few lines because importing ``tarfile`` costs more than
packing a small folder. ``.gitignore`` and ``.penstockignore`` (which wins) are honoured in every folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from penstock.base.errors import InvalidInput, Problem, TooLarge
from penstock.base.quantities import format_memory
from penstock.base.text import one_line

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MAX_BYTES = 256 << 20
MAX_FILES = 20_000
LOOK_ON = 10  # a folder over the limits is read on, up to so many times MAX_FILES, to name its biggest entries
ALWAYS_OUT = frozenset({".git", "__pycache__", ".venv", "node_modules"})
VENV_MARK = "pyvenv.cfg"
IGNORE_FILES = (".gitignore", ".penstockignore")  # later ones win
_BLOCK = 512
_LEVEL = 1  # zlib's fastest: a snapshot goes to a server near by, and level 6 costs three times the CPU
_TRIES = 3  # a file that changes while it is read is read again so many times


class Snapshot(NamedTuple):
    """``pieces`` are the bytes of the gzip tar; ``size`` counts the files' bytes before packing."""

    digest: str
    pieces: list[bytes]
    files: int
    size: int
    notes: tuple[str, ...]


class Entry(NamedTuple):
    """``path`` is relative with '/'; ``target`` is a symlink's."""

    path: str
    mode: int
    mtime: int
    size: int = 0
    target: str | None = None


def take(folder: str, *, max_bytes: int | None = None) -> Snapshot:
    """Packs a folder. Raises InvalidInput (no folder, unreadable, a symlink that leaves it) or TooLarge."""
    return _packed(_Walk(folder, max_bytes or MAX_BYTES), "")


def take_model(path: str, *, max_bytes: int | None = None) -> Snapshot:
    """Packs one file, or a folder, below its own name. Raises as ``take`` does."""
    path = absolute(path)
    name, most = os.path.basename(path), max_bytes or MAX_BYTES
    if os.path.isdir(path):
        return _packed(_Walk(path, most), f"{name}/")
    try:
        info = os.stat(path)
    except OSError as error:
        raise InvalidInput(f"the model {one_line(path)} cannot be read: {error.strerror}") from error
    if info.st_size > most:
        raise TooLarge(
            f"the model {one_line(path)} is too large to carry: {format_memory(info.st_size)} of {format_memory(most)}",
            hint="Put it where the nodes can read it, and give --in-place.",
        )
    notes: list[str] = []
    tar = _Tar()
    data = _read(path, most, notes) or b""
    tar.add(Entry(name, info.st_mode, int(info.st_mtime)), data)
    return Snapshot(*tar.finish(), 1, len(data), tuple(notes))


def _packed(walk: _Walk, prefix: str) -> Snapshot:
    entries = walk.entries()
    tar = _Tar()
    size = files = 0
    for entry in entries:
        data = b""
        if entry.target is None and stat.S_ISREG(entry.mode):
            read = _read(os.path.join(walk.folder, entry.path), walk.max_bytes - size, walk.notes)
            if read is None:
                continue
            data = read
        files += not stat.S_ISDIR(entry.mode)
        size += len(data)
        tar.add(entry._replace(path=prefix + entry.path), data)
    return Snapshot(*tar.finish(), files, size, tuple(walk.notes))


def absolute(folder: str) -> str:
    """A folder's absolute path. Raises InvalidInput where the current folder was deleted."""
    try:
        return os.path.abspath(folder)
    except OSError as error:
        raise InvalidInput(
            f"the current folder cannot be found: {error.strerror}",
            hint="It was deleted or moved: go to another folder, or name one by its full path.",
        ) from error


class _Walk:
    """Finds what belongs to a snapshot, in sorted order, and refuses what cannot be carried."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder = absolute(folder)
        self.real = os.path.realpath(self.folder)
        self.max_bytes = max_bytes
        self.notes: list[str] = []
        self._files = 0
        self._bytes = 0
        self._tops: dict[str, list[int]] = {}  # first path component -> [bytes, files]

    def entries(self) -> list[Entry]:
        if not os.path.isdir(self.folder):
            raise InvalidInput(
                f"the work folder {one_line(self.folder)} does not exist",
                hint="Name one with --workdir, or give --no-snapshot.",
            )
        if self.real == "/":
            raise InvalidInput(
                "the work folder is /, the whole machine: it cannot be carried with a job",
                hint="Name another with --workdir, or run in the folder itself with --no-snapshot.",
            )
        try:
            found = list(self._folder("", []))
        except OSError as error:
            raise _unreadable(os.path.relpath(str(error.filename or self.folder), self.folder), error) from error
        if self._over():
            raise self._too_large()
        return found

    def _over(self) -> bool:
        return self._files > MAX_FILES or self._bytes > self.max_bytes

    def _folder(self, path: str, rules: list[tuple[str, GitIgnoreSpec]]) -> Iterator[Entry]:
        try:
            with os.scandir(os.path.join(self.folder, path)) as scan:
                inside = sorted(scan, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return  # it went away meanwhile
        except OSError as error:
            raise _unreadable(path, error) from error
        present = {entry.name for entry in inside}
        if path and VENV_MARK in present:
            return  # a virtual environment under a name of its own: it is named, not carried
        rules = rules + self._rules(path, present)
        for item in inside:
            here = f"{path}/{item.name}" if path else item.name
            is_folder = item.is_dir(follow_symlinks=False)
            if item.name in ALWAYS_OUT or _ignored(here + "/" if is_folder else here, rules):
                continue
            try:
                info = item.stat(follow_symlinks=False)
                found = list(self._item(here, info))
            except FileNotFoundError:
                continue
            yield from found
            if is_folder:
                yield from self._folder(here, rules)
            if self._files > MAX_FILES * LOOK_ON:
                return

    def _item(self, path: str, info: os.stat_result) -> Iterator[Entry]:
        mode, mtime = info.st_mode, int(info.st_mtime)
        if stat.S_ISDIR(mode):
            yield Entry(path, mode, mtime)
            return
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            self.notes.append(f"{one_line(path)} is no file (a socket, pipe or device): left out")
            return
        self._files += 1
        self._bytes += info.st_size
        top = self._tops.setdefault(path.partition("/")[0], [0, 0])
        top[0] += info.st_size
        top[1] += 1
        if stat.S_ISLNK(mode):
            yield Entry(path, mode, mtime, target=self._target(path))
        elif not self._over():
            yield Entry(path, mode, mtime, info.st_size)

    def _target(self, path: str) -> str:
        """A symlink's target, relative to it. Raises InvalidInput where it leads out of the folder."""
        full = os.path.join(self.folder, path)
        target = os.readlink(full)
        real = os.path.realpath(full)
        within = real == self.real or real.startswith(self.real.rstrip("/") + "/")
        if within and os.path.isabs(target):
            return os.path.relpath(real, os.path.realpath(os.path.dirname(full)))
        stays = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if not within or stays == ".." or stays.startswith("../"):
            raise InvalidInput(
                f"{one_line(path)} is a symbolic link out of the work folder (to {one_line(target)})",
                hint="Name it in .penstockignore, put a copy in its place, or give --no-snapshot.",
            )
        return target

    def _rules(self, path: str, names: set[str]) -> list[tuple[str, GitIgnoreSpec]]:
        present = [name for name in IGNORE_FILES if name in names]
        if not present:
            return []
        from pathspec import GitIgnoreSpec  # noqa: PLC0415 - most folders have no such file, and it takes 30 ms

        lines: list[str] = []
        for name in present:
            try:
                with open(os.path.join(self.folder, path, name), encoding="utf-8", errors="surrogateescape") as file:
                    lines += file.read().splitlines()
            except (FileNotFoundError, IsADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(f"{path}/{name}".lstrip("/"), error) from error
        try:
            return [(f"{path}/" if path else "", GitIgnoreSpec.from_lines(lines))]
        except ValueError as error:
            raise InvalidInput(f"{' / '.join(present)} in {one_line(path) or 'the work folder'}: {error}") from error

    def _too_large(self) -> TooLarge:
        some = "at least " if self._files > MAX_FILES * LOOK_ON else ""
        biggest = sorted(self._tops.items(), key=lambda item: (-item[1][0], -item[1][1]))[:5]
        return TooLarge(
            f"the work folder {one_line(self.folder)} is too large to carry with a job: {some}{self._files:,} files, "
            f"{format_memory(self._bytes)} (at the most {MAX_FILES:,} files, {format_memory(self.max_bytes)})",
            details=[
                Problem(one_line(name), f"{format_memory(size)} in {count:,} file{'s' * (count != 1)}")
                for name, (size, count) in biggest
            ],
            hint="Name a smaller folder with --workdir, leave things out in .penstockignore, or run in the folder itself "
            "with --no-snapshot.",
        )


def _ignored(path: str, rules: list[tuple[str, GitIgnoreSpec]]) -> bool:
    """The deepest folder's rules that say something about a path decide, as git has it."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix) :]).include
        if verdict is not None:
            return verdict
    return False


def _read(path: str, most: int, notes: list[str]) -> bytes | None:
    """A file's bytes; None where it went away. One that keeps changing is taken as it was last read, with a note."""
    for _ in range(_TRIES):
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                before = os.fstat(file.fileno())
                data = file.read(max(0, most) + 1)
                after = os.fstat(file.fileno())
        except FileNotFoundError:
            notes.append(f"{one_line(path)} went away while the folder was read: left out")
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        if len(data) > most:
            raise TooLarge(
                f"{one_line(path)} grew past the limit while the folder was read",
                hint="Leave it out in .penstockignore, or run in the folder itself with --no-snapshot.",
            )
        if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) and len(data) == after.st_size:
            return data
    notes.append(f"{one_line(path)} kept changing while it was read: carried as it was at that moment")
    return data


def _unreadable(path: str, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"cannot read {one_line(path) or 'the work folder'}: {error.strerror}",
        hint="Name it in .penstockignore, make it readable, or give --no-snapshot.",
    )


class _Tar:
    """Writes a gzip tar into memory, hashing as it goes."""

    def __init__(self) -> None:
        self._zip = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # +16: a gzip header, its time 0
        self._hash = hashlib.sha256()
        self._pieces: list[bytes] = []

    def add(self, entry: Entry, data: bytes) -> None:
        name = os.fsencode(entry.path)
        link = os.fsencode(entry.target) if entry.target is not None else b""
        kind = b"2" if entry.target is not None else b"5" if stat.S_ISDIR(entry.mode) else b"0"
        for long, mark in ((link, b"K"), (name, b"L")):
            if len(long) > 100:
                self._write(_header(b"././@LongLink", 0, 0, len(long) + 1, mark, b"") + _padded(long + b"\0"))
        mode = 0o777 if kind == b"2" else stat.S_IMODE(entry.mode) & 0o777
        self._write(_header(name[:100], mode, entry.mtime, len(data), kind, link[:100]) + _padded(data))

    def finish(self) -> tuple[str, list[bytes]]:
        self._write(bytes(2 * _BLOCK))
        self._keep(self._zip.flush())
        return self._hash.hexdigest(), self._pieces

    def _write(self, data: bytes) -> None:
        self._keep(self._zip.compress(data))

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._hash.update(piece)
            self._pieces.append(piece)


def _header(name: bytes, mode: int, mtime: int, size: int, kind: bytes, link: bytes) -> bytes:
    """One GNU tar header block: numbers in octal, the checksum counted with blanks in its place."""
    head = (
        name.ljust(100, b"\0")
        + _octal(mode, 8)
        + _octal(0, 8)
        + _octal(0, 8)
        + _octal(size, 12)
        + _octal(min(mtime, 0o77777777777), 12)
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + b"ustar  \0"
    ).ljust(_BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, max(0, value))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)
