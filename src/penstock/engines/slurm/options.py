"""What `penstock engines add slurm` may be told, and what is wrong with what it was told. Pure, and light."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.base.errors import Problem
from penstock.engines.adding import Option

OPTIONS = (
    Option("ssh", "--ssh", "a login node, by the server's own OpenSSH; without it Slurm's commands are here", metavar="[USER@]HOST[:PORT]"),
    Option("ssh_config", "--ssh-config", "an ssh_config of its own: keys, known hosts, jump hosts", metavar="PATH"),
    Option("rest", "--rest", "slurmrestd: http(s)://host:port or unix:/path of its socket", metavar="URL"),
    Option("folder", "--folder", "of the jobs, there; ~ is each user's home (default ~/.penstock)", metavar="DIR", default="~/.penstock"),
    Option("shared", "--shared", "whether that folder is the same on the compute nodes", form="switch", default=True),
    Option("partition", "--partition", "of jobs that name none; only its nodes are offered", metavar="NAME"),
    Option("node_prefix", "--node-prefix", "before each node's name, where two engines have nodes of one name", metavar="X"),
    Option("options", "--option", "an option of sbatch, for every job; may repeat", form="pairs", metavar="KEY=VALUE"),
    Option("slurm_conf", "--slurm-conf", "slurm.conf there, where it is not in its usual place", metavar="PATH"),
)  # fmt: skip

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
_SSH = re.compile(rf"(?:[A-Za-z_][A-Za-z0-9_.-]{{0,31}}@)?{_HOST}(?::[0-9]{{1,5}})?")
_REST = re.compile(rf"https?://{_HOST}(?::[0-9]{{1,5}})?/?|unix:/[^\s]{{1,106}}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_FOLDER = re.compile(r"(?:~|/)[A-Za-z0-9_./@%+=:,-]{0,400}")
_SBATCH = re.compile(r"[a-z][a-z0-9-]{1,39}")
OWN = frozenset(
    {
        "array",
        "chdir",
        "error",
        "export",
        "export-file",
        "gid",
        "help",
        "input",
        "job-name",
        "open-mode",
        "output",
        "parsable",
        "quiet",
        "signal",
        "test-only",
        "uid",
        "usage",
        "version",
        "wait",
        "wrap",
    }
)  # sbatch's options that are Penstock's own to set


def where(values: Mapping[str, Any]) -> str:
    """``login1 by ssh``."""
    places = [f"{values['ssh']} by ssh"] if values.get("ssh") else []
    if values.get("rest"):
        places.insert(0, str(values["rest"]))
    return ", ".join(places) or "this machine"


def problems(values: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with them; their forms have been seen to."""
    return [Problem(f"options.{name}", message) for name, message in _wrong(values)]


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, rule, words in (
        ("ssh", _SSH, "write user@host or user@host:port, a host as in DNS"),
        ("rest", _REST, "write http://host:port, https://host:port or unix:/path/of/the/socket"),
        ("folder", _FOLDER, "write an absolute path, or one that begins with ~, of plain characters"),
        ("partition", _NAME, "is no partition's name"),
        ("node_prefix", _NAME, "is no beginning of a name"),
    ):
        value = values.get(name)
        if value is not None and not rule.fullmatch(value):
            yield name, words
    folder = values.get("folder") or ""
    if ".." in folder.split("/") or (folder.startswith("~") and folder[1:2] not in {"", "/"}):
        yield "folder", "write it without .. and without another user's ~name"
    for name in ("slurm_conf", "ssh_config"):
        if not str(values.get(name) or "/").startswith("/"):
            yield name, "write an absolute path"
    for key in values.get("options") or {}:
        if not _SBATCH.fullmatch(key):
            yield "options", f"{key[:40]!r} is no long option of sbatch: write account=ml, constraint=a100"
        elif key in OWN:
            yield "options", f"--{key} is Penstock's own to set"
