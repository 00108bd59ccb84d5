"""From a Launch to what is executed on each node: argument lines and variables. Pure: no file, socket or clock.

The user's command is never edited but for one convenience: a first word that ends in ``.py``, or is ``-m``, is run
with ``python3 -u``. Launchers run it through the engine's shim (``--no_python SHIM... COMMAND...``), so that every rank
has a log and an exact exit status of its own. Flags are those that torch >= 1.10, accelerate >= 0.20 and
deepspeed >= 0.9 know; what is newer goes through ``PET_*`` variables, which older versions ignore.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from dataclasses import dataclass

from penstock.engines.spec import Launch, RankGroup

LAUNCHERS = ("none", "torchrun", "accelerate", "deepspeed")
MONITOR_INTERVAL_S = 0.1  # how often a torch agent looks at its ranks: a killed rank is seen within this
RDZV_READ_TIMEOUT_S = 300  # how long a node waits for node rank 0, which may still be unpacking its snapshot
FLIGHT_PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
_TRACE_SIZE, _TRACE_FILE = "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"  # before torch 2.8
_PYTHON = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
# Programs, and modules run with ``-m``, that start ranks by themselves.
_OWN_PROGRAMS = frozenset({"torchrun", "deepspeed", "mpirun", "mpiexec", "horovodrun", "srun"})
_OWN_MODULES = frozenset(
    {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed.launcher.runner"}
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What to execute on one node, and the variables to add to the environment there (``Launch.env`` included)."""

    argv: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Size:
    """How large an attempt is, as text: its numbers, or what stands for them where only its nodes know (``Launch.least``).

    ``world_info``: DeepSpeed's description of the nodes' devices; None: it is made from the groups.
    """

    nodes: str
    world: str
    world_info: str | None = None


def size_of(launch: Launch) -> Size:
    """Of one that has a place."""
    return Size(str(len(launch.groups)), str(world_size(launch)))


def render(
    launch: Launch,
    group: RankGroup,
    *,
    rdzv_host: str,
    rdzv_port: int,
    shim: tuple[str, ...] | None,
    size: Size | None = None,
) -> Rendered:
    """One node's process: the launcher, or (``none``) the command itself, of which ``processes_per_node`` are started.

    With launcher ``none`` the shim stands before the command too, and the engine adds ``worker_env`` for each process.
    ``rdzv_host`` is node rank 0 as every node reaches it (127.0.0.1 when all run on one machine).
    """
    size = size or size_of(launch)
    command = (*(shim or ()), *user_argv(launch.command))
    env = node_env(launch, group, rdzv_host=rdzv_host, rdzv_port=rdzv_port, size=size)
    match effective_launcher(launch):
        case "torchrun":
            argv, command = _torchrun(launch, group, rdzv_host, rdzv_port, size), _past_macros(command)
        case "accelerate":
            argv, command = _accelerate(launch, group, rdzv_host, rdzv_port, size), _past_macros(command)
        case "deepspeed":
            argv = _deepspeed(launch, group, rdzv_host, rdzv_port, size)
            env["LOCAL_WORLD_SIZE"] = str(launch.procs)  # its own name for this is LOCAL_SIZE
        case _:
            argv = ()
    return Rendered((*argv, *command), env)


def effective_launcher(launch: Launch) -> str:
    """The launch's launcher, but ``none`` where the command brings one of its own (``torchrun train.py``)."""
    return "none" if brings_launcher(launch.command) else launch.launcher


def processes_per_node(launch: Launch) -> int:
    """How many processes the engine itself starts on a node: ``procs`` only when nothing else starts the ranks."""
    return launch.procs if launch.launcher == "none" and not brings_launcher(launch.command) else 1


def brings_launcher(command: tuple[str, ...]) -> bool:
    """Whether the command starts ranks by itself; the node's ``PET_*`` then fill what its flags leave open."""
    program = posixpath.basename(command[0]) if command else ""
    if program in _OWN_PROGRAMS or (program == "accelerate" and command[1:2] == ("launch",)):
        return True
    if program != "-m" and not _PYTHON.fullmatch(program):
        return False
    words = iter(command if program == "-m" else command[1:])
    for word in words:
        if word == "-m":
            return next(words, "") in _OWN_MODULES
        if not word.startswith("-"):
            return False
    return False


def user_argv(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command as executed: ``train.py ...`` and ``-m module ...`` get an interpreter, all else stays as it is."""
    if command and (command[0].endswith(".py") or command[0] == "-m"):
        return ("python3", "-u", *command)
    return command


def world_size(launch: Launch) -> int:
    return launch.procs * len(launch.groups)


def checkpoint_dir(launch: Launch) -> str:
    return posixpath.join(launch.job_dir, "checkpoints")


def hostfile_path(launch: Launch) -> str:
    """Where the engine writes ``hostfile(launch)`` before it starts anything."""
    return posixpath.join(launch.run_dir, "hostfile")


def hostfile(launch: Launch) -> str:
    """The attempt's nodes in the form that DeepSpeed and Open MPI read: ``NODE slots=N``, in order of node rank."""
    return "".join(f"{group.node} slots={launch.procs}\n" for group in _by_node_rank(launch))


def device_env(group: RankGroup) -> dict[str, str]:
    """What shows a node's share of its GPUs, and no other; for engines that hand out devices themselves.

    A share of one GPU is bookkeeping: whoever shares it sees all of it, but where NVIDIA's MPS runs, which reads the percentage.
    """
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(group.gpus)}
    if group.gpu_milli:
        shown["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{group.gpu_milli / 10:g}"
    return shown


def node_env(
    launch: Launch,
    group: RankGroup,
    *,
    rdzv_host: str,
    rdzv_port: int,
    resume: bool | None = None,
    size: Size | None = None,
) -> dict[str, str]:
    """Node-level variables, with the job's own: these win over PYTHONUNBUFFERED and OMP_NUM_THREADS, not over the rest.

    ``resume``: whether the checkpoint folder holds anything; None means "if this is not the first attempt".
    The engine adds PENSTOCK_REPORT_FD for every process that it starts.
    """
    size = size or size_of(launch)
    endpoint = _endpoint(rdzv_host, rdzv_port)
    checkpoints = checkpoint_dir(launch)
    defaults = {
        "PYTHONUNBUFFERED": "1",  # a log that is followed live
        "OMP_NUM_THREADS": str(max(1, int(group.cpus // max(1, launch.procs)))),
    }
    contract = {
        "PENSTOCK_JOB_ID": launch.job_id,
        "PENSTOCK_JOB_NAME": launch.job_name,
        "PENSTOCK_PROJECT": launch.project,
        "PENSTOCK_ATTEMPT": str(launch.attempt),
        "PENSTOCK_NNODES": size.nodes,
        "PENSTOCK_NODE_RANK": str(group.node_rank),
        "PENSTOCK_NPROC": str(launch.procs),
        "PENSTOCK_NODE_NAME": group.node,
        "PENSTOCK_RDZV_ENDPOINT": endpoint,
        "PENSTOCK_CKPT_DIR": checkpoints,
        "PENSTOCK_RESUME_FROM": checkpoints if (launch.attempt > 1 if resume is None else resume) else "",
        "PENSTOCK_HOSTFILE": hostfile_path(launch),
        "MASTER_ADDR": rdzv_host,
        "MASTER_PORT": str(rdzv_port),
        "NODE_RANK": str(group.node_rank),
    }
    return (
        defaults | flight_env(launch) | dict(launch.env) | contract | _pet_env(launch, group, rdzv_host, endpoint, size)
    )


def flight_dir(launch: Launch) -> str:
    """Where ranks leave what their Flight Recorders hold."""
    return f"{launch.job_dir}/flight"


def flight_env(launch: Launch) -> dict[str, str]:
    """torch's Flight Recorder on, its dumps into the job's folder, and a pipe by which a dump is asked for: of jobs of several
    ranks, and only what their own ``env`` says nothing about. By the names of torch >= 2.8, for older ones make newer ones warn.
    """
    if world_size(launch) == 1 and not brings_launcher(launch.command):
        return {}
    begin = f"{flight_dir(launch)}/{launch.attempt}-"
    found = {} if _TRACE_SIZE in launch.env else {"TORCH_FR_BUFFER_SIZE": "2000"}
    found |= {} if _TRACE_FILE in launch.env else {"TORCH_FR_DUMP_TEMP_FILE": begin}
    found |= {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1", FLIGHT_PIPE: begin}
    return {name: value for name, value in found.items() if name not in launch.env}


def worker_env(
    launch: Launch, group: RankGroup, local_rank: int, *, rdzv_host: str, rdzv_port: int, size: Size | None = None
) -> dict[str, str]:
    """What torchrun would tell a rank (torch ``local_elastic_agent.py``), for processes that the engine starts itself.

    Empty for a world of one: a script that sees RANK would set up a process group that it does not need.
    """
    if world_size(launch) == 1 or processes_per_node(launch) != launch.procs:
        return {}
    size = size or size_of(launch)
    rank = group.node_rank * launch.procs + local_rank
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": size.world,
        "LOCAL_WORLD_SIZE": str(launch.procs),
        "GROUP_RANK": str(group.node_rank),
        "GROUP_WORLD_SIZE": size.nodes,
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": size.world,
        "ROLE_NAME": "default",
        "MASTER_ADDR": rdzv_host,
        "MASTER_PORT": str(rdzv_port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": launch.attempt_id,
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # no agent holds a store here: rank 0 opens it
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }


def _by_node_rank(launch: Launch) -> list[RankGroup]:
    return sorted(launch.groups, key=lambda group: group.node_rank)


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _interpreter(command: tuple[str, ...]) -> str:
    """The Python that the user names, since its packages hold the launcher; else the environment's first."""
    return command[0] if command and _PYTHON.fullmatch(command[0]) else "python3"


def _past_macros(command: tuple[str, ...]) -> tuple[str, ...]:
    """torch's agent puts every argument of a rank through ``string.Template`` (for ``${local_rank}``): undone here."""
    return (*command[:1], *(word.replace("$", "$$") for word in command[1:]))


def _rdzv_conf(group: RankGroup) -> str:
    """Node rank 0 hosts the rendezvous: said outright, since on one machine every node would think that it should."""
    return f"is_host={int(group.node_rank == 0)},read_timeout={RDZV_READ_TIMEOUT_S}"


def _pet_env(launch: Launch, group: RankGroup, rdzv_host: str, endpoint: str, size: Size) -> dict[str, str]:
    """torchrun reads ``PET_<FLAG>`` where a flag is not given (torch ``argparse_util.py``)."""
    env = {
        "PET_NNODES": size.nodes,
        "PET_NODE_RANK": str(group.node_rank),
        "PET_NPROC_PER_NODE": str(launch.procs),
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": endpoint,
        "PET_RDZV_ID": launch.attempt_id,
        "PET_RDZV_CONF": _rdzv_conf(group),
        "PET_MAX_RESTARTS": str(launch.restarts_left),
        "PET_MONITOR_INTERVAL": str(MONITOR_INTERVAL_S),
        # A shared store keeps the keys of the ranks that died, and restarted ranks meet them: they hang in most restarts
        # (pytorch/pytorch#135712; seen with torch 2.13). Without sharing, each round has a new store on a new port.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PET_SHUTDOWN_TIMEOUT": str(max(1, int(launch.grace_s))),  # the agent must not kill before the grace is over
    }
    if _LOOPBACK.fullmatch(rdzv_host):
        env["PET_LOCAL_ADDR"] = rdzv_host  # otherwise the host's name is looked up, which may lead nowhere
    return env


def _torchrun(launch: Launch, group: RankGroup, rdzv_host: str, rdzv_port: int, size: Size) -> tuple[str, ...]:
    return (
        _interpreter(launch.command),
        "-m",
        "torch.distributed.run",
        f"--nnodes={size.nodes}",
        f"--nproc_per_node={launch.procs}",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={_endpoint(rdzv_host, rdzv_port)}",
        f"--rdzv_id={launch.attempt_id}",
        f"--rdzv_conf={_rdzv_conf(group)}",
        f"--max_restarts={launch.restarts_left}",
        f"--monitor_interval={MONITOR_INTERVAL_S}",
        "--no_python",
    )


def _accelerate(launch: Launch, group: RankGroup, rdzv_host: str, rdzv_port: int, size: Size) -> tuple[str, ...]:
    many = (
        # "--multi_gpu" is accelerate's name for "through torch's elastic agent", with and without GPUs.
        "--multi_gpu",
        "--rdzv_backend=c10d",
        f"--rdzv_conf={_rdzv_conf(group)}",
        f"--max_restarts={launch.restarts_left}",
        f"--monitor_interval={MONITOR_INTERVAL_S}",
    )
    return (
        _interpreter(launch.command),
        "-m",
        "accelerate.commands.launch",
        f"--num_processes={size.world}",
        f"--num_machines={size.nodes}",
        f"--machine_rank={group.node_rank}",
        f"--main_process_ip={rdzv_host}",
        f"--main_process_port={rdzv_port}",
        *(many if world_size(launch) > 1 else ()),
        "--no_python",
    )


def _deepspeed(launch: Launch, group: RankGroup, rdzv_host: str, rdzv_port: int, size: Size) -> tuple[str, ...]:
    """What ``deepspeed --no_ssh`` starts on each node; started directly, it needs no hostfile and no GPU probe.

    It sets CUDA_VISIBLE_DEVICES to the device ids of its world description, one a rank; where ranks and GPUs are not
    as many, ``env`` puts back what the job was given.
    """
    paired = len(group.gpus) == launch.procs
    world = {
        str(other.node_rank): list(group.gpus) if paired and other == group else list(range(launch.procs))
        for other in _by_node_rank(launch)
    }
    described = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return (
        _interpreter(launch.command),
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={described if size.world_info is None else size.world_info}",
        f"--node_rank={group.node_rank}",
        f"--master_addr={rdzv_host}",
        f"--master_port={rdzv_port}",
        "--no_python",
        "--no_local_rank",
        *(() if paired else ("env", f"CUDA_VISIBLE_DEVICES={','.join(group.gpus)}")),
    )
