"""Rendered files and folders: read one, compare, and put another's place, never half of it."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from penstock.base.errors import Conflict, InvalidInput
from penstock.provisioning.conf import HEAD, ConfFile

MOST_BYTES = 8 << 20
_SECRET = re.compile(r"^(StoragePass=).*", re.MULTILINE)
NAMES = ("slurm.conf", "gres.conf", "cgroup.conf", "topology.conf", "topology.yaml", "slurmdbd.conf")


def text_of(path: Path) -> str:
    """Raises InvalidInput where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as exc:
        raise InvalidInput(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"{path} is larger than {MOST_BYTES >> 20} MiB")
    return data.decode("utf-8", "replace")


def folder_of(path: Path) -> tuple[dict[str, str], list[str]]:
    """The text of Slurm's files in a folder, by name, and those that cannot be read; others are not looked at."""
    if not path.is_dir():
        raise InvalidInput(f"{path} is no folder")
    found: dict[str, str] = {}
    closed: list[str] = []
    for name in NAMES:
        if (path / name).exists():
            try:
                found[name] = text_of(path / name)
            except InvalidInput:
                closed.append(name)
    return found, closed


def open_to_others(path: Path) -> str | None:
    """What is wrong with the modes in a folder: slurmdbd does not start where others can read its file."""
    file = path / "slurmdbd.conf"
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(file.stat().st_mode)
        return f"slurmdbd.conf has the mode {mode:04o}" if mode & 0o077 else None
    return None


def differences(files: Iterable[ConfFile], folder: Path) -> Iterator[str]:
    """Lines of a unified diff from what is in ``folder`` to ``files``; passwords are not shown."""
    there, closed = folder_of(folder)
    rendered = {file.name: str(file) for file in files}
    for name in closed:
        yield f"{name}: what is there cannot be read"
    for name in (name for name in NAMES if name not in closed):
        old, new = (_SECRET.sub(r"\1(hidden)", each.get(name, "")) for each in (there, rendered))
        titles = (str(folder / name) if name in there else "/dev/null", name if name in rendered else "/dev/null")
        yield from difflib.unified_diff(old.splitlines(), new.splitlines(), *titles, lineterm="")
        if old == new and there.get(name, "") != rendered.get(name, ""):
            yield f"{name}: the password differs"


def put(files: Sequence[ConfFile], folder: Path, *, force: bool = False) -> None:
    """Every file is written beside its place before the first is moved there. A folder that is new comes whole.

    Raises Conflict where a file of that name was not rendered by us, unless ``force``; InvalidInput where it cannot be
    written.
    """
    try:
        if folder.exists():
            _replace(files, folder, force=force)
        else:
            _create(files, folder)
    except OSError as exc:
        raise InvalidInput(f"{folder} cannot be written: {exc.strerror}") from exc


def _create(files: Sequence[ConfFile], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    made.mkdir()
    try:
        for file in files:
            _write(made / file.name, file)
        os.rename(made, folder)
    except BaseException:
        _remove([*made.iterdir()])
        made.rmdir()
        raise


def _replace(files: Sequence[ConfFile], folder: Path, *, force: bool) -> None:
    for file in files:
        path = folder / file.name
        if not force and path.exists() and not text_of(path).startswith(HEAD):
            raise Conflict(f"{path} was not rendered from a fleet file: look at --diff, then use --force")
    moves: list[tuple[Path, Path]] = []
    try:
        for file in files:
            beside = folder / f".{file.name}.{secrets.token_hex(4)}"
            moves.append((beside, folder / file.name))
            _write(beside, file)
        for beside, path in moves:
            os.replace(beside, path)
        for name in set(NAMES) - {file.name for file in files}:
            path = folder / name
            if path.exists() and text_of(path).startswith(HEAD):  # of a fleet file that had it
                path.unlink()
    finally:
        _remove([beside for beside, _ in moves])


def _write(path: Path, file: ConfFile) -> None:
    data = str(file).encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
    with os.fdopen(handle, "wb") as out:
        os.fchmod(out.fileno(), file.mode)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
