"""``penstock agent``: on each node, reads its telemetry and tells the server what is wrong."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TextIO

from penstock.base.errors import Conflict, InvalidInput, Unavailable
from penstock.client.verb import Column, Invocation, Verb
from penstock.telemetry.push import finding_to_dict
from penstock.telemetry.rendering import daemonset, systemd

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.base.settings import Settings
    from penstock.client.transport import Transport
    from penstock.telemetry.spec import Finding

LISTEN = "127.0.0.1:7072"
OFF = "off"
IMAGE = "penstock:latest"

READINGS = (
    Column("SOURCE", lambda row, _: str(row["source"])),
    Column("VALUES", lambda row, _: str(row["values"]), right=True),
    Column("LINES", lambda row, _: str(row["lines"]), right=True),
    Column("TOOK", lambda row, _: f"{row['took_s'] * 1000:.0f} ms", right=True),
    Column("PROBLEM", lambda row, _: str(row["problem"])),
)
_STYLES = {"critical": "red", "warning": "yellow"}
FINDINGS = (
    Column("SEVERITY", lambda row, _: str(row["severity"]), style=lambda text: _STYLES.get(text, "")),
    Column("RULE", lambda row, _: str(row["rule"])),
    Column("CODE", lambda row, _: str(row["code"])),
    Column("DEVICE", lambda row, _: str(row["device"])),
    Column("COUNT", lambda row, _: str(row["count"]), right=True),
    Column("MESSAGE", lambda row, _: str(row["message"])),
)


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("--node", metavar="NAME", help="as the fleet calls this node (default: the host's name)")
    parser.add_argument(
        "--token-file", metavar="FILE", help="with the node's token: penstock token create --agent NODE"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=LISTEN,
        help=f"where /metrics is served; off: nowhere (default: {LISTEN})",
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where it keeps what it has read (default: agent/ in the data folder)"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="how many the node should have (default: as the PCI bus says)"
    )
    parser.add_argument(
        "--node-exporter",
        metavar="URL",
        default="auto",
        help="its page is read, and /proc is not; auto: where it listens at port 9100; off",
    )
    parser.add_argument(
        "--dcgm-exporter",
        metavar="URL",
        default="auto",
        help="its page is read, and NVML is not asked; auto: where it listens at port 9400; off",
    )
    parser.add_argument("--envoy", metavar="URL", default="", help="Envoy's /stats/prometheus, read too")
    parser.add_argument("--slurm", action="store_true", help="ask scontrol for the node's state once a minute")
    parser.add_argument(
        "--perfquery", action="store_true", help="ask perfquery for InfiniBand ports that sysfs has no counters of"
    )
    parser.add_argument("--root", metavar="DIR", default="/", help="where the node's files are (in a container: /host)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--once", action="store_true", help="read each source once, print what it says and what is wrong, and end"
    )
    how.add_argument("--dry-run", action="store_true", help="go on, and print findings instead of telling the server")
    how.add_argument("--render", choices=["systemd", "daemonset"], help="print a unit, or a DaemonSet, that runs it")
    parser.add_argument("--image", default=IMAGE, help="of the DaemonSet")


def _agent(call: Invocation, arguments: Namespace) -> int:
    if arguments.render:
        return _render(call, arguments)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    node = arguments.node or socket.gethostname()
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", node):
        raise InvalidInput(f"--node {node!r} is no node's name")
    if arguments.once:
        return _once(call, arguments, node)
    with ExitStack() as stack:
        folder = arguments.state_dir or os.path.join(call.settings.data_dir, "agent")
        stack.enter_context(_alone(folder))
        return _run(call, arguments, node, folder)


def _run(call: Invocation, arguments: Namespace, node: str, folder: str) -> int:
    from penstock.engines.local.procs import boot_id  # noqa: PLC0415 - the help of a verb needs none of it
    from penstock.telemetry.agent import Agent, Metrics  # noqa: PLC0415 - as above
    from penstock.telemetry.choosing import choose  # noqa: PLC0415 - as above
    from penstock.telemetry.ordered import by_program  # noqa: PLC0415 - as above
    from penstock.telemetry.rules import Rules  # noqa: PLC0415 - as above

    def connect() -> Transport:
        return _transport(call.settings, arguments.token_file)

    def show(finding: Finding) -> None:
        if call.output.format == "table":
            call.output.line(_line(finding))
        else:
            call.output.document(finding_to_dict(finding))
        sys.stdout.flush()

    boot = boot_id()
    rules = Rules(node, arguments.gpus)
    dry = arguments.dry_run
    sources = choose(_wanted(arguments, node, folder, boot))
    agent = Agent(node, boot, sources, rules, None if dry else connect, show if dry else None, check=by_program(node))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    if arguments.listen != OFF:
        metrics = _metrics(Metrics, arguments.listen, agent.page)
        metrics.start()
        call.output.note(f"metrics: http://{metrics.server_name}:{metrics.server_port}/metrics")
    call.output.note(f"node {node}: {', '.join(source.name for source in sources)}")
    agent.run()
    return 0


def _once(call: Invocation, arguments: Namespace, node: str) -> int:
    from penstock.engines.local.procs import boot_id  # noqa: PLC0415 - as above
    from penstock.telemetry.agent import Agent  # noqa: PLC0415 - as above
    from penstock.telemetry.choosing import choose  # noqa: PLC0415 - as above
    from penstock.telemetry.rules import Rules  # noqa: PLC0415 - as above

    boot = boot_id()
    agent = Agent(node, boot, choose(_wanted(arguments, node, "", boot)), Rules(node, arguments.gpus))
    found = agent.once()
    rows = [
        {
            "source": taken.reading.source,
            "values": len(taken.reading.points),
            "lines": len(taken.reading.lines),
            "took_s": round(taken.took_s, 6),
            "problem": taken.reading.problem,
        }
        for taken, _ in found
    ]
    findings = [finding_to_dict(finding) for _, told in found for finding in told]
    if call.output.format != "table":
        call.output.document({"node": node, "sources": rows, "findings": findings})
        return 0
    call.output.table(READINGS, rows, call.now)
    call.output.line()
    if findings:
        call.output.table(FINDINGS, findings, call.now)
    else:
        call.output.line("Nothing is wrong that one look can tell.")
    return 0


def _render(call: Invocation, arguments: Namespace) -> int:
    url = call.settings.url or "https://penstock.example:7070"
    more = _more(arguments)
    if arguments.render == "systemd":
        more = [*([] if arguments.node is None else ["--node", arguments.node]), *more]
        call.output.raw(systemd(_program(), url, more).encode())
    else:
        call.output.raw(daemonset(arguments.image, url, more).encode())
    return 0


def _more(arguments: Namespace) -> list[str]:
    """The flags that were given, to be given again."""
    words = ["--gpus", str(arguments.gpus)] if arguments.gpus else []
    for flag, usual in (("node_exporter", "auto"), ("dcgm_exporter", "auto"), ("envoy", "")):
        value = getattr(arguments, flag)
        words += [f"--{flag.replace('_', '-')}", value] if value != usual else []
    return [*words, *(f"--{flag}" for flag in ("slurm", "perfquery") if getattr(arguments, flag))]


def _program() -> str:
    """Where this program stands; else where a package would put it."""
    path = os.path.abspath(sys.argv[0])
    return path if os.path.basename(path) == "penstock" else "/usr/local/bin/penstock"


def _wanted(arguments: Namespace, node: str, folder: str, boot: str) -> Any:
    from penstock.telemetry.choosing import Wanted  # noqa: PLC0415 - as above

    return Wanted(
        node,
        folder,
        boot,
        arguments.root,
        arguments.node_exporter,
        arguments.dcgm_exporter,
        arguments.envoy,
        arguments.slurm,
        arguments.perfquery,
    )


def _transport(settings: Settings, token_file: str | None) -> Transport:
    """Found anew at each connection: a server may move, and a token be made anew. Raises Unavailable."""
    from penstock.client.discovery import find  # noqa: PLC0415 - as above
    from penstock.client.transport import Transport  # noqa: PLC0415 - as above

    token = settings.token
    if token_file is not None:
        try:
            with open(token_file, encoding="utf-8") as file:
                token = file.read().strip() or None
        except OSError as error:
            raise Unavailable(f"{token_file}: {error.strerror}") from error
    place = find(settings.url, token, settings.data_dir)
    return Transport(place.url, place.token, ca=place.ca)


def _alone(folder: str) -> TextIO:
    """One agent for one state folder. Raises Conflict, Unavailable."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        file = open(os.path.join(folder, "lock"), "w", encoding="ascii")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}", hint="Name a folder of yours with --state-dir.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise Conflict(
            f"another agent uses {folder}", hint="One runs on each node; name another folder with --state-dir."
        ) from error
    return file


def _metrics(make: Any, listen: str, page: Any) -> Any:
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidInput(f"--listen {listen}: write HOST:PORT, or off")
    try:
        return make((host.strip("[]"), int(port)), page)
    except OSError as error:
        raise Unavailable(f"--listen {listen}: {error.strerror}", hint="Name another port, or off.") from error


def _line(finding: Finding) -> str:
    state = finding.severity.value if finding.active else "ended"
    times = f" ({finding.count} times)" if finding.count > 1 else ""
    return f"{state:<9} {finding.rule} {finding.code} {finding.device}: {finding.message}{times}".replace("  ", " ")


VERBS = {
    "agent": Verb(
        "penstock agent --once\n"
        "penstock agent --url https://penstock.example:7070 --token-file /etc/penstock/agent.token\n"
        "penstock agent --render systemd --url https://penstock.example:7070",
        _configure,
        _agent,
        about="One runs on each node. It reads /proc, /sys, NVML, the kernel's log and the exporters that run there, serves\n"
        "/metrics for Prometheus, and tells the server at once what is wrong, and every 10 s how the node is.",
    )
}
