"""``penstock run``: a command becomes a job."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, Problem
from penstock.client.kinds import new_key
from penstock.client.snapshot import absolute, take
from penstock.client.verb import Invocation, Verb, pairs

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from penstock.base.settings import Settings
    from penstock.client.resources import Resource

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "none")
_PLAIN = (  # what goes into the spec as it stands
    "nodes",
    "min_nodes",
    "procs",
    "launcher",
    "time_limit",
    "max_restarts",
    "grace_period",
    "hang_limit",
    "on_hang",
    "on_straggler",
    "idle_timeout",
    "priority",
    "queue",
    "reservation",
    "engine",
)

_FLAGS = {
    "gpu_model": "gpus",
    "gpu_share": "gpus",
    "exclude_nodes": "exclude-node",
    "flavors": "flavor",
    "labels": "label",
    "modules": "module",
    "engine_options": "engine-option",
}  # fields whose flags have other names
_NAMED = (
    "name",
    "cpus",
    "memory",
    "gpus",
    "mig",
    "env",
    "workdir",
    "venv",
    "conda",
    "image",
    "module",
    "depends_on",
    "array",
    "label",
    "placement",
    "exclude-node",
    "flavor",
    "engine-option",
)


def configure(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", help="the job's name; default: one is made")
    add("--nodes", type=int, metavar="N", help="on how many nodes (default 1)")
    add("--min-nodes", type=int, metavar="N", help="so many nodes will do where not all are free (default: all)")
    add("--procs", type=int, metavar="N", help="ranks on each node (default 1)")
    add("--cpus", metavar="N", help="CPUs on each node: 2, 0.5, 500m (default 1)")
    add("--memory", metavar="SIZE", help="memory on each node: 512Mi, 8Gi; more of it ends the job")
    add("--gpus", metavar="N[:MODEL]", help="GPUs on each node, or 0.5 of one; of a model: 8:H100,H200")
    add("--mig", metavar="PROFILE", help="--gpus counts MIG instances of this kind: 3g.40gb (default 1)")
    add("--time-limit", metavar="TIME", help="end it after 30s, 15m, 1h30m, 2d")
    add("--max-restarts", type=int, metavar="N", help="restarts after failures, in place or anew (default 0)")
    add("--env", action="append", metavar="NAME=VALUE", help="a variable; may be repeated")
    add("--workdir", metavar="DIR", help="the work folder (default: the current one); its files are carried along")
    add("--no-snapshot", action="store_true", help="run in the work folder itself instead of in a copy of it")
    add(
        "--launcher",
        choices=LAUNCHERS,
        metavar="NAME",
        help="torchrun, accelerate, deepspeed, none; default: torchrun where there are several ranks, else none",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", metavar="DIR", help="a virtual environment (default: the active one); none for none")
    where.add_argument("--conda", metavar="NAME", help="a conda environment, by name or folder")
    where.add_argument("--image", metavar="REF", help="a container image, where the engine has them")
    add("--module", action="append", metavar="NAME", help="an environment module to load; may be repeated")
    add(
        "--depends-on",
        action="append",
        metavar="JOB[:CONDITION]",
        help="start after that job: Succeeded (default) or Finished; may be repeated",
    )
    add("--array", metavar="N[%M]", help="N tasks of this job, at the most M at a time")
    add("--interactive", action="store_true", help="a job to work in: opens a terminal; ends when idle")
    add("--idle-timeout", metavar="TIME", help="how long an interactive job may be idle")
    add("--grace-period", metavar="TIME", help="between SIGTERM and SIGKILL (default 30s)")
    _resilience(add)
    add("--priority", type=int, metavar="N", help="higher goes first (default 0)")
    add("--queue", metavar="NAME", help="the queue to wait in (default: the project's)")
    add("--reservation", metavar="NAME", help="a reservation whose nodes it may use")
    add("--placement", metavar="LEVEL[:required]", help="all nodes in one rack, or block, or as near as can be")
    add("--flavor", action="append", metavar="NAME", help="a kind of node it may have, best first; may be repeated")
    add("--exclude-node", action="append", metavar="NODE", help="a node it must not have; may be repeated")
    add("--engine", metavar="NAME", help="the engine to run on (default: the queue's, else this server's own)")
    add(
        "--engine-option",
        action="append",
        metavar="KEY[=VALUE]",
        help="passed to that engine as it is, as sbatch's constraint=a100, exclusive; may be repeated",
    )
    add("--label", action="append", metavar="NAME=VALUE", help="a label; may be repeated")
    add("--detach", action="store_true", help="do not follow it: print its name and return")
    add("--idempotency-key", metavar="KEY", help="two calls with one key make one job")


def _resilience(add: Callable[..., object]) -> None:
    add(
        "--hang-limit",
        metavar="TIME",
        help="without progress for so long it is looked into, or off (default: automatic)",
    )
    add("--on-hang", choices=("restart", "tell"), help="what follows (default restart)")
    add(
        "--on-straggler",
        choices=("avoid", "tell"),
        help="whether later attempts avoid a slow rank's node (default tell)",
    )


def run(call: Invocation, arguments: Namespace) -> int:
    if not arguments.command and not arguments.interactive:
        raise InvalidInput("no command was given", hint="Write it behind --: penstock run -- python train.py")
    spec = spec_of(arguments, call.settings)
    jobs = call.client.jobs
    if not arguments.no_snapshot:
        snapshot = take(spec["workdir"], max_bytes=call.settings.snapshot_max_bytes)
        for note in snapshot.notes:
            call.output.note(f"snapshot: {note}")
        digest = jobs.carry(snapshot)
        if digest:
            spec["snapshot"] = digest
        else:
            del spec["workdir"]  # it is empty: the job's own empty folder is as good, and surely its user's
    key = arguments.idempotency_key or new_key()
    try:
        job = jobs.create(spec, name=arguments.name, labels=pairs(arguments.label, "--label"), key=key)
    except InvalidInput as error:
        raise _in_flags(error) from error
    if not arguments.detach:
        return _followed(call, job)
    if call.output.format == "table":
        call.output.line(job.name)
        if call.output.terminal:
            call.output.note(f"follow it: penstock logs -f {job.name}    cancel it: penstock cancel {job.name}")
    else:
        call.output.document(job)
    return 0


def _in_flags(error: InvalidInput) -> InvalidInput:
    """The server's complaint, with the flags that were written in the place of the API's paths."""
    details = [Problem(_flag(problem.path), problem.message, problem.line) for problem in error.details]
    return InvalidInput(error.message, details=details, hint=error.advice)


def _flag(path: str) -> str:
    parts = path.removeprefix("body.").removeprefix("spec.").removeprefix("resources.").removeprefix("environment.")
    field = parts.partition(".")[0].partition("[")[0]
    name = _FLAGS.get(field, field)
    return f"--{name.replace('_', '-')}" if name in _PLAIN or name in _NAMED else path


def _followed(call: Invocation, job: Resource) -> int:
    """Its exit code; Ctrl-C lets go of the job, and says how to find it again."""
    try:
        from penstock.jobs.commands.follow import follow_new  # noqa: PLC0415 - `--detach` needs no threads

        return follow_new(call, job)
    except KeyboardInterrupt:
        call.output.note(
            f"\nno longer following; the job goes on. Follow it: penstock logs -f {job.name}    "
            f"cancel it: penstock cancel {job.name}"
        )
        return INTERRUPTED


def spec_of(arguments: Namespace, settings: Settings) -> dict[str, Any]:
    """The spec that the flags describe, without its snapshot; the server checks what it says."""
    spec: dict[str, Any] = {"command": arguments.command} if arguments.command else {}
    spec |= {name: value for name in _PLAIN if (value := getattr(arguments, name)) is not None}
    resources = {"cpus": arguments.cpus, "memory": arguments.memory, "mig": arguments.mig} | _gpus(arguments.gpus)
    parts = {
        "resources": {name: value for name, value in resources.items() if value is not None},
        "env": pairs(arguments.env, "--env"),
        "environment": _environment(arguments, settings),
        "depends_on": [_dependency(text) for text in arguments.depends_on or ()],
        "array": _array(arguments.array),
        "placement": _placement(arguments.placement),
        "flavors": arguments.flavor,
        "exclude_nodes": arguments.exclude_node,
        "engine_options": _options(arguments.engine_option),
        "interactive": arguments.interactive,
    }
    spec |= {name: value for name, value in parts.items() if value}
    spec["workdir"] = absolute(arguments.workdir or ".")
    return spec


def _environment(arguments: Namespace, settings: Settings) -> dict[str, Any]:
    """What the flags name, else the environment that this shell, or this program, lives in."""
    modules = {"modules": arguments.module} if arguments.module else {}
    if arguments.venv == "none":
        return modules
    if arguments.venv:
        return {"venv": absolute(arguments.venv)} | modules
    if arguments.conda:
        return {"conda": arguments.conda} | modules
    if arguments.image:
        return {"image": arguments.image} | modules
    if settings.virtual_env:
        return {"venv": settings.virtual_env} | modules
    if settings.conda_prefix:
        return {"conda": settings.conda_prefix} | modules
    return ({"venv": sys.prefix} if sys.prefix != sys.base_prefix else {}) | modules


def _gpus(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    count, _, model = text.partition(":")
    part = re.fullmatch(r"0?\.\d+", count)
    if not (count.isdigit() or part) or ":" in model or text.endswith(":"):
        raise InvalidInput(f"--gpus {text!r}: write a number, a part of one (0.5), or either and a model (2:H100)")
    models = model.split(",") if "," in model else model
    return ({"gpu_share": float(count)} if part else {"gpus": int(count)}) | ({"gpu_model": models} if model else {})


def _placement(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    level, colon, word = text.partition(":")
    if colon and word != "required":
        raise InvalidInput(f"--placement {text!r}: write rack, block or host, or rack:required")
    return {"level": level} | ({"required": True} if colon else {})


def _options(texts: list[str] | None) -> dict[str, str | bool]:
    """``constraint=a100``, or a word that stands for itself; written with or without dashes."""
    pairs_ = (text.lstrip("-").partition("=") for text in texts or ())
    return {key: value if equals else True for key, equals, value in pairs_}


def _dependency(text: str) -> dict[str, str]:
    job, colon, condition = text.partition(":")
    return {"job": job} | ({"condition": condition[:1].upper() + condition[1:]} if colon else {})


def _array(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    count, percent, most = text.partition("%")
    if not count.isdigit() or (percent and not most.isdigit()):
        raise InvalidInput(f"--array {text!r}: write N, or N%M for at the most M at a time")
    return {"count": int(count)} | ({"max_parallel": int(most)} if percent else {})


VERBS = {
    "run": Verb(
        example="""\
penstock run --procs 2 --max-restarts 3 -- python train.py --epochs 10
penstock run --detach --name prep --memory 8Gi -- ./prepare.sh
penstock run --array 100%8 --depends-on prep -- python score.py
penstock run --engine c1 --engine-option constraint=a100 -- python train.py""",
        configure=configure,
        run=run,
        takes_command=True,
        about="""\
The files of the work folder are carried along, so that editing them later changes nothing (not what .gitignore or
.penstockignore names). The log and a progress bar are shown until the job ends, and its exit code is this program's.
Ctrl-C stops following: the job goes on. With -o json or yaml the finished job is printed instead of its log.""",
    )
}
