"""Where a conda environment lies that a job names without its folder."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator

_MOST_READ = 1 << 16  # of a list that a user may have written
_INSTALLATIONS = ("miniforge3", "mambaforge", "miniconda3", "anaconda3", ".conda")


def locate(name: str, home: str | None, search_path: str) -> str:
    """The folder of environment ``name``, looked for where ``conda env list`` looks: the list that conda keeps in the user's
    home, the installations there, and the one whose ``conda`` is on the PATH. A folder, and a name that nothing has, is
    answered as it is: the node then says that it is not there.
    """
    if "/" in name:
        return name
    return next((folder for folder in _candidates(name, home, search_path) if os.path.isdir(folder)), name)


def _candidates(name: str, home: str | None, search_path: str) -> Iterator[str]:
    roots = [f"{home}/{folder}" for folder in _INSTALLATIONS] if home else []
    conda = shutil.which("conda", path=search_path)
    if conda:
        roots.append(os.path.dirname(os.path.dirname(os.path.realpath(conda))))
    if name == "base":
        yield from (root for root in roots if os.path.isdir(f"{root}/conda-meta"))
        return
    if home:
        yield from (folder for folder in _listed(f"{home}/.conda/environments.txt") if os.path.basename(folder) == name)
    yield from (f"{root}/envs/{name}" for root in roots)


def _listed(path: str) -> list[str]:
    """One folder a line. The file is the user's, the reader may be root: nothing that blocks, and not all of it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(file, _MOST_READ) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)
    return [line.strip() for line in text.decode(errors="replace").splitlines() if line.startswith("/")]
