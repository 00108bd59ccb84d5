"""Golden argument lines, and claims over all commands: what the user wrote arrives unchanged, whatever it is."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import run as torchrun
from torch.distributed.elastic.utils.api import macros

from penstock.engines.launchers import (
    LAUNCHERS,
    Rendered,
    brings_launcher,
    device_env,
    effective_launcher,
    flight_env,
    hostfile,
    node_env,
    processes_per_node,
    render,
    user_argv,
    worker_env,
)
from penstock.engines.spec import Launch, RankGroup

SHIM = ("/usr/bin/python3", "-S", "/p/rank.py", "--run-dir", "/d/j/1", "--")

# Words as nasty as execve takes them: any text without NUL, leading dashes, quotes, newlines.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        "--",
        "-m",
        "--nnodes=9",
        "--no_python",
        "-c",
        "a b",
        "'\"$(x)`",
        "line\nline",
        "é😀",
        "",
        "--rdzv_id",
        "{rank}",
        "${rank}",
    ]
)
programs = st.sampled_from(
    ["python", "python3", "/opt/env/bin/python3.12", "train.py", "./prog", "a b/c.py", "-m", "bash", "é"]
)
commands = st.tuples(programs, st.lists(words, max_size=6)).map(lambda pair: (pair[0], *pair[1]))


def launch(command: tuple[str, ...] = ("python", "train.py", "--lr", "1"), *, nodes: int = 1, **changes: Any) -> Launch:
    groups = tuple(RankGroup(f"node-{i}", i, cpus=8.0, memory=None) for i in range(nodes))
    base = Launch(
        attempt_id="01J.1", job_id="01J", job_name="digits", project="default", user="ann", attempt=1,
        run_dir="/d/jobs/01J/1", job_dir="/d/jobs/01J", groups=groups, procs=2, launcher="torchrun", command=command,
        restarts_left=3,
    )  # fmt: skip
    return replace(base, **changes)


def rendered(what: Launch, node_rank: int = 0, shim: tuple[str, ...] | None = SHIM) -> Rendered:
    group = next(group for group in what.groups if group.node_rank == node_rank)
    return render(what, group, rdzv_host="10.0.0.7", rdzv_port=4711, shim=shim)


def test_torchrun_line() -> None:
    assert rendered(launch(nodes=2), node_rank=1).argv == (
        "python", "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d",
        "--rdzv_endpoint=10.0.0.7:4711", "--rdzv_id=01J.1", "--rdzv_conf=is_host=0,read_timeout=300",
        "--max_restarts=3", "--monitor_interval=0.1", "--no_python", *SHIM, "python", "train.py", "--lr", "1",
    )  # fmt: skip


def test_accelerate_line() -> None:
    assert rendered(launch(nodes=2, launcher="accelerate")).argv == (
        "python", "-m", "accelerate.commands.launch", "--num_processes=4", "--num_machines=2", "--machine_rank=0",
        "--main_process_ip=10.0.0.7", "--main_process_port=4711", "--multi_gpu", "--rdzv_backend=c10d",
        "--rdzv_conf=is_host=1,read_timeout=300", "--max_restarts=3", "--monitor_interval=0.1", "--no_python",
        *SHIM, "python", "train.py", "--lr", "1",
    )  # fmt: skip


def test_accelerate_of_one_process_takes_its_simple_road() -> None:
    assert "--multi_gpu" not in rendered(launch(procs=1, launcher="accelerate")).argv


def test_deepspeed_line() -> None:
    what = launch(nodes=2, launcher="deepspeed")
    first, second = (replace(group, gpus=("GPU-a", "GPU-b")) for group in what.groups)
    argv = rendered(replace(what, groups=(first, second)), node_rank=1).argv
    world = argv[4].removeprefix("--world_info=")
    assert json.loads(base64.urlsafe_b64decode(world)) == {"0": [0, 1], "1": ["GPU-a", "GPU-b"]}
    assert argv[:4] == ("python", "-u", "-m", "deepspeed.launcher.launch")
    assert argv[5:] == (
        "--node_rank=1", "--master_addr=10.0.0.7", "--master_port=4711", "--no_python", "--no_local_rank",
        *SHIM, "python", "train.py", "--lr", "1",
    )  # fmt: skip


def test_deepspeed_shows_no_gpu_that_the_job_was_not_given() -> None:
    argv = rendered(launch(launcher="deepspeed")).argv
    assert argv[argv.index("env") + 1] == "CUDA_VISIBLE_DEVICES="


def test_the_launcher_is_taken_from_the_python_that_the_user_names() -> None:
    assert rendered(launch(("/opt/env/bin/python3.11", "train.py"))).argv[0] == "/opt/env/bin/python3.11"
    assert rendered(launch(("train.py",))).argv[0] == "python3"
    assert rendered(launch(("./prog",))).argv[0] == "python3"


@pytest.mark.parametrize(
    ("command", "executed"),
    [
        (("python", "-u", "train.py"), ("python", "-u", "train.py")),
        (("train.py", "--lr", "1"), ("python3", "-u", "train.py", "--lr", "1")),
        (("-m", "pkg.train"), ("python3", "-u", "-m", "pkg.train")),
        (("./prog", "-m"), ("./prog", "-m")),
    ],
)
def test_forms_of_a_command(command: tuple[str, ...], executed: tuple[str, ...]) -> None:
    assert user_argv(command) == executed


def delivered(what: Launch, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The line after the launcher: torch's agent puts a rank's arguments through string.Template."""
    if effective_launcher(what) in ("torchrun", "accelerate"):
        return tuple(macros.substitute(list(argv), "0"))
    return argv


@given(command=commands, launcher=st.sampled_from(LAUNCHERS), nodes=st.integers(1, 3), procs=st.integers(1, 4))
def test_the_users_words_arrive_unchanged(command: tuple[str, ...], launcher: str, nodes: int, procs: int) -> None:
    what = launch(command, nodes=nodes, launcher=launcher, procs=procs)
    for group in what.groups:
        argv = delivered(what, rendered(what, group.node_rank).argv)
        assert argv[len(argv) - len(command) :] == command
        assert argv[len(argv) - len(user_argv(command)) - len(SHIM) :][: len(SHIM)] == SHIM
        assert all("\0" not in word for word in argv)


@given(command=commands)
def test_torchs_own_parser_reads_the_line_as_meant(command: tuple[str, ...]) -> None:
    what = launch(command)
    args = torchrun.parse_args(list(rendered(what).argv[3:])) if effective_launcher(what) == "torchrun" else None  # type: ignore[no-untyped-call]  # torch is half typed
    if args is not None:
        assert delivered(what, (args.training_script, *args.training_script_args)) == (*SHIM, *user_argv(command))
        assert (args.nnodes, args.nproc_per_node, args.max_restarts, args.no_python) == ("1", "2", 3, True)
        assert args.rdzv_endpoint == "10.0.0.7:4711"


@given(command=commands)
def test_accelerates_own_parser_reads_the_line_as_meant(command: tuple[str, ...]) -> None:
    what = launch(command, launcher="accelerate")
    if effective_launcher(what) == "accelerate":
        args = launch_command_parser().parse_args(list(rendered(what).argv[3:]))
        assert delivered(what, (args.training_script, *args.training_script_args)) == (*SHIM, *user_argv(command))
        assert (args.num_processes, args.num_machines, args.max_restarts, args.no_python) == (2, 1, 3, True)


@pytest.mark.parametrize(
    ("command", "brings"),
    [
        (("torchrun", "train.py"), True),
        (("/env/bin/torchrun", "--nproc-per-node", "2", "train.py"), True),
        (("accelerate", "launch", "train.py"), True),
        (("accelerate", "config"), False),
        (("deepspeed", "train.py"), True),
        (("python", "-m", "torch.distributed.run", "train.py"), True),
        (("python3.11", "-u", "-m", "accelerate.commands.launch", "t.py"), True),
        (("-m", "torch.distributed.run", "t.py"), True),
        (("python", "train.py", "-m", "torch.distributed.run"), False),
        (("python", "-m", "pkg.train"), False),
        (("mpirun", "-n", "2", "./prog"), True),
        (("./torchrun.py",), False),
        ((), False),
    ],
)
def test_commands_that_bring_a_launcher(command: tuple[str, ...], brings: bool) -> None:
    assert brings_launcher(command) is brings


def test_a_command_with_its_own_launcher_is_not_wrapped_and_started_once() -> None:
    what = launch(("torchrun", "train.py"))
    assert rendered(what, shim=None).argv == ("torchrun", "train.py")
    assert processes_per_node(what) == 1
    assert worker_env(what, what.groups[0], 0, rdzv_host="h", rdzv_port=1) == {}


def test_processes_that_the_engine_starts() -> None:
    assert processes_per_node(launch(launcher="none", procs=4)) == 4
    assert processes_per_node(launch(launcher="torchrun", procs=4)) == 1


@given(nodes=st.integers(1, 5), procs=st.integers(1, 5))
def test_ranks_of_launcher_none_cover_the_world_once(nodes: int, procs: int) -> None:
    what = launch(nodes=nodes, procs=procs, launcher="none")
    envs = [
        worker_env(what, group, local, rdzv_host="h", rdzv_port=1) for group in what.groups for local in range(procs)
    ]
    if nodes * procs == 1:
        assert envs == [{}]
        return
    assert [int(env["RANK"]) for env in envs] == list(range(nodes * procs))
    for env in envs:
        assert int(env["RANK"]) == int(env["GROUP_RANK"]) * procs + int(env["LOCAL_RANK"])
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (str(nodes * procs), str(procs))
        assert (env["ROLE_RANK"], env["ROLE_WORLD_SIZE"], env["GROUP_WORLD_SIZE"]) == (
            env["RANK"], env["WORLD_SIZE"], str(nodes),
        )  # fmt: skip


def test_node_variables() -> None:
    what = launch(nodes=2, attempt=2, grace_s=7.5, env={"OMP_NUM_THREADS": "3", "PENSTOCK_ATTEMPT": "9", "X": "y"})
    env = node_env(what, what.groups[1], rdzv_host="127.0.0.1", rdzv_port=4711)
    assert {name: env[name] for name in sorted(env)} == {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4711", "NODE_RANK": "1", "OMP_NUM_THREADS": "3",
        "PENSTOCK_ATTEMPT": "2", "PENSTOCK_CKPT_DIR": "/d/jobs/01J/checkpoints",
        "PENSTOCK_HOSTFILE": "/d/jobs/01J/1/hostfile", "PENSTOCK_JOB_ID": "01J", "PENSTOCK_JOB_NAME": "digits",
        "PENSTOCK_NNODES": "2", "PENSTOCK_NODE_NAME": "node-1", "PENSTOCK_NODE_RANK": "1", "PENSTOCK_NPROC": "2",
        "PENSTOCK_PROJECT": "default", "PENSTOCK_RDZV_ENDPOINT": "127.0.0.1:4711",
        "PENSTOCK_RESUME_FROM": "/d/jobs/01J/checkpoints", "PET_LOCAL_ADDR": "127.0.0.1", "PET_MAX_RESTARTS": "3",
        "PET_MONITOR_INTERVAL": "0.1", "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_BACKEND": "c10d", "PET_RDZV_CONF": "is_host=0,read_timeout=300",
        "PET_RDZV_ENDPOINT": "127.0.0.1:4711", "PET_RDZV_ID": "01J.1", "PET_SHUTDOWN_TIMEOUT": "7",
        "PYTHONUNBUFFERED": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": "/d/jobs/01J/flight/2-", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": "/d/jobs/01J/flight/2-",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "X": "y",
    }  # fmt: skip


def test_the_flight_recorder_is_on_where_ranks_meet_and_the_user_says_nothing_else() -> None:
    assert flight_env(launch(nodes=1, procs=1, launcher="none")) == {}
    assert flight_env(launch(nodes=1, procs=1, launcher="none", command=("torchrun", "train.py")))
    assert flight_env(launch(env={"TORCH_FR_BUFFER_SIZE": "0"})).keys() == {
        "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT"
    }  # fmt: skip
    old = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "500", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/tmp/x_"}
    assert flight_env(launch(env=old)).keys() == {
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT"
    }  # fmt: skip


def test_resume_follows_what_the_engine_knows_of_the_folder() -> None:
    what = launch()
    said = [
        node_env(what, what.groups[0], rdzv_host="h", rdzv_port=1, resume=resume)["PENSTOCK_RESUME_FROM"]
        for resume in (None, True, False)
    ]
    assert said == ["", "/d/jobs/01J/checkpoints", ""]


@pytest.mark.parametrize(("cpus", "procs", "threads"), [(8, 2, "4"), (3, 2, "1"), (0.5, 1, "1"), (2, 4, "1")])
def test_threads_share_the_cpus(cpus: float, procs: int, threads: str) -> None:
    what = launch(procs=procs)
    env = node_env(what, replace(what.groups[0], cpus=cpus), rdzv_host="h", rdzv_port=1)
    assert env["OMP_NUM_THREADS"] == threads


def test_hostfile_is_in_order_of_node_rank() -> None:
    what = launch(nodes=3)
    assert hostfile(replace(what, groups=what.groups[::-1])) == "node-0 slots=2\nnode-1 slots=2\nnode-2 slots=2\n"


def test_devices() -> None:
    assert device_env(RankGroup("n", 0, 1.0, None)) == {"CUDA_VISIBLE_DEVICES": ""}
    assert device_env(RankGroup("n", 0, 1.0, None, ("GPU-a", "GPU-b"))) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


def test_an_ipv6_endpoint_is_bracketed() -> None:
    what = launch()
    assert node_env(what, what.groups[0], rdzv_host="fd00::1", rdzv_port=5)["PENSTOCK_RDZV_ENDPOINT"] == "[fd00::1]:5"
