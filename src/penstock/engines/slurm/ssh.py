"""A login node by the system's OpenSSH: one connection that all commands share, opened at need and again when lost.

Whoever it comes as runs commands as other Unix users by ``setpriv`` where that is root, by ``sudo -n`` where it is not. Of a command
whose connection is lost nothing is known: ``Unreachable``. On the far side a command has its own limit of time, and a
stream's command ends with its connection, so that nothing of ours stays there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence

from penstock.base.text import one_line
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.process import PipeStream, TtyStream, completed
from penstock.engines.slurm.spec import Completed, Stream

CONNECT_S = 10
LOST = 255  # what ssh exits with when it, not the command, has failed
_SOCKET_PATH = 85  # ssh adds 17 characters while it opens the socket; the kernel takes 107
_SETTLE_S = 5.0
_AGAIN_S = 2.0  # after a failed try, during which all others fail at once
_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9.]+)?\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>\d{1,5}))?"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")

# As root: another user's ids, groups and home, and then the command. $1: the user.
_AS_USER = r"""
user=$1; shift
uid=$(id -u -- "$user") && gid=$(id -g -- "$user") || { echo "there is no user $user here" >&2; exit 126; }
home=$(getent passwd "$user" | cut -d: -f6)
cd / && exec setpriv --reuid="$uid" --regid="$gid" --init-groups \
  env HOME="$home" USER="$user" LOGNAME="$user" "$@"
"""
# As another: user, script, words. The script's first word is whose end it waits for.
_AS_OTHER = r'''user=$1 script=$2; shift 2; exec sudo -n -H -u "$user" -- sh -c "$script" sh "$PPID" "$@"'''
# A command's own 255 is no lost connection.
_PLAIN = r'"$@"; code=$?; [ "$code" -eq 255 ] && code=254; exit "$code"'
# First a line with its process id, by which it is ended; and it ends when the connection it came by is gone ($1, or our parent).
_STREAM = r"""
of=${1:-$PPID}; shift
[ -d "/proc/$of" ] || of=self
exec 3<&0
[ -x /usr/bin/setsid ] && set -- /usr/bin/setsid "$@"
sh -c 'echo "penstock $$"; exec "$@"' sh "$@" <&3 3<&- &
child=$!
exec 3<&-
(exec >/dev/null 2>&1 </dev/null; while [ -d "/proc/$of" ] && kill -0 "$child"; do sleep 3; done; kill -- "-$child" || kill "$child") &
watch=$!
wait "$child"; code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""
_END = 'kill -- "-$1" 2>/dev/null || kill "$1"'  # all that it started, where it has a session of its own
_GREETING = re.compile(rb"(?:^|\n)penstock (\d+)\r?\n")


class SSHTransport:
    """``target``: ``[user@]host[:port]``. ``folder``: where the connection's socket lies. ``config``: an ssh_config to use."""

    def __init__(
        self, target: str, folder: str, *, config: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Raises ValueError for what is no target."""
        match = _TARGET.fullmatch(target)
        if match is None:
            raise ValueError(f"{target!r} is not user@host[:port]")
        self.target = target
        self._host = match["host"].strip("[]")
        self._folder = folder
        self._own_folder: str | None = None
        self._environment = dict(environment or {})
        self._words = (
            *(("-F", config) if config else ()),
            *(("-l", match["user"]) if match["user"] else ()),
            *(("-p", match["port"]) if match["port"] else ()),
        )
        self._socket = ""
        self._connecting = asyncio.Lock()
        self._failed: tuple[float, str] = (-_AGAIN_S, "")
        self._login: tuple[str, int] | None = None  # who we are there: name and user id
        self._homes: dict[str | None, str] = {}

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", user: str | None = None, timeout_s: float = 30.0
    ) -> Completed:
        await self._connect()
        limit = ("timeout", "-k", "5", f"{timeout_s + 5:.0f}")
        remote = ("sh", "-c", _PLAIN, "sh", *limit, *await self._as(user), *self._env(), *argv)
        done = await self._ssh(remote, stdin=stdin, timeout_s=timeout_s)
        if done.code == LOST or b"Control socket connect" in done.err:
            await self._forget_dead()
        if done.code == LOST:
            raise Unreachable(self.lost(done.err))
        if user is not None and done.code == 1 and done.err.startswith(b"sudo: "):
            raise Refused(
                f"{self.target} may not run commands as {user}: {one_line(done.err.decode('utf-8', 'replace'))}",
                hint="Come as root, or let this user run commands as others without a password (sudoers: NOPASSWD).",
            )
        return done

    async def open(self, argv: Sequence[str], *, user: str | None = None, tty: tuple[int, int] | None = None) -> Stream:
        await self._connect()
        if tty is not None:
            command = (*await self._as(user), *self._env(), *argv)
            return await TtyStream.open(self._argv("-tt", "-o", "EscapeChar=none", command=command), tty)
        inner = await PipeStream.open(self._argv("-T", command=await self._streamed(argv, user)))
        stream = _FarStream(self, inner, user)
        await stream.begin()
        return stream

    async def _streamed(self, argv: Sequence[str], user: str | None) -> tuple[str, ...]:
        words = (*self._env(), *argv)
        prefix = await self._as(user)
        if prefix[:1] == ("sudo",):
            return ("sh", "-c", _AS_OTHER, "sh", user or "", _STREAM, *words)
        return (*prefix, "sh", "-c", _STREAM, "sh", "", *words)

    async def home(self, user: str | None) -> str:
        if user not in self._homes:
            name = user or (await self._who())[0]
            done = await self.run(("getent", "passwd", name))
            fields = done.out.decode("utf-8", "replace").strip().split(":")
            if done.code != 0 or len(fields) < 7:
                raise Refused(f"there is no user {name!r} on {self.target}")
            self._homes[user] = fields[5]
        return self._homes[user]

    async def close(self) -> None:
        """End the connection, and whatever still uses it."""
        if self._is_connected():
            with contextlib.suppress(OSError, TimeoutError):
                await completed(self._control("exit"), timeout_s=_SETTLE_S)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder, self._socket = None, ""

    # -- who

    async def _as(self, user: str | None) -> tuple[str, ...]:
        if user is None:
            return ()
        if not _USER.fullmatch(user):
            raise Refused(f"{user!r} is no Unix user's name")
        name, uid = await self._who()
        if user == name:
            return ()
        return ("sh", "-c", _AS_USER, "sh", user) if uid == 0 else ("sudo", "-n", "-H", "-u", user, "--")

    async def _who(self) -> tuple[str, int]:
        if self._login is None:
            done = await self.run(("sh", "-c", "id -un; id -u"))
            words = done.out.split()
            if done.code != 0 or len(words) != 2:
                raise Unreachable(
                    f"{self.target} does not answer sensibly: {one_line(done.err.decode('utf-8', 'replace'))}"
                )
            self._login = words[0].decode(), int(words[1])
        return self._login

    def _env(self) -> tuple[str, ...]:
        return ("env", *(f"{name}={value}" for name, value in self._environment.items())) if self._environment else ()

    # -- the connection

    async def _connect(self) -> None:
        """Have a master connection. Raises Unreachable with what ssh said."""
        if self._is_connected():
            return
        async with self._connecting:
            if self._is_connected():
                return
            if time.monotonic() - self._failed[0] < _AGAIN_S:
                raise Unreachable(self._failed[1])
            self._socket = self._socket_path()
            words = ("-f", "-N", "-o", "ControlMaster=yes", "-o", "ControlPersist=60")
            # Its own files, not pipes: the connection that goes into the background would hold them open.
            with tempfile.TemporaryFile() as said:
                process = await asyncio.create_subprocess_exec(
                    *self._argv(*words),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    cwd="/",
                    start_new_session=True,
                )
                try:
                    async with asyncio.timeout(2 * CONNECT_S):
                        code = await process.wait()
                except BaseException:
                    process.kill()
                    await process.wait()
                    raise
                said.seek(0)
                told = said.read(4096)
            if code != 0:
                self._failed = time.monotonic(), self.lost(told)
                raise Unreachable(self._failed[1])

    def _is_connected(self) -> bool:
        return bool(self._socket) and os.path.exists(self._socket)

    def _socket_path(self) -> str:
        name = hashlib.sha256("\0".join((self.target, *self._words)).encode()).hexdigest()[:12]
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        path = os.path.join(os.path.abspath(self._folder), name)
        if len(path) <= _SOCKET_PATH:
            return path
        if self._own_folder is None:
            self._own_folder = tempfile.mkdtemp(prefix="penstock-ssh-")
        return os.path.join(self._own_folder, name)

    async def _ssh(self, remote: Sequence[str], *, stdin: bytes, timeout_s: float) -> Completed:
        try:
            return await completed(self._argv("-T", command=remote), stdin=stdin, timeout_s=timeout_s)
        except TimeoutError:
            await self._forget_dead()
            raise Unreachable(f"{self.target} did not answer within {timeout_s:g} s") from None

    async def _forget_dead(self) -> None:
        """Remove the socket of a connection that answers no more."""
        try:
            alive = (await completed(self._control("check"), timeout_s=_SETTLE_S)).code == 0
        except (OSError, TimeoutError):
            alive = False
        if not alive and self._socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket)

    def _control(self, verb: str) -> tuple[str, ...]:
        return ("ssh", *self._words, "-o", f"ControlPath={self._socket}", "-O", verb, "--", self._host)

    def _argv(self, *words: str, command: Sequence[str] = ()) -> tuple[str, ...]:
        return (
            "ssh",
            *self._words,
            *words,
            *_options("BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
            *_options("LogLevel=ERROR", "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes"),
            *_options("PermitLocalCommand=no", f"ControlPath={self._socket}"),
            "--",
            self._host,
            *((f"exec {shlex.join(command)}",) if command else ()),
        )

    def lost(self, said: bytes) -> str:
        """What to tell of a failed connection, from what ssh said of it."""
        words = one_line(said.decode("utf-8", "replace")) or "the connection was lost"
        return f"{self.target} cannot be reached by SSH: {words}"


class _FarStream:
    """A command behind pipes whose far end is ended by its process id: a closed channel alone does not end it."""

    def __init__(self, transport: SSHTransport, inner: PipeStream, user: str | None) -> None:
        self._transport = transport
        self._inner = inner
        self._user = user
        self._rest = b""
        self._pid = ""
        self._over = False

    async def begin(self) -> None:
        """Raises Unreachable."""
        try:
            async with asyncio.timeout(2 * CONNECT_S):
                while (greeting := _GREETING.search(self._rest)) is None:
                    data = await self._inner.read()
                    if data is None:
                        raise Unreachable(self._transport.lost(self._rest))
                    self._rest += data
        except TimeoutError:
            await self._inner.close()
            raise Unreachable(self._transport.lost(b"no answer")) from None
        except BaseException:
            await self._inner.close()
            raise
        self._pid, self._rest = greeting[1].decode(), self._rest[greeting.end() :]

    async def read(self) -> bytes | None:
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return await self._inner.read()

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def close_input(self) -> None:
        await self._inner.close_input()

    async def resize(self, cols: int, rows: int) -> None:
        return

    async def wait(self) -> int:
        code = await self._inner.wait()
        self._over = True
        return code

    async def close(self) -> None:
        if not self._over and self._pid.isdigit():
            with contextlib.suppress(Unreachable, Refused):
                await self._transport.run(("sh", "-c", _END, "sh", self._pid), user=self._user)
        await self._inner.close()


def _options(*options: str) -> tuple[str, ...]:
    return tuple(word for option in options for word in ("-o", option))
