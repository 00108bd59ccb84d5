"""Unpacking a job's work folder, without trust in the archive."""

from __future__ import annotations

import os
import tarfile

from penstock.engines.local.child import LaunchError

MAX_ENTRIES = 200_000
MAX_BYTES = 16 << 30  # unpacked


def unpack(source: int, target: str, most: int = MAX_BYTES) -> None:
    """Unpack the gzip tar behind the descriptor ``source`` into the folder ``target``, as whoever we are.

    ``most``: bytes. Only plain files, folders and links that stay inside; nothing outside ``target`` is ever named. Raises LaunchError.
    """
    try:
        with os.fdopen(os.dup(source), "rb") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            _unpack_members(archive, os.path.realpath(target), most)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise LaunchError("LaunchFailed", f"the job's snapshot is damaged: {error}") from None
    except OSError as error:
        raise LaunchError("LaunchFailed", f"the job's snapshot cannot be unpacked: {error.strerror or error}") from None


def _unpack_members(archive: tarfile.TarFile, root: str, most: int) -> None:
    size = 0
    folders: list[tuple[str, int]] = []
    for entries, member in enumerate(archive, 1):
        size += max(0, member.size)
        if entries > MAX_ENTRIES or size > most:
            raise _refused(member.name, f"more than {MAX_ENTRIES} entries or {most >> 30} GiB")
        path = _inside(root, member.name)
        if path is None:
            raise _refused(member.name, "it leads out of the work folder")
        _unpack_member(archive, member, path, root)
        if member.isdir():
            folders.append((path, member.mode & 0o777 | 0o700))
    for path, mode in reversed(folders):
        os.chmod(path, mode)


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, root: str) -> None:
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if member.issym():
        if _inside(root, os.path.join(os.path.dirname(member.name), member.linkname), member.linkname) is None:
            raise _refused(member.name, f"it links out of the work folder, to {member.linkname!r}")
        os.symlink(member.linkname, path)
    elif member.islnk():
        other = _inside(root, member.linkname)
        if other is None or not os.path.isfile(other):
            raise _refused(member.name, f"it links out of the work folder, to {member.linkname!r}")
        os.link(other, path, follow_symlinks=False)
    elif member.isreg():
        _copy(archive, member, path)
    else:
        raise _refused(member.name, "it is a device, a pipe or a socket")


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    content = archive.extractfile(member)
    if content is None:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, member.mode & 0o777 | 0o600)
    with os.fdopen(fd, "wb") as file:
        while chunk := content.read(1 << 20):
            file.write(chunk)
    os.utime(path, (member.mtime, member.mtime))


def _inside(root: str, name: str, link: str = "") -> str | None:
    """The path of ``name`` below ``root`` once links on the way are followed; None when that lies outside."""
    if name.startswith("/") or link.startswith("/") or "\0" in name:
        return None
    path = os.path.normpath(os.path.join(root, name))
    if path != root and not path.startswith(root + "/"):
        return None
    parent = os.path.realpath(os.path.dirname(path)) if path != root else root
    if parent != root and not parent.startswith(root + "/"):
        return None
    return path


def _refused(name: str, why: str) -> LaunchError:
    return LaunchError("LaunchFailed", f"the job's snapshot is refused: {name!r}: {why}")
