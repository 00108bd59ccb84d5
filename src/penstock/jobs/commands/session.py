"""``penstock shell``, ``exec`` and ``port-forward``: inside a running job's allocation."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from penstock.base.errors import InvalidInput, PenstockError
from penstock.client.verb import Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.session import Terminal

NOT_FOUND = 127  # as shells say that there is no such program
_CHUNK = 32 << 10
_SHELL = ["/bin/sh", "-c", "command -v bash > /dev/null && exec bash; exec sh"]


def open_shell(call: Invocation, job: str, project: str | None = None) -> int:
    """bash where the job has it, else sh, on a terminal."""
    return _attach(call, job, _SHELL, with_tty=True, project=project)


def _shell(call: Invocation, arguments: Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInput("a shell needs a terminal", hint=f"Without one: penstock exec {arguments.job} -- COMMAND")
    return open_shell(call, arguments.job)


def _exec(call: Invocation, arguments: Namespace) -> int:
    if not arguments.command:
        raise InvalidInput(
            "no command was given", hint=f"Write it behind --: penstock exec {arguments.job} -- nvidia-smi"
        )
    try:
        return _attach(call, arguments.job, arguments.command, with_tty=arguments.tty)
    except PenstockError as error:
        said = f"{arguments.command[0]!r} was not found"
        if said not in error.message:
            raise
        call.output.note(f"error: {said} in the job")
        return NOT_FOUND


def _attach(call: Invocation, job: str, command: list[str], *, with_tty: bool, project: str | None = None) -> int:
    """Joins this terminal (or these pipes) to a command in the job; answers its exit code."""
    jobs = call.client.jobs
    own_terminal = with_tty and sys.stdin.isatty()
    with (
        jobs.exec(job, command, tty=with_tty, size=_size(), project=project) as terminal,
        _raw_mode() if own_terminal else nullcontext(),
    ):
        stop_r, stop_w = os.pipe()
        reader = threading.Thread(target=_send_input, args=(terminal, stop_r), daemon=True)
        if own_terminal:
            signal.signal(signal.SIGWINCH, lambda *_: terminal.resize(*_size()))
        reader.start()
        try:
            for data in terminal:
                call.output.raw(data)
        finally:
            os.close(stop_w)
            reader.join(1.0)
            if not reader.is_alive():
                os.close(stop_r)
    return terminal.exit_code or 0


def _send_input(terminal: Terminal, stop: int) -> None:
    """Standard input to the command, until either ends (``stop`` becomes readable when the command has)."""
    source = sys.stdin.fileno()
    while True:
        ready, _, _ = select.select([source, stop], [], [])
        if stop in ready:
            return
        data = os.read(source, _CHUNK)
        if not data:
            terminal.close_input()
            return
        terminal.write(data)


@contextmanager
def _raw_mode() -> Iterator[None]:
    """Every key goes through, Ctrl-C too; whatever happens the terminal is put back."""
    source = sys.stdin.fileno()
    before = termios.tcgetattr(source)
    try:
        tty.setraw(source, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
        return size if size.columns and size.lines else os.terminal_size((80, 24))  # some terminals know none
    except (OSError, ValueError):
        return 80, 24


def _forward(call: Invocation, arguments: Namespace) -> int:
    local, remote = _ports(arguments.ports)
    call.client.jobs.get(arguments.job)  # a wrong name is told now, not at the first connection
    with call.client.jobs.forward(arguments.job, remote, local, tell=call.output.note) as forward:
        call.output.line(f"127.0.0.1:{forward.port} -> {arguments.job}:{remote} (Ctrl-C ends it)")
        sys.stdout.flush()
        forward.serve()
    return 0


def _ports(text: str) -> tuple[int, int]:
    """``REMOTE``, ``LOCAL:REMOTE`` or ``:REMOTE`` (a free local port)."""
    local, colon, remote = text.rpartition(":")
    numbers = [part for part in (local, remote) if part]
    if not remote or not all(part.isdigit() and 0 < int(part) < 65536 for part in numbers):
        raise InvalidInput(f"{text!r} names no ports: write REMOTE, LOCAL:REMOTE or :REMOTE")
    return (int(local) if local else 0 if colon else int(remote)), int(remote)


def _job(parser: ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")


def _job_and_tty(parser: ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")


def _job_and_ports(parser: ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("ports", metavar="[LOCAL:]REMOTE", help=":REMOTE takes a free local port")


VERBS = {
    "shell": Verb("penstock shell notebook", _job, _shell, about="Only the job's owner may go inside it."),
    "exec": Verb(
        "penstock exec digits -- nvidia-smi\ncat more.csv | penstock exec digits -- sh -c 'cat > /tmp/more.csv'",
        _job_and_tty,
        _exec,
        takes_command=True,
        about="The command's exit code is this program's.",
    ),
    "port-forward": Verb(
        "penstock port-forward notebook 8888\npenstock port-forward notebook 9000:8888",
        _job_and_ports,
        _forward,
        about="Listens on 127.0.0.1 alone, until Ctrl-C.",
    ),
}
