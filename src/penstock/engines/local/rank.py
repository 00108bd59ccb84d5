"""The shim between a launcher and one rank. Copied into the run folder and run there by any Python 3.

Usage: rank.py COMMAND... The launcher's RANK says which pipes are ours: ``$PENSTOCK_IO/<RANK>.out`` becomes stdout and
stderr, ``<RANK>.report`` the report pipe; ``notes`` takes the start and the exact exit. Signals are passed on once,
the rank dies with us, and we end as it did. It imports nothing of Penstock and next to nothing of Python.
"""

import ctypes
import errno
import os
import signal
import sys
import time

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61  # prctl(2), with Yama


def _quote(text: str) -> str:
    """A JSON string, without importing json (10 ms a rank)."""
    safe = (
        c if c.isprintable() and c not in '"\\' and ord(c) < 0xD800 else f"\\u{min(ord(c), 0xFFFD):04x}" for c in text
    )
    return '"' + "".join(safe) + '"'


def _note(io: str, rank: int, event: str, **fields: object) -> None:
    told = {"event": event, "at": time.time(), **fields}
    parts = [f'"rank":{rank}']
    for name, value in told.items():
        parts.append(
            f'"{name}":' + (_quote(value) if isinstance(value, str) else "null" if value is None else repr(value))
        )
    try:
        fd = os.open(f"{io}/notes", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, ("{" + ",".join(parts) + "}\n").encode()[:4096])
        os.close(fd)
    except OSError:  # the supervisor is gone, and so shall we be
        pass


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _let_look() -> None:
    """Where a process is otherwise shown to nobody but its ancestors: the probe that looks at ranks which hang is none."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
            if file.read(1) == b"1":
                ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    except OSError:
        pass


def _become(command: list[str], io: str, rank: int) -> None:
    """In the child: take the pipes, give signals back, exec."""
    os.setpgid(0, 0)  # launchers signal our whole group: the rank shall hear of it once, from us
    _die_with_parent()
    _let_look()
    out = os.open(f"{io}/{rank}.out", os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    report = os.open(f"{io}/{rank}.report", os.O_WRONLY)
    os.set_inheritable(report, True)
    os.environ["PENSTOCK_REPORT_FD"] = str(report)
    for number in (*_PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        why = _why(command[0], error)
        _note(io, rank, "refused", **why)
        os._exit(126 if why["reason"] == "NotExecutable" else 127)


def _why(name: str, error: OSError) -> "dict[str, object]":
    if error.errno == errno.EACCES and _exists(name):
        return {
            "reason": "NotExecutable",
            "message": f"{name} may not be executed: chmod +x it, or name its interpreter",
        }
    if error.errno == errno.ENOEXEC:
        return {"reason": "NotExecutable", "message": f"{name} is no program: begin it with a line such as #!/bin/sh"}
    if error.errno == errno.ENOENT and "/" in name and _has_windows_line_ends(name):
        how = f"mend it with sed -i 's/\\r$//' {name}"
        return {
            "reason": "NotExecutable",
            "message": f"the first line of {name} ends in a carriage return (Windows line ends): {how}",
        }
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
        return {"reason": "CommandNotFound", "message": f"{name} was not found: check the spelling and the environment"}
    return {"reason": "LaunchFailed", "message": f"could not execute {name}: {error.strerror}"}


def _has_windows_line_ends(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            first = file.readline(4096)
    except OSError:
        return False
    return first.startswith(b"#!") and first.endswith(b"\r\n")


def _exists(name: str) -> bool:
    """EACCES may also come from a folder on PATH that is closed to this user."""
    folders = [""] if "/" in name else [f"{folder}/" for folder in os.environ.get("PATH", os.defpath).split(":")]
    return any(os.path.isfile(folder + name) for folder in folders)


def _watch(child: int, supervisor: int) -> int:
    """Pass signals on until the rank ends; its wait status. What the supervisor sends, it sends the rank as well."""
    passed: set[int] = set()
    while True:
        got = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if got.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
        elif got.si_signo not in passed:
            if got.si_signo in (signal.SIGTERM, signal.SIGHUP):
                passed.add(got.si_signo)
            if got.si_pid != supervisor:
                os.kill(child, got.si_signo)


def main() -> None:
    io, rank = os.environ["PENSTOCK_IO"], int(os.environ.get("RANK", "0"))
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0)
    supervisor = int(os.environ.get("PENSTOCK_SUPERVISOR_PID", "0"))
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    _die_with_parent()
    child = os.fork()
    if child == 0:
        _become(sys.argv[1:], io, rank)
    node_rank = int(os.environ.get("PENSTOCK_NODE_RANK", "0"))
    _note(io, rank, "start", pid=child, restart=restart, node_rank=node_rank)
    status = _watch(child, supervisor)
    try:  # what the rank left in its group would be in the way of its next start
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = None if number is not None else os.WEXITSTATUS(status)
    _note(io, rank, "exit", code=code, signal=number, restart=restart)
    if number is not None:  # so that the launcher sees what happened to the rank
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    os._exit(code if code is not None else 1)


if __name__ == "__main__":
    main()
