"""From a Launch to the batch script that runs it, and sbatch's options. Pure.

The fixed part is ``batch.sh``, handed in as text. What is the job's own follows as functions of shell words, each quoted by
``shlex``: a text never becomes shell but as one quoted word. What only the node knows (its name, the rendezvous) is rendered
as a mark with NUL in it, which no word of a user's can have, and becomes a shell variable there.
"""

from __future__ import annotations

import base64
import json
import math
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.engines import launchers
from penstock.engines.launchers import Size
from penstock.engines.local import environment
from penstock.engines.slurm.spec import SlurmConfig, Submission, job_name
from penstock.engines.spec import Launch, RankGroup

_MARK = re.compile("\0(\\w+)\0")
_ONLY_OF_SEVERAL = re.compile(r"^# -- several: .*?(?=^# -- )", re.MULTILINE | re.DOTALL)
_MARGIN_S = 60.0  # between the end of a job's grace and Slurm's own limit, which is the last resort
_REPORT_S = 5
# What a shell keeps for itself, or would stumble over: set by `env` in the process that becomes the rank.
_AWKWARD = re.compile(
    r"p_.*|BASH.*|DIRSTACK|E?UID|FUNCNAME|GROUPS|IFS|LINENO|OPTARG|OPTERR|OPTIND|OLDPWD|PATH|PPID|PS\d|PWD|RANDOM|SECONDS"
    r"|SHELLOPTS|ENV|LD_.*|.*[^A-Za-z0-9_].*|[0-9].*|",
    re.DOTALL,
)
_SHIM = """\
p_pid= p_r=${RANK:-0} p_n=0
trap '[ -z "$p_pid" ] || kill -TERM -"$p_pid" 2>/dev/null || kill -TERM "$p_pid"' TERM INT HUP
trap : USR1 USR2
p_run=$1 p_sid=$2 p_t=0; shift 2
if [ -f "$p_run/ranks/$p_r" ]; then # the launchers of several nodes do not count alike
    while read -r p_c p_k; do [ "$p_c" != + ] || p_n=$((p_n + 1)); done <"$p_run/ranks/$p_r"
fi
echo + >>"$p_run/ranks/$p_r"
if [ "$p_r" = 0 ] && [ "$p_n" != 0 ]; then
    [ ! -f "$p_run/restarts" ] || p_t=$(wc -l <"$p_run/restarts")
    echo "$((p_t + 1)) ${SLURM_RESTART_COUNT:-0} $p_n $(/bin/date +%s.%N || date +%s.%N)" >>"$p_run/restarts"
fi
( trap - TERM INT HUP USR1 USR2
exec 3>>"$p_run/progress/$p_r"
export PENSTOCK_REPORT_FD=3
exec ${p_sid:+"$p_sid"} "$@" </dev/null >>"$p_run/logs/$p_r.out" 2>&1 ) &
p_pid=$!
while :; do wait "$p_pid" 2>/dev/null; p_s=$?; kill -0 "$p_pid" 2>/dev/null || break; done
if [ "$p_s" -gt 128 ]; then wait "$p_pid" 2>/dev/null; p_c=$?; [ "$p_c" = 127 ] || p_s=$p_c; fi
kill -KILL -"$p_pid" 2>/dev/null
if [ "$p_s" -gt 128 ] && [ "$p_s" -le 192 ]; then p_c=- p_k=$((p_s - 128)); else p_c=$p_s p_k=0; fi
echo "$SLURMD_NODENAME $p_c $p_k $(/bin/date +%s.%N || date +%s.%N) $p_n" \
    "$(($(wc -c <"$p_run/logs/$p_r.out")))" "$(($(wc -c <"$p_run/progress/$p_r")))" >>"$p_run/ranks/$p_r"
trap - TERM INT HUP USR1 USR2
[ "$p_k" = 0 ] || kill -"$p_k" $$
exit "$p_s"
"""


# DeepSpeed's description of the nodes' devices, where only the nodes know how many they are.
_WORLD_INFO = """\
p_world_info=$(p_one=0
while [ "$p_one" -lt "$p_nodes" ]; do
    [ "$p_one" = 0 ] && printf '{' || printf ', '
    printf '"%s": %s' "$p_one" DEVICES
    p_one=$((p_one + 1))
done | { cat; printf '}'; } | base64 -w 0 | tr '+/' '-_')
"""


class _Mark(int):
    """A number that is known on the node."""

    def __str__(self) -> str:
        return _mark("port")

    def __format__(self, _spec: str) -> str:
        return _mark("port")


def _mark(name: str) -> str:
    return f"\0{name}\0"


def word(text: str) -> str:
    """One shell word: ``text`` quoted, its marks as variables."""
    parts = _MARK.split(text)
    shown = "".join(
        (f'"${{p_{part}}}"' if odd else shlex.quote(part))
        for index, part in enumerate(parts)
        if part
        for odd in (index % 2,)
    )
    return shown or "''"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt's files lie on the cluster."""

    run: str
    job: str

    @property
    def snapshot(self) -> str:
        return f"{self.run}/snapshot.tgz"


def place(folder: str, launch: Launch) -> Place:
    return Place(posixpath.join(folder, launch.attempt_id), posixpath.join(folder, launch.job_id))


def text(
    launches: Sequence[Launch],
    config: SlurmConfig,
    folder: str,
    fixed: str,
    *,
    url: str | None = None,
    carried: bytes | None = None,
) -> bytes:
    """The batch script of one attempt, or of tasks of one array that ``alike`` puts together. ``carried``: their snapshot."""
    first = launches[0]
    snapshot = place(folder, first).snapshot  # of them all
    values = [_values(launch, config, folder, snapshot) for launch in launches]
    shared = _shared(launches, values)
    lines = ["p_values() {"]
    if len(launches) > 1:
        lines += ["p_index=$SLURM_ARRAY_TASK_ID", "case $p_index in"]
        for launch, told in zip(launches, values, strict=True):
            index = launch.array[1] if launch.array else 0
            own = [f"p_{name}={word(value)}" for name, value in told.items() if name not in shared]
            lines.append(f"{index}) {' '.join(own) or ':'} ;;")
        lines += ["*) exit 95 ;;", "esac"]
    lines += [
        *(f"p_{name}={word(value)}" for name, value in shared.items()),
        "}",
        "p_prepare_environment() {",
        *_environment(first),
        "}",
    ]
    lines += ["p_export() {", *_exports(first, url), "}", "p_command() {", *_command(first), "}"]
    if carried is not None:
        lines += [
            "p_snapshot_bytes() { base64 -d <<'P_END'",
            base64.encodebytes(carried).decode().rstrip(),
            "P_END",
            "}",
        ]
    functions = _ONLY_OF_SEVERAL.sub("", fixed) if alone(first) else fixed
    body = "\n".join(
        ("#!/bin/sh", functions.rstrip(), "", "# -- this job's own", "", *lines, 'p_main "$@"; exit $?', "")
    )
    return body.encode("utf-8", "surrogateescape")


def alone(launch: Launch) -> bool:
    """Whether the batch script has one process to watch, on its own node."""
    single = len(launch.groups) == 1 and launchers.processes_per_node(launch) == 1
    return single and launchers.effective_launcher(launch) == "none"


def folders(launches: Sequence[Launch], home: str) -> list[str]:
    """Those of the jobs and attempts that the batch script needs (p_make_folders); below ``home``, where that is not empty."""
    found = list[str]()
    for launch in launches:
        where = place(home, launch)
        found += [f"{where.job}/checkpoints", f"{where.job}/home"]
        work = [] if launch.snapshot or launch.workdir else ["work"]
        found += [f"{where.run}/{name}" for name in ("logs", "progress", *work, "ranks")]
    return found


def alike(launch: Launch) -> str:
    """What tasks of one array must have in common to be one submission; the rest is told by index."""
    shared = replace(launch, attempt_id="", job_id="", job_name="", run_dir="", job_dir="", env={}, array=None)
    return repr((launch.array[0] if launch.array else launch.attempt_id, shared, sorted(launch.env)))


def _values(launch: Launch, config: SlurmConfig, folder: str, snapshot: str) -> dict[str, str]:
    """Shell variables of the job's own, without their p_; what tells tasks of an array apart is in few of them."""
    where = Place(posixpath.join(folder, _mark("attempt")), posixpath.join(folder, _mark("job")))
    effective = launchers.effective_launcher(launch)
    cwd = _mark("run") + "/work" if launch.snapshot or not launch.workdir else launch.workdir
    told: dict[str, object] = {
        "job": launch.job_id,
        "job_name": launch.job_name,
        "attempt": f"{_mark('job')}.{launch.attempt}",
        "run": where.run,
        "dir": where.job,
        "cwd": cwd,
        "snapshot": snapshot if launch.snapshot else "",
        "prefix": config.node_prefix,
        "nodes": len(launch.groups),
        "least": launch.least or "",
        "procs": launch.procs,
        "mains": launchers.processes_per_node(launch),
        "world": launchers.world_size(launch),
        "shimmed": "1" if effective != "none" else "",
        "alone": "1" if alone(launch) else "",
        "grace": f"{launch.grace_s:g}",
        "reserve": _reserve(launch),
        "limit": "" if launch.time_limit_s is None else f"{launch.time_limit_s:g}",
        "attempt_resumes": "1" if launch.attempt > 1 else "",
        "shared": "1" if config.shared else "",
    }
    told |= {f"env_{number}": value for number, (_, value) in enumerate(sorted(launch.env.items()))}
    return {name: str(value) for name, value in told.items()}


def _shared(launches: Sequence[Launch], values: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all have in common, word for word or but for the index of each at its end, as in a task's name."""
    found = {}
    for name in values[0]:
        ways = {told[name] for told in values}
        if len(ways) > 1:
            ways = {_by_index(launch, told[name]) for launch, told in zip(launches, values, strict=True)}
        if len(ways) == 1:
            found[name] = ways.pop()
    return found


def _by_index(launch: Launch, value: str) -> str:
    index = str(launch.array[1]) if launch.array else ""
    return value.removesuffix(index) + _mark("index") if index and value.endswith(index) else value


def _environment(launch: Launch) -> list[str]:
    """Variables that say where the job's software is, and its PATH, by which its program is found."""
    wanted = launch.environment
    lines = ["p_needs="]
    path = _mark("path")
    if venv := wanted.get("venv"):
        path = f"{venv}/bin:{path}"
        lines += [f"export VIRTUAL_ENV={word(str(venv))}", f"p_needs={word(f'{venv}/bin/python')}"]
    elif conda := wanted.get("conda"):
        path = f"{_mark('conda')}/bin:{path}"
        lines += [f"p_conda_folder {word(str(conda))}", 'export CONDA_PREFIX="$p_conda" CONDA_DEFAULT_ENV="$p_conda"']
        lines += ['p_needs="$p_conda/bin/python"']
    elif wanted.get("image"):
        lines += ["p_container=$(command -v apptainer || command -v singularity) ||"]
        lines += ["    p_refused EnvironmentMissing 'images run with Apptainer, which is not on this node'"]
    names = sorted(launch.env)
    if "PATH" in launch.env:
        path = _mark(f"env_{names.index('PATH')}")
    return [*lines, f"export PATH={word(path)}"]


def _groups(launch: Launch) -> list[RankGroup]:
    return [replace(group, node=_mark("prefix") + _mark("node"), gpus=()) for group in launch.groups]


def _marked(launch: Launch) -> Launch:
    """Its names as variables, so that tasks of an array share one text."""
    env = {name: _mark(f"env_{number}") for number, name in enumerate(sorted(launch.env))}
    return replace(
        launch,
        attempt_id=_mark("attempt"),
        job_id=_mark("job"),
        job_name=_mark("job_name"),
        run_dir=_mark("run"),
        job_dir=_mark("dir"),
        env=env,
    )


# A rank of torch that cannot make its pipe fails: where the file system takes none, it is not told to.
_FLIGHT = (
    'p_one=$p_dir/flight/.$p_node_rank.${p_rank:-0}; mkdir -p "$p_dir/flight" 2>/dev/null; '
    f'mkfifo "$p_one" 2>/dev/null && rm -f "$p_one" || unset {launchers.FLIGHT_PIPE}'
)


def _exports(launch: Launch, url: str | None) -> list[str]:
    """All variables of the process that becomes the rank, by node rank and rank where they differ."""
    begin = ["p_node=$SLURMD_NODENAME", 'p_resume_from=; [ -z "$p_resume" ] || p_resume_from=$p_dir/checkpoints']
    return [*begin, *_by_size(launch, lambda one, size: _variables(one, url, size))]


def _by_size(launch: Launch, rendered: Callable[[Launch, Size | None], list[str]]) -> list[str]:
    """Of one that takes fewer nodes: how many it has is known there; on a single one ranks are started in other ways."""
    if not launch.least:
        return rendered(launch, None)
    lines = rendered(launch, Size(_mark("nodes"), _mark("world"), _mark("world_info")))
    if launch.least > 1:
        return lines
    alone_ = rendered(replace(launch, groups=launch.groups[:1]), None)
    return ['if [ "$p_nodes" = 1 ]; then', *alone_, "else", *lines, "fi"]


def _variables(launch: Launch, url: str | None, size: Size | None) -> list[str]:
    marked, groups = _marked(launch), _groups(launch)
    told: dict[str, Any] = {"rdzv_host": _mark("host"), "rdzv_port": _Mark(), "size": size}
    rendered = [_node_variables(marked, group, url, **told) for group in groups]
    lines = _cases("p_node_rank", [(group.node_rank, env) for group, env in zip(groups, rendered, strict=True)])
    if launchers.processes_per_node(launch) == launch.procs:
        workers = [
            (group.node_rank * launch.procs + local, launchers.worker_env(marked, group, local, **told))
            for group in groups
            for local in range(launch.procs)
        ]
        lines += _cases("p_rank", workers)
    if launchers.FLIGHT_PIPE in launchers.flight_env(launch):
        lines.append(_FLIGHT)
    return lines


def _node_variables(launch: Launch, group: RankGroup, url: str | None, **told: Any) -> dict[str, str]:
    env = launchers.node_env(launch, group, resume=True, **told)
    env["PENSTOCK_RESUME_FROM"] = _mark("resume_from")
    env["PENSTOCK_ATTEMPT_ID"] = launch.attempt_id
    if not launch.gpus_per_node:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if url:
        env["PENSTOCK_URL"] = url
    if launchers.effective_launcher(launch) == "deepspeed":
        env["LOCAL_WORLD_SIZE"] = str(launch.procs)
    env.pop("PATH", None)
    return env


def _cases(variable: str, rendered: Sequence[tuple[int, Mapping[str, str]]]) -> list[str]:
    """What all have in common, then a case for each whose rest differs."""
    first = rendered[0][1]
    common = {name: value for name, value in first.items() if all(env.get(name) == value for _, env in rendered)}
    lines = _assign(common)
    if len(common) == len(first) and all(len(env) == len(common) for _, env in rendered):
        return lines
    lines.append(f'case "${variable}" in')
    for number, env in rendered:
        lines += [
            f"{number})",
            *_assign({name: value for name, value in env.items() if common.get(name) != value}),
            ";;",
        ]
    return [*lines, "esac"]


def _assign(env: Mapping[str, str]) -> list[str]:
    return [f"export {name}={word(value)}" for name, value in env.items() if not _AWKWARD.fullmatch(name)]


def _command(launch: Launch) -> list[str]:
    """``p_exec WORDS...``, by node rank where the launcher's flags differ."""
    shimmed = launchers.effective_launcher(launch) != "none"
    begin = ["p_sid=; [ ! -x /usr/bin/setsid ] || p_sid=/usr/bin/setsid"] if shimmed else []
    if launch.least and launchers.effective_launcher(launch) == "deepspeed":
        devices = shlex.quote(json.dumps(list(range(launch.procs))))
        begin += _WORLD_INFO.replace("DEVICES", devices).splitlines()
    return [*begin, *_by_size(launch, _lines)]


def _lines(launch: Launch, size: Size | None) -> list[str]:
    marked, shimmed = _marked(launch), launchers.effective_launcher(launch) != "none"
    shim = ("/bin/sh", "-c", _SHIM, "penstock-rank", _mark("run"), _mark("sid")) if shimmed else None
    cases: dict[tuple[str, ...], list[int]] = {}
    for group in _groups(launch):
        argv = launchers.render(marked, group, rdzv_host=_mark("host"), rdzv_port=_Mark(), shim=shim, size=size).argv
        words = tuple(_shown_devices(launch, argv)) if launchers.effective_launcher(launch) == "deepspeed" else argv
        cases.setdefault((*_wrap(launch), *words), []).append(group.node_rank)
    lines = ['case "$p_node_rank" in'] if len(cases) > 1 else []
    for argv, numbers in cases.items():
        lines += [f"{'|'.join(map(str, numbers))})"] if len(cases) > 1 else []
        lines += [" ".join(("p_exec", *map(word, (*_awkward(launch, marked), *argv))))]
        lines += [";;"] if len(cases) > 1 else []
    return [*lines, "esac"] if len(cases) > 1 else lines


def _awkward(launch: Launch, marked: Launch) -> tuple[str, ...]:
    """Variables that only `env` can set, before the command; PATH is set already."""
    found = [f"{name}={marked.env[name]}" for name in launch.env if name != "PATH" and _AWKWARD.fullmatch(name)]
    return ("/usr/bin/env", *found) if found else ()


def _shown_devices(launch: Launch, argv: Iterable[str]) -> Iterable[str]:
    """DeepSpeed numbers devices by itself; ranks see those that Slurm gave, as with every launcher."""
    shown = _mark("devices") if launch.gpus_per_node else ""
    return (f"CUDA_VISIBLE_DEVICES={shown}" if argument == "CUDA_VISIBLE_DEVICES=" else argument for argument in argv)


def _wrap(launch: Launch) -> tuple[str, ...]:
    """What goes before the command: modules, then a container."""
    wrap: tuple[str, ...] = ()
    if image := launch.environment.get("image"):
        folders = (_mark("dir"), _mark("run"), _mark("cwd"))
        binds = [part for folder in folders for part in ("--bind", folder)]
        wrap = (_mark("container"), "exec", "--nv", *binds, str(image))
    if modules := launch.environment.get("modules"):
        wrap = (*environment.load_modules(tuple(modules)), *wrap)
    return wrap


# -- sbatch's options


def submission(
    launches: Sequence[Launch], config: SlurmConfig, script: bytes, *, models: Sequence[str] = ()
) -> Submission:
    """What sbatch is told. ``models``: of the launch's GPU models those that the site has."""
    first = launches[0]
    array = ",".join(str(launch.array[1]) for launch in launches if launch.array) if len(launches) > 1 else None
    told = options(first, config, name_of(launches), models)
    return Submission(script, told, first.unix_user, array=array)


def name_of(launches: Sequence[Launch]) -> str:
    """Of the Slurm job: tasks submitted together are found again by the first one's attempt, and their index."""
    return job_name(launches[0].job_name, launches[0].attempt_id)


def options(launch: Launch, config: SlurmConfig, name: str, models: Sequence[str] = ()) -> dict[str, str | int | bool]:
    """The house's own, under the site's, under the user's: validate has refused what must not be changed."""
    group = launch.groups[0]
    found: dict[str, str | int | bool] = {
        "nodes": _nodes(launch),
        "cpus-per-task": max(1, math.ceil(group.cpus)),
        "no-requeue": True,
        "open-mode": "append",
        "comment": f"penstock: {launch.project}/{launch.job_name}, attempt {launch.attempt}, by {launch.user}",
    }
    if not launch.least:  # with it sbatch would count the least nodes' tasks, and Slurm give no more nodes than tasks
        found["ntasks-per-node"] = 1
    if group.memory:
        found["mem"] = f"{max(1, math.ceil(group.memory / (1 << 20)))}M"
    if launch.gpus_per_node:
        model = f"{models[0]}:" if models else ""
        found["gres"] = f"gpu:{model}{launch.gpus_per_node}"
    if launch.time_limit_s is not None:
        found["time"] = max(1, math.ceil((launch.time_limit_s + launch.grace_s + _MARGIN_S) / 60))
    else:  # the partition's limit is told beforehand: with the same grace (p_near)
        found["signal"] = f"B:USR2@{_reserve(launch)}"
    if config.partition:
        found["partition"] = config.partition
    prefix = config.node_prefix
    named = [other.node.removeprefix(prefix) for other in launch.groups if other.node]
    if named:
        found["nodelist"] = ",".join(named)
    if launch.exclude_nodes:
        found["exclude"] = ",".join(node.removeprefix(prefix) for node in launch.exclude_nodes)
    asked = {option(key): value for key, value in (*config.options.items(), *launch.options.items())}
    if asked.pop("requeue", False):
        found.pop("no-requeue")
        found["requeue"] = True
    if "gpus-per-node" in asked or "gres" in asked:
        found.pop("gres", None)
    return found | asked | {"job-name": name, "output": "/dev/null", "chdir": "/"}


def _nodes(launch: Launch) -> str | int:
    """As many as are free when it starts, of a job that takes fewer."""
    return f"{launch.least}-{len(launch.groups)}" if launch.least else len(launch.groups)


def _reserve(launch: Launch) -> int:
    """Seconds before Slurm's limit at which it is told to end."""
    return max(1, math.ceil(launch.grace_s)) + _REPORT_S


def option(name: str) -> str:
    """``--mail_user`` as ``mail-user``."""
    return name.lstrip("-").replace("_", "-").lower()
