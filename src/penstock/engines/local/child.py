"""From fork to exec: what a new process of a job does to itself before it becomes the user's command.

Runs in the child, so that folders and programs are looked for with the rights of the job's own user. What goes wrong
is written as one JSON object to a pipe that a successful exec closes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import resource
import shlex
import termios
from collections.abc import Callable
from typing import Any, TypeVar

from penstock.engines.local import kernel
from penstock.engines.local.cgroups import Cage

T = TypeVar("T")
REPORT_FD = 3  # of processes that the supervisor starts itself
_SHELL = "/bin/sh"


class LaunchError(Exception):
    """Why an attempt could not start: a ``base.reasons`` value and a sentence for its submitter."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = 126 if reason == "NotExecutable" else 127  # as shells have it


class Identity:
    """The Unix user that a job runs as."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, found: dict[str, Any]) -> None:
        self.name: str = found["name"]
        self.uid: int = found["uid"]
        self.gid: int = found["gid"]
        self.groups: list[int] = found["groups"]
        self.home: str = found["home"]
        self.shell: str = found["shell"]

    def appear(self) -> None:
        """Only the real ids and the groups, which access(2) asks about; the effective ones can still make folders."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, -1, -1)
        os.setresuid(self.uid, -1, -1)

    def become(self) -> None:
        """For good: real, effective and saved ids, and the user's groups."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def identity(found: dict[str, Any] | None) -> Identity | None:
    """From what users.py found; None for the server's own user. Never root, whatever a frame says. Raises LaunchError."""
    if found is None:
        if os.geteuid() == 0:
            raise LaunchError("LaunchFailed", "jobs are never run as root")
        return None
    if "error" in found:
        raise LaunchError("LaunchFailed", found["error"])
    if found["uid"] == 0:
        raise LaunchError("LaunchFailed", "jobs are never run as root")
    return Identity(found)


class Start:
    """One process to start. ``out`` is its stdout and stderr; ``needs`` are files it must be able to reach."""

    __slots__ = (
        "argv",
        "cage",
        "cwd",
        "env",
        "fallback_home",
        "home",
        "needs",
        "out",
        "processes",
        "report",
        "stdin",
        "tty",
        "who",
    )

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, out: int) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.out = out
        self.stdin: int | None = None
        self.report: int | None = None
        self.tty = False
        self.who: Identity | None = None
        self.cage: Cage | None = None
        self.needs: list[str] = []
        self.fallback_home: str | None = None  # made and used where the user's own home cannot be
        self.home: str | None = None
        self.processes: int | None = None  # RLIMIT_NPROC, where no control group counts processes


def spawn(start: Start, errors: int) -> int:
    """Fork and become ``start``; the child's pid. ``errors`` takes the JSON of a failure."""
    return in_child(start, errors, lambda: _execute(start))


def in_child(start: Start, errors: int, body: Callable[[], None]) -> int:
    """Fork, take on the job's cage and user, run ``body`` and leave; any failure is told through ``errors``."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 127
    try:
        _prepare(start, parent)
        body()
        os._exit(0)
    except LaunchError as error:
        failure = {"reason": error.reason, "message": error.message}
        code = error.exit_code
    except OSError as error:
        failure = {"reason": "LaunchFailed", "message": f"could not start {start.argv[:1]}: {error}"}
    finally:
        with contextlib.suppress(OSError, NameError, UnboundLocalError):
            os.write(errors, json.dumps(failure).encode()[:4096])
        os._exit(code)


def _prepare(start: Start, parent: int) -> None:
    os.setsid()
    if start.cage is not None:
        start.cage.join()
    stdin = os.open(os.devnull, os.O_RDONLY) if start.stdin is None else start.stdin
    os.dup2(stdin, 0)
    os.dup2(start.out, 1)
    os.dup2(start.out, 2)
    if start.report is not None:
        os.dup2(start.report, REPORT_FD)
    if start.tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o022)
    if start.processes is not None:
        _limit_processes(start.processes)
    if start.fallback_home is not None and "HOME" not in start.env:
        if start.who is not None:
            start.who.appear()
        start.home = home(start.who, start.fallback_home)
    if start.who is not None:
        start.who.become()
    kernel.die_with(parent)


def home(who: Identity | None, fallback: str) -> str:
    """A folder that is there and writable, since many programs write into it at once. Called after ``appear``."""
    usual = who.home if who else os.path.expanduser("~")
    if os.access(usual, os.X_OK | os.W_OK):
        return usual
    with contextlib.suppress(FileExistsError):
        os.mkdir(fallback, 0o700)
    if who is not None:
        os.chown(fallback, who.uid, who.gid, follow_symlinks=False)
    return fallback


def _limit_processes(count: int) -> None:
    """Of this user's processes and threads, all of its jobs together: the best that there is without control groups."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = count if soft == resource.RLIM_INFINITY else min(count, soft)
    resource.setrlimit(resource.RLIMIT_NPROC, (wanted, hard))


def _execute(start: Start) -> None:
    go_to_work(start)
    run_program(start, os.execve)


def _whose(start: Start) -> str:
    return f"the user {start.who.name}" if start.who else "this user"


def go_to_work(start: Start) -> None:
    """Enter the job's folder, with the rights of its user. Raises LaunchError where that user cannot."""
    whose = _whose(start)
    for path in start.needs:
        if not os.access(path, os.X_OK):
            conda = start.env.get("CONDA_PREFIX", "")
            if conda and "/" not in conda:
                why = f"there is no conda environment {conda!r} on this node; `conda env list` shows those there are"
                raise LaunchError("EnvironmentMissing", why)
            raise LaunchError("EnvironmentMissing", _unreachable(path, whose))
    try:
        os.chdir(start.cwd)
    except OSError as error:
        raise LaunchError("WorkdirMissing", _no_folder(start.cwd, error, whose)) from None


def _personal(start: Start) -> dict[str, str]:
    """HOME, USER and so on."""
    who = start.who
    home = start.home or start.cwd
    name = who.name if who else _own_name()
    shell = who.shell if who and not who.shell.endswith(("nologin", "false")) else ""
    return {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell or _SHELL}


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _unreachable(path: str, whose: str) -> str:
    blocker = _first_closed(path)
    if not os.path.lexists(path) and blocker is None:
        return f"{path} does not exist: create the environment, or name another one"
    at = f" (it stops at {blocker})" if blocker and blocker != path else ""
    return f"{whose} cannot use {path}{at}: put it where that user may read and run it"


def _no_folder(path: str, error: OSError, whose: str) -> str:
    if error.errno == errno.EACCES:
        return f"{whose} cannot enter {_first_closed(path) or path}: choose a folder that user may read, or send a snapshot"
    if error.errno == errno.ENOTDIR:
        return f"{path} is not a folder"
    return f"the folder {path} does not exist on this node: create it, or send a snapshot"


def _first_closed(path: str) -> str | None:
    """The first part of ``path`` that we may not pass."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        folder = "/".join(parts[:end])
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return folder
    return path if os.path.lexists(path) and not os.access(path, os.X_OK) else None


def run_program(start: Start, run: Callable[[str, list[str], dict[str, str]], T]) -> T:
    """Look for the program on the job's PATH and ``run`` it (execve, or what spawns). Raises LaunchError."""
    argv, env, whose = start.argv, {**_personal(start), **start.env}, _whose(start)
    name = argv[0]
    path = env.get("PATH") or os.defpath
    candidates = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in path.split(":")]
    refused: tuple[str, OSError] | None = None
    for candidate in candidates:
        if not os.path.isfile(candidate):  # asked first: a failing execve costs fifty times as much
            continue
        try:
            return run(candidate, argv, env)
        except OSError as error:
            refused = refused or (candidate, error)
    if refused is None:
        where = "" if "/" in name else f" on PATH ({path})"
        raise LaunchError("CommandNotFound", f"{name!r} was not found{where}: check the spelling and the environment")
    raise _refusal(*refused, whose)


def _has_windows_line_ends(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            first = file.readline(4096)
    except OSError:
        return False
    return first.startswith(b"#!") and first.endswith(b"\r\n")


def _refusal(path: str, error: OSError, whose: str) -> LaunchError:
    if error.errno == errno.ENOENT and _has_windows_line_ends(path):
        how = f"mend it with sed -i 's/\\r$//' {shlex.quote(path)}"
        return LaunchError(
            "NotExecutable", f"the first line of {path} ends in a carriage return (Windows line ends): {how}"
        )
    if error.errno == errno.ENOENT:
        return LaunchError("CommandNotFound", f"{path} names an interpreter in its first line that does not exist here")
    if error.errno == errno.ENOEXEC:
        return LaunchError(
            "NotExecutable", f"{path} is no program: begin it with a line such as #!/bin/sh, or name its interpreter"
        )
    if error.errno == errno.E2BIG:
        return LaunchError("LaunchFailed", "the command line and its environment are too long for this system")
    if error.errno in (errno.EACCES, errno.EPERM):
        return LaunchError("NotExecutable", f"{whose} may not execute {path}: chmod +x it, or name its interpreter")
    return LaunchError("LaunchFailed", f"could not execute {path}: {error.strerror}")
