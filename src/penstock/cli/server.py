"""``penstock up``, ``backup`` and ``restore``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_memory, parse_duration
from penstock.client.verb import Invocation, Verb
from penstock.engines.simulated.shape import MODEL, parse_cut, parse_shape
from penstock.scheduling.devices import is_valid, profiles

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_PLAIN = ("host", "port", "database_url", "local_nodes", "job_user", "gateway_host", "gateway_port")
_SIMULATED: dict[str, Callable[[str], Any]] = {
    "simulate_gpu": str,
    "simulate_mig": parse_cut,
    "simulate_speed": float,
    "simulate_load": float,
    "simulate_mtbf": parse_duration,
    "simulate_repair": parse_duration,
}
_FILES = ("tls_cert", "tls_key", "prices", "health_policy")


def _up(call: Invocation, arguments: Namespace) -> int:
    """Completes the settings and hands them to whoever serves; that one checks what they say together."""
    given = {name: value for name in _PLAIN if (value := getattr(arguments, name)) is not None}
    given |= {name: os.path.abspath(value) for name in _FILES if (value := getattr(arguments, name)) is not None}
    if not 0 <= given.get("port", 0) < 65536:
        raise InvalidInput(f"--port {given['port']}: a port is a number from 1 to 65535, or 0 for a free one")
    if not 0 < given.get("gateway_port", 1) < 65536:
        raise InvalidInput(f"--gateway-port {given['gateway_port']}: a port is a number from 1 to 65535")
    if given.get("local_nodes", 1) < 1:
        raise InvalidInput(f"--local-nodes {given['local_nodes']}: give 1 or more")
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise InvalidInput("--tls-cert and --tls-key go together")
    if arguments.gpu_idle_after is not None:
        given["gpu_idle_after"] = _duration("--gpu-idle-after", arguments.gpu_idle_after)
    if arguments.otlp is not None:
        given["otlp"] = _collector(arguments.otlp)
    given |= {name: True for name in ("insecure", "reset_token") if getattr(arguments, name)}
    given |= {"allowed_hosts": tuple(arguments.allowed_host)} if arguments.allowed_host else {}
    given |= {"production": tuple(arguments.production)} if arguments.production else {}
    given |= _simulated(arguments)
    return call.serve(replace(call.settings, **given))


def _duration(flag: str, text: str) -> float:
    """Raises InvalidInput."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidInput(f"{flag} {text!r}: {error}") from error


def _collector(text: str) -> tuple[str, int]:
    """Raises InvalidInput."""
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidInput(f"--otlp {text}: name the collector as HOST:PORT (OTLP over HTTP, usually port 4318)")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _simulated(arguments: Namespace) -> dict[str, Any]:
    """The settings of a simulated fleet. Raises InvalidInput."""
    words = {name: value for name in _SIMULATED if (value := getattr(arguments, name)) is not None}
    if arguments.simulate is None:
        if words:
            raise InvalidInput(f"--{next(iter(words)).replace('_', '-')} goes with --simulate NODESxGPUS")
        return {}
    if arguments.local_nodes is not None:
        raise InvalidInput("--local-nodes splits this machine, which --simulate leaves alone")
    given: dict[str, Any] = {}
    readers: dict[str, Callable[[str], Any]] = {"simulate": parse_shape, **_SIMULATED}
    for name, text in {"simulate": arguments.simulate, **words}.items():
        try:
            given[name] = readers[name](text)
        except ValueError as error:
            raise InvalidInput(f"--{name.replace('_', '-')}: {error}") from error
    if not 0 < given.get("simulate_speed", 1.0) <= 1e6:
        raise InvalidInput(f"--simulate-speed {words['simulate_speed']}: give more than 0 and at the most 1000000")
    if not 0 <= given.get("simulate_load", 0.0) <= 100:
        raise InvalidInput(
            f"--simulate-load {words['simulate_load']}: 0.9 asks for nine tenths of the fleet; at most 100"
        )
    for name in ("simulate_mtbf", "simulate_repair"):
        if given.get(name, 1.0) <= 0:
            raise InvalidInput(f"--{name.replace('_', '-')} {words[name]}: give more than 0, such as 500h")
    if "simulate_mig" in given:
        _check_cut(given["simulate_mig"], given["simulate"][0], given.get("simulate_gpu", MODEL))
    return given


def _check_cut(given: tuple[int, tuple[str, ...]], nodes: int, model: str) -> None:
    """Raises InvalidInput for more nodes than there are, and for what the hardware cannot do."""
    cut_nodes, cut = given
    if cut_nodes > nodes:
        raise InvalidInput(f"--simulate-mig: {cut_nodes} nodes are to be cut, and there are {nodes}")
    if not is_valid(model, cut):
        known = ", ".join(profile.name for profile in profiles(model))
        can = f"its profiles are {known}, and not any of them go together" if known else "it knows no MIG"
        raise InvalidInput(f"--simulate-mig: a {model} cannot be cut into {', '.join(cut)}: {can}")


def _up_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", help="where to listen (default 127.0.0.1); others need TLS or --insecure")
    add("--port", type=int, help="default 7070; 0 takes a free one")
    add("--gateway-host", help="where callers reach inference services (default 127.0.0.1)")
    add("--gateway-port", type=int, help="default 7071; nothing listens there before the first service")
    add("--database-url", metavar="URL", help="postgresql+psycopg://...; default: SQLite in the data folder")
    add("--local-nodes", type=int, metavar="N", help="split this machine into N nodes")
    add("--simulate", metavar="NxG", help="a simulated fleet of N nodes with G GPUs each: nothing really runs")
    add("--simulate-gpu", metavar="MODEL", help="their model (default NVIDIA H100 80GB HBM3)")
    add(
        "--simulate-mig",
        metavar="N:PROFILES",
        help="the last N nodes' GPUs are cut into MIG instances: 4:3g.40gb,3g.40gb",
    )
    add("--simulate-speed", metavar="F", help="the times that jobs state pass F times as fast (default 1)")
    add("--simulate-load", metavar="X", help="make up jobs that ask for about X of all GPUs (0.9), of several projects")
    add("--simulate-mtbf", metavar="TIME", help="mean time between failures of one node, such as 500h (default: none)")
    add("--simulate-repair", metavar="TIME", help="until a failed node is back, on average (default 30m)")
    add("--job-user", metavar="NAME", help="the Unix user of jobs, when started by root (PENSTOCK_JOB_USER)")
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", metavar="FILE", help="its private key, PEM")
    add("--insecure", action="store_true", help="listen on a foreign address without TLS, on purpose")
    add("--reset-token", action="store_true", help="write a new token into the data folder; the old one ends")
    add("--production", action="append", metavar="PROJECT", help="no faults are injected there; may be repeated")
    add("--allowed-host", action="append", metavar="NAME", help="a further name to answer to; may be repeated")
    add("--prices", metavar="FILE", help="the price file (YAML); default: the shipped one")
    add("--otlp", metavar="HOST:PORT", help="the OpenTelemetry collector that spans of served requests are sent to")
    add("--health-policy", metavar="FILE", help="what is done about faults (YAML), over the shipped policy")
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
        "penstock up --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --allowed-host penstock.example\n"
        "penstock up --simulate 64x8 --simulate-load 0.9 --simulate-speed 60",
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
