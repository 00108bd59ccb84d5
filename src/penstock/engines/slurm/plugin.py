"""Slurm as a kind of engine that is added by name: built from its options, and its site asked what it has."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence

from penstock.engines.adding import Probed, Stored
from penstock.engines.slurm import probe as findings
from penstock.engines.slurm import restdata
from penstock.engines.slurm.commands import CommandController
from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.facts import Facts
from penstock.engines.slurm.rest import RestController
from penstock.engines.slurm.spec import Controller, Site, SlurmConfig, Transport
from penstock.engines.slurm.ssh import SSHTransport
from penstock.engines.slurm.transport import LocalTransport

_ASK_S = 15.0
_ANYBODY = "nobody"  # of every system; it stands for whoever submits
_WRITABLE = '''while [ ! -e "$1" ]; do set -- "${1%/*}"; [ -n "$1" ] || set -- /; done
[ -d "$1" ] && [ -w "$1" ] && [ -x "$1" ] || printf '%s\\n' "$1"'''


def config(stored: Stored) -> SlurmConfig:
    given = stored.options
    conf = given.get("slurm_conf")
    return SlurmConfig(
        stored.name,
        ssh=given.get("ssh"),
        rest=given.get("rest"),
        token=stored.secret,
        folder=given.get("folder") or "~/.penstock",
        shared=given.get("shared", True),
        partition=given.get("partition"),
        node_prefix=given.get("node_prefix") or "",
        managed=stored.managed,
        environment={"SLURM_CONF": conf} if conf else {},
        options=dict(given.get("options") or {}),
    )


def transport(stored: Stored, folder: str) -> Transport:
    """``folder``: of the server's own, for the shared SSH connection's socket."""
    known = config(stored)
    if known.ssh is not None:
        return SSHTransport(known.ssh, folder, config=stored.options.get("ssh_config"), environment=known.environment)
    return LocalTransport(known.environment)


def controller(known: SlurmConfig, way: Transport) -> Controller:
    """slurmrestd first where there is one; Slurm's own commands for what it cannot do."""
    commands = CommandController(way, known)
    if known.rest is None:
        return commands
    return RestController(known, commands if known.ssh is not None or known.environment else None)


def build(stored: Stored, clock: Callable[[], float]) -> SlurmEngine:
    known = config(stored)
    way = transport(stored, stored.folder)
    return SlurmEngine(known, way, controller(known, way), clock=clock, url=stored.url)


async def probe(stored: Stored) -> Probed:
    """Asks, and changes nothing: scontrol show, sinfo's facts, id, sudo -n true, stat. Raises EngineFailure.

    By a connection of its own: the engine's may be in use.
    """
    known = config(stored)
    with tempfile.TemporaryDirectory(prefix="penstock-probe-") as folder:
        way = transport(stored, folder)
        try:
            asked = controller(known, way)
            site = await asked.site()
            facts = await _facts(known, way, asked, site)
        finally:
            await way.close()
    return Probed(site.version, findings.findings(facts))


async def _facts(known: SlurmConfig, way: Transport, asked: Controller, site: Site) -> Facts:
    nodes = tuple(await asked.nodes())
    if known.rest is not None and known.ssh is None and not known.environment:
        whose, _ = restdata.token_user(known.token)
        return Facts(site, known, nodes, user=whose, root=whose == "root" or None, commands=False)
    user, srun, sudo, admin, system = await asyncio.gather(
        _said(way, "id", "-un"),
        _said(way, "srun", "--version"),
        _said(way, "sudo", "-n", "true"),
        _admin(way, site),
        _system(way, known.folder),
    )
    root = user == "root" if user else None
    others = root or (known.ssh is not None and sudo is not None)
    answers = admin is not None if "slurmdbd" in site.accounting else None
    return Facts(
        site,
        known,
        nodes,
        user or "",
        root,
        known.ssh is not None and sudo is not None,  # on this machine only root acts for others
        srun or "",
        admin or "",
        answers,
        system or "",
        await _closed_at(way, known.folder, _ANYBODY if others else None),
    )


async def _admin(way: Transport, site: Site) -> str | None:
    """What accounting says of whoever we come as; None where it does not answer."""
    if "slurmdbd" not in site.accounting:
        return None
    user = await _said(way, "id", "-un")
    words = ("sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "user", f"name={user}", "format=admin")
    return await _said(way, *words)


async def _system(way: Transport, folder: str) -> str | None:
    """The file system's type where the folder is, or will be."""
    try:
        path = folder.replace("~", await way.home(None), 1) if folder.startswith("~") else folder
    except (Unreachable, Refused):
        return None
    while True:
        found = await _said(way, "stat", "-f", "-c", "%T", "--", path)
        if found or path == "/":
            return found
        path = path.rstrip("/").rpartition("/")[0] or "/"


async def _closed_at(way: Transport, folder: str, user: str | None) -> str:
    """Where jobs' folders will be made: the place in which ``user`` cannot write; empty where that is well, or not known."""
    if folder.startswith("~") and user is not None:
        return ""  # each user's own home
    try:
        path = folder.replace("~", await way.home(None), 1) if folder.startswith("~") else folder
        done = await way.run(("sh", "-c", _WRITABLE, "sh", path), user=user, timeout_s=_ASK_S)
    except (Unreachable, Refused):
        return ""
    return done.out.decode("utf-8", "replace").strip() if done.code == 0 else ""


async def _said(way: Transport, *argv: str) -> str | None:
    """What a command said, None where it failed or is not there."""
    try:
        done = await way.run(_plain(argv), timeout_s=_ASK_S)
    except (Unreachable, Refused):
        return None
    return done.out.decode("utf-8", "replace").strip() if done.code == 0 else None


def _plain(argv: Sequence[str]) -> Sequence[str]:
    return ("env", "LC_ALL=C", *argv)
