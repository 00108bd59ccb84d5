"""``penstock up``, ``backup`` and ``restore``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_memory, parse_duration
from penstock.client.verb import Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_PLAIN = ("host", "port", "database_url", "local_nodes", "job_user")
_FILES = ("tls_cert", "tls_key", "prices")


def _up(call: Invocation, arguments: Namespace) -> int:
    """Completes the settings and hands them to whoever serves; that one checks what they say together."""
    given = {name: value for name in _PLAIN if (value := getattr(arguments, name)) is not None}
    given |= {name: os.path.abspath(value) for name in _FILES if (value := getattr(arguments, name)) is not None}
    if not 0 <= given.get("port", 0) < 65536:
        raise InvalidInput(f"--port {given['port']}: a port is a number from 1 to 65535, or 0 for a free one")
    if given.get("local_nodes", 1) < 1:
        raise InvalidInput(f"--local-nodes {given['local_nodes']}: give 1 or more")
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise InvalidInput("--tls-cert and --tls-key go together")
    if arguments.gpu_idle_after is not None:
        given["gpu_idle_after"] = _duration("--gpu-idle-after", arguments.gpu_idle_after)
    given |= {name: True for name in ("insecure", "reset_token") if getattr(arguments, name)}
    given |= {"allowed_hosts": tuple(arguments.allowed_host)} if arguments.allowed_host else {}
    return call.serve(replace(call.settings, **given))


def _duration(flag: str, text: str) -> float:
    """Raises InvalidInput."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidInput(f"{flag} {text!r}: {error}") from error


def _up_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", help="where to listen (default 127.0.0.1); others need TLS or --insecure")
    add("--port", type=int, help="default 7070; 0 takes a free one")
    add("--database-url", metavar="URL", help="postgresql+psycopg://...; default: SQLite in the data folder")
    add("--local-nodes", type=int, metavar="N", help="split this machine into N nodes")
    add("--job-user", metavar="NAME", help="the Unix user of jobs, when started by root (PENSTOCK_JOB_USER)")
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", metavar="FILE", help="its private key, PEM")
    add("--insecure", action="store_true", help="listen on a foreign address without TLS, on purpose")
    add("--reset-token", action="store_true", help="write a new token into the data folder; the old one ends")
    add("--allowed-host", action="append", metavar="NAME", help="a further name to answer to; may be repeated")
    add("--prices", metavar="FILE", help="the price file (YAML); default: the shipped one")
    add("--gpu-idle-after", metavar="TIME", help="tell of GPUs that are held and do nothing for so long (default 30m)")


def _backup(call: Invocation, arguments: Namespace) -> int:
    """Written beside the file and renamed at the end, so that a broken-off backup is never taken for one."""
    draft = f"{arguments.file}.part"
    client = call.client
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            size = client.backup(file.write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, arguments.file)
    except OSError as error:
        raise InvalidInput(f"cannot write {arguments.file}: {error.strerror}") from error
    finally:
        if os.path.exists(draft):
            os.unlink(draft)
    call.output.note(f"{arguments.file}: {format_memory(size)} from {client.url}")
    return 0


def _restore(call: Invocation, arguments: Namespace) -> int:
    try:
        with open(arguments.file, "rb") as file:
            dump = file.read()
    except OSError as error:
        raise InvalidInput(f"cannot read {arguments.file}: {error.strerror}") from error
    answer = call.client.restore(dump)
    if call.output.format == "table":
        call.output.note(f"{call.client.url} holds what {arguments.file} held")
    else:
        call.output.document(answer)
    return 0


def _file(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")


VERBS = {
    "up": Verb(
        "penstock up\npenstock up --data-dir /srv/penstock --port 8080 --local-nodes 4\n"
        "penstock up --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --allowed-host penstock.example",
        _up_arguments,
        _up,
        about="SIGTERM or Ctrl-C stops the server; running jobs go on, and the next start finds them.",
    ),
    "backup": Verb(
        "penstock backup penstock-monday.zip",
        _file,
        _backup,
        about="While the server runs. The file holds no token's secret, but everything else: keep it safe.",
    ),
    "restore": Verb(
        "penstock restore penstock-monday.zip",
        _file,
        _restore,
        about="Everything that the server holds now is replaced. No job may be running.",
    ),
}
