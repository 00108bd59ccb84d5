"""What a probe found out, and how it is read from what commands said. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.engines.slurm.spec import Site, SlurmConfig, SlurmNode

# File systems that several machines mount, as `stat -f -c %T` names them.
SHARED_TYPES = frozenset(
    {
        "nfs",
        "lustre",
        "gpfs",
        "ceph",
        "fuse.ceph",
        "cephfs",
        "beegfs",
        "panfs",
        "afs",
        "smb",
        "smb2",
        "cifs",
        "gfs2",
        "ocfs2",
        "fhgfs",
        "orangefs",
        "pvfs2",
        "wekafs",
        "daos",
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """None, or "", of what could not be found out."""

    site: Site
    config: SlurmConfig
    nodes: tuple[SlurmNode, ...] = ()
    user: str = ""  # as whom Slurm's commands run there
    root: bool | None = None
    sudo: bool | None = None  # whether that user may become others without a password
    srun: str = ""  # srun's version, where there is one to call
    admin: str = ""  # None, Operator, Administrator: in accounting
    accounting_answers: bool | None = None
    file_system: str = ""  # of the folder: nfs, ext2/ext3
    closed_at: str = ""  # the folder, or the one above it, in which those who submit cannot write
    commands: bool = True  # whether there is a place for Slurm's commands (not so with slurmrestd alone)


def version(text: str) -> tuple[int, int]:
    """``slurm-wlm 22.05.8`` as (22, 5); (0, 0) where nothing like it is found."""
    found = re.search(r"(\d{1,4})\.(\d{1,2})", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def number(config: str | None) -> int | None:
    """``600 sec`` as 600."""
    found = re.match(r"\d+", config or "")
    return int(found[0]) if found else None


def models(gres: str) -> dict[str, int]:
    """``gpu:h100:8(S:0-1),gpu:2,nic:1`` as {"h100": 8, "": 2}: GPUs by model."""
    found: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = part.strip().split(":")
        if name != "gpu" or not rest or not rest[-1].isdigit():
            continue
        model = rest[0] if len(rest) > 1 else ""
        found[model] = found.get(model, 0) + int(rest[-1])
    return found


def parameters(text: str | None) -> dict[str, str]:
    """``bf_interval=2,bf_continue`` by name."""
    parts = (part.partition("=") for part in (text or "").split(",") if part and part != "(null)")
    return {name.strip().lower(): value.strip() for name, _, value in parts}
