"""What a Slurm site could never run, and which of sbatch's options are not a user's to set. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.base.errors import Problem
from penstock.base.quantities import format_memory
from penstock.engines import launchers
from penstock.engines.slurm.script import option
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.spec import JobNeeds, NodeOffer

_SPEC = {
    "nodes": "nodes",
    "ntasks": "procs",
    "ntasks-per-node": "procs",
    "cpus-per-task": "resources.cpus",
    "mem": "resources.memory",
    "mem-per-cpu": "resources.memory",
    "mem-per-gpu": "resources.memory",
    "gpus": "resources.gpus",
    "gpus-per-node": "resources.gpus",
    "gpus-per-task": "resources.gpus",
    "gres": "resources.gpus",
    "time": "time_limit",
    "array": "array",
    "dependency": "depends_on",
    "export": "env",
    "chdir": "workdir",
}
_OURS = frozenset(
    {
        "job-name", "output", "error", "input", "open-mode", "parsable", "wrap", "wait", "test-only", "quiet", "verbose",
        "signal", "uid", "gid", "export-file", "get-user-env", "nodelist", "nodefile", "hold", "batch", "usage", "help",
        "version", "clusters", "bb", "bbf", "kill-on-invalid-dep", "ignore-pbs", "no-requeue", "comment", "cluster-constraint",
    }
)  # fmt: skip


def problems(needs: JobNeeds, nodes: Sequence[NodeOffer], config: SlurmConfig) -> list[Problem]:
    """Every reason; of nodes only where any are known."""
    found = list(_options(needs.options))
    if needs.launcher not in launchers.LAUNCHERS:
        found.append(Problem("launcher", f"{needs.launcher!r} is none of {', '.join(launchers.LAUNCHERS)}"))
    if nodes and (needs.least or needs.nodes) > len(nodes):
        message = f"{needs.least or needs.nodes} nodes are asked for and {config.name} has {len(nodes)}"
        found.append(Problem("nodes", message))
    if needs.gpu_milli:
        found.append(
            Problem("resources.gpus", "Slurm gives whole GPUs here: ask for 1, or use an engine with GPU shares")
        )
    if needs.mig:
        found.append(
            Problem(
                "resources.mig", "MIG slices of a Slurm site are GPU models of their own there: name one as the model"
            )
        )
    found += _gpus(needs, nodes, config)
    if needs.memory and nodes and needs.memory > (most := max(node.memory for node in nodes)):
        asked, has = format_memory(needs.memory), format_memory(most)
        message = f"{asked} a node are asked for; no node in {config.name} has more than {has}"
        found.append(Problem("resources.memory", message))
    return found


def _gpus(needs: JobNeeds, nodes: Sequence[NodeOffer], config: SlurmConfig) -> Iterator[Problem]:
    there = {gpu.model for node in nodes for gpu in node.gpus}
    if not needs.gpus or not nodes:
        return
    fitting = set(needs.gpu_models) & there if needs.gpu_models else there
    if not fitting:
        asked = f"of model {' or '.join(needs.gpu_models)} " if needs.gpu_models else ""
        has = f"it has {', '.join(sorted(there))}" if there else "it has none"
        yield Problem("resources.gpus", f"no GPU {asked}is in {config.name}: {has}")
    elif len(fitting) > 1 and needs.gpu_models:
        yield Problem(
            "resources.gpu_models",
            f"a Slurm job has GPUs of one model: name one of {', '.join(sorted(fitting))}, or none for any",
        )
    elif not any(sum(gpu.model in fitting for gpu in node.gpus) >= needs.gpus for node in nodes):
        most = max(sum(gpu.model in fitting for gpu in node.gpus) for node in nodes)
        yield Problem(
            "resources.gpus", f"{needs.gpus} GPUs a node are asked for; no node in {config.name} has more than {most}"
        )


def _options(options: Mapping[str, Any]) -> Iterator[Problem]:
    for name, value in options.items():
        known = option(name)
        path = f"engine_options.{name}"
        if known in _SPEC:
            yield Problem(path, f"say it in the job itself: {_SPEC[known]}")
        elif known in _OURS:
            yield Problem(path, f"sbatch's --{known} is Penstock's own to set")
        elif not known or not known.replace("-", "").isalnum() or not known.isascii():
            yield Problem(path, "is no long option of sbatch: constraint, account, reservation, qos ...")
        elif not isinstance(value, str | int | bool):
            yield Problem(path, "takes a text, a number, or true for an option without a value")
        elif isinstance(value, str) and not value.isprintable():
            yield Problem(path, "may not have line ends or control characters")
