"""From the environment that a job names to variables and a way to start. Pure but for the search for apptainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.base.errors import Problem

# How the wrapper around a command with modules ends before the command starts; codes that programs hardly use.
NO_MODULE_SYSTEM, NO_MODULE = 213, 214
_CONTAINERS = ("apptainer", "singularity")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a job may know of the server's own environment: where things lie and how to print, nothing secret.
_PASSED = frozenset(
    {
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        "MODULEPATH",
        "MODULESHOME",
    }
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """``wrap`` goes before the command; ``needs`` are files that the job's user must be able to execute."""

    env: dict[str, str]
    wrap: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(default=())


def scrub(host_env: Mapping[str, str], *, own_prefix: str | None = None) -> dict[str, str]:
    """The server's environment without what is its own: secrets, its virtual environment, its settings."""
    env = {name: value for name, value in host_env.items() if name in _PASSED or name.startswith("LC_")}
    path = env.get("PATH", _DEFAULT_PATH).split(":")
    env["PATH"] = ":".join(folder for folder in path if folder != own_prefix and folder) or _DEFAULT_PATH
    return env


def prepare(environment: Mapping[str, Any], base: Mapping[str, str], *, folders: tuple[str, ...]) -> Prepared:
    """What the job's processes get. ``folders`` are shown inside a container."""
    env = dict(base)
    needs: tuple[str, ...] = ()
    if venv := environment.get("venv"):
        env |= {"VIRTUAL_ENV": venv, "PATH": f"{venv}/bin:{base['PATH']}"}
        needs = (f"{venv}/bin/python",)
    elif conda := environment.get("conda"):
        env |= {"CONDA_PREFIX": conda, "CONDA_DEFAULT_ENV": conda, "PATH": f"{conda}/bin:{base['PATH']}"}
        needs = (f"{conda}/bin/python",)
    wrap: tuple[str, ...] = ()
    if image := environment.get("image"):
        binds = [word for folder in folders for word in ("--bind", folder)]
        wrap = (container() or _CONTAINERS[0], "exec", "--nv", *binds, str(image))
    if modules := environment.get("modules"):
        wrap = (*load_modules(tuple(modules)), *wrap)
    return Prepared(env, wrap, needs)


def load_modules(modules: tuple[str, ...]) -> tuple[str, ...]:
    """A login shell defines ``module``; names are arguments, never shell text."""
    script = (
        f"type module >/dev/null 2>&1 || exit {NO_MODULE_SYSTEM}; n=$1; shift; "
        f'module load "${{@:1:n}}" || exit {NO_MODULE}; shift "$n"; exec "$@"'
    )
    return ("/bin/bash", "-lc", script, "modules", str(len(modules)), *modules)


def missing_module(modules: Sequence[str], exit_code: int | None) -> str | None:
    """What a command's exit says of the modules that it was to have; None when it says nothing."""
    if modules and exit_code == NO_MODULE_SYSTEM:
        return f"there is no command `module` on this node to load {', '.join(modules)}: install Lmod or leave them out"
    if modules and exit_code == NO_MODULE:
        return f"`module load {' '.join(modules)}` failed: the log says why; `module avail` lists what there is"
    return None


def container() -> str | None:
    """The container runtime of this machine, if any."""
    return next((found for name in _CONTAINERS if (found := shutil.which(name))), None)


def problems(environment: Mapping[str, Any]) -> list[Problem]:
    """What this machine cannot give."""
    if environment.get("image") and container() is None:
        message = "the local engine runs images with Apptainer, which is not on this machine: install it, or use venv"
        return [Problem("environment.image", message)]
    return []
