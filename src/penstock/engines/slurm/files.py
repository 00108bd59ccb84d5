"""Where a run folder's files are read: here, or by a small reader on the far side that answers over one stream.

Files grow while they are read and belong to the job's user, who may put anything in their place: nothing is read as
anybody but that user, or it is seen first to be theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.spec import Stream, Transport

FOLDERS = ("logs", "progress", "watch")
ANSWER_S = 30.0
_NAME = re.compile(
    r"(?:logs/[a-z0-9][a-z0-9._-]{0,63}\.(?:out|idx)|(?:progress|ranks)/\d{1,7}|watch/\d{1,7}(?:\.old)?|claim|started|ended|restarts)"
)
# POSIX sh and coreutils. Opening a file before it is measured has NFS ask its server for the size.
READER = r"""
exec 2>/dev/null
while read -r verb name offset count; do
  case $verb in
  look)
    if cd -- "$1"; then
      set -- "$1" logs/*.out logs/*.idx progress/* watch/* ranks/* claim started ended restarts
      folder=$1; shift
      for file do [ -f "$file" ] && [ -r "$file" ] && true <"$file"; done
      stat -c '%s %Y %n' -- "$@"
      set -- "$folder"
    fi
    echo . ;;
  read)
    n=0
    if cd -- "$1" && [ -f "$name" ] && [ -r "$name" ] && true <"$name"; then
      n=$(($(stat -c %s -- "$name") - offset))
      [ "$n" -gt "$count" ] && n=$count
      [ "$n" -lt 0 ] && n=0
    fi
    echo "$n"
    [ "$n" -gt 0 ] && dd if="$name" bs=65536 skip="$offset" count="$n" iflag=skip_bytes,count_bytes ;;
  esac
done
exit 0
"""


@dataclass(frozen=True, slots=True)
class File:
    size: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Want:
    """A piece of a file, named by its path in the run folder."""

    name: str
    offset: int
    count: int


class Files(Protocol):
    """A run folder's logs and reports, where they are. Raises ``Unreachable``."""

    async def look(self) -> dict[str, File]: ...  # by path in the run folder
    async def read(self, wants: Sequence[Want]) -> list[bytes]: ...  # short, or empty, where there is no more
    async def close(self) -> None: ...


class NearFiles:
    """Files that this machine can open. ``uid``: whose they must be; None when we are who the job runs as."""

    def __init__(self, folder: str, uid: int | None) -> None:
        self._folder = folder
        self._uid = uid

    async def look(self) -> dict[str, File]:
        return await asyncio.to_thread(self._look)

    async def read(self, wants: Sequence[Want]) -> list[bytes]:
        return await asyncio.to_thread(lambda: [self._piece(want) for want in wants])

    async def close(self) -> None:
        return

    def _look(self) -> dict[str, File]:
        found: dict[str, File] = {}
        for folder in FOLDERS:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(f"{self._folder}/{folder}"):
                    path = f"{folder}/{name}"
                    if _NAME.fullmatch(path) and (fd := self._open(path)) is not None:
                        state = os.fstat(fd)
                        os.close(fd)
                        found[path] = File(state.st_size, state.st_mtime)
        return found

    def _piece(self, want: Want) -> bytes:
        fd = self._open(want.name)
        if fd is None:
            return b""
        try:
            return os.pread(fd, want.count, want.offset)
        finally:
            os.close(fd)

    def _open(self, path: str) -> int | None:
        """None for what is not there, or is not a plain file of the job's user."""
        try:
            fd = os.open(f"{self._folder}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        state = os.fstat(fd)
        if stat.S_ISREG(state.st_mode) and self._uid in (None, state.st_uid):
            return fd
        os.close(fd)
        return None


class FarFiles:
    """Files on the far side: one stream to a reader there, opened at the first question and again when it was lost.

    ``command`` runs that reader, its last word the folder: ``reader(folder)``, or the same inside a step of the job.
    """

    def __init__(self, transport: Transport, user: str | None, command: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._transport = transport
        self._user = user
        self._command = command
        self._stream: Stream | None = None
        self._rest = b""
        self._turn = asyncio.Lock()

    async def look(self) -> dict[str, File]:
        async with self._turn, self._answering():
            await self._ask(b"look\n")
            found: dict[str, File] = {}
            while (line := await self._line()) != b".":
                size, changed_at, name = line.decode("utf-8", "replace").split(" ", 2)
                if _NAME.fullmatch(name):
                    found[name] = File(int(size), float(changed_at))
            return found

    async def read(self, wants: Sequence[Want]) -> list[bytes]:
        async with self._turn, self._answering():
            found = []
            for want in wants:
                await self._ask(f"read {want.name} {want.offset} {want.count}\n".encode())
                found.append(await self._exactly(int(await self._line())))
            return found

    async def close(self) -> None:
        stream, self._stream, self._rest = self._stream, None, b""
        if stream is not None:
            await stream.close()

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Whatever interrupts an answer leaves half of it on the way: the stream is given up."""
        try:
            async with asyncio.timeout(ANSWER_S):
                yield
        except (TimeoutError, ValueError) as error:
            await self.close()
            raise Unreachable(f"the job's files cannot be read: {str(error) or 'no answer'}") from error
        except BaseException:
            await self.close()
            raise

    async def _ask(self, line: bytes) -> None:
        if self._stream is None:
            self._stream = await self._transport.open(await self._command(), user=self._user)
        try:
            await self._stream.write(line)
        except OSError as error:
            raise ValueError("the connection was lost") from error

    async def _more(self) -> None:
        data = None if self._stream is None else await self._stream.read()
        if not data:
            raise ValueError("the connection was lost")
        self._rest += data

    async def _line(self) -> bytes:
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > 1 << 16:
                raise ValueError("no sensible answer")
            await self._more()
        line, self._rest = self._rest[:end], self._rest[end + 1 :]
        return line

    async def _exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            await self._more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


def reader(folder: str) -> tuple[str, ...]:
    """The command of a reader where ``folder`` is a path; one that begins with ``~`` is the home of whoever runs it."""
    if folder == "~" or folder.startswith("~/"):
        return ("sh", "-c", f'set -- "$HOME/"{shlex.quote(folder[2:])}\n{READER}', "sh")
    return ("sh", "-c", READER, "sh", folder)
