"""The rendered lines under the real torchrun, accelerate and deepspeed: ranks, variables, words and restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.launchers import render, worker_env
from penstock.engines.spec import Launch, RankGroup

pytestmark = pytest.mark.real

DDP = """
    import json, os, pathlib, sys, time
    import torch, torch.distributed as dist
    here = pathlib.Path(os.environ["PROOF"])
    dist.init_process_group("gloo")
    rank, restart = dist.get_rank(), os.environ.get("TORCHELASTIC_RESTART_COUNT")
    total = torch.ones(1)
    dist.all_reduce(total)
    (here / f"{rank}-{restart}.json").write_text(json.dumps(
        {"env": dict(os.environ), "argv": sys.argv, "sum": total.item(), "pid": os.getpid()}))
    if os.environ.get("WAIT") and restart == "0":
        time.sleep(120)
    dist.barrier()
    dist.destroy_process_group()
"""
NASTY = ("--lr", "1", "--", "$$", "${local_rank}", "a b", "line\nline", "é😀", "--nnodes=9", "'\"`")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """A folder with a script, and the processes started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "proof").mkdir()
        (folder / "train.py").write_text(textwrap.dedent(DDP))

    def launch(self, launcher: str, *, nodes: int = 1, restarts: int = 0, **env: str) -> Launch:
        return Launch(
            attempt_id="01J.1", job_id="01J", job_name="real", project="default", user="u", attempt=1,
            run_dir=str(self.folder / "1"), job_dir=str(self.folder), procs=2, launcher=launcher,
            groups=tuple(RankGroup(f"node-{i}", i, 2.0, None) for i in range(nodes)),
            command=(sys.executable, "train.py", *NASTY), restarts_left=restarts, grace_s=5.0,
            env={"PROOF": str(self.folder / "proof"), **env},
        )  # fmt: skip

    def start(self, argv: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self.started)}").open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env=os.environ | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def start_all(self, launch: Launch, port: int, *, shim: tuple[str, ...] | None = ("env", "SHIM=1")) -> None:
        for group in launch.groups:
            line = render(launch, group, rdzv_host="127.0.0.1", rdzv_port=port, shim=shim)
            self.start(line.argv, line.env)

    def end(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.started]

    def proof(self, rank: int, restart: str = "0") -> dict[str, Any]:
        return dict(json.loads((self.folder / "proof" / f"{rank}-{restart}.json").read_text()))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            assert any(process.poll() is None for process in self.started), self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("log-*")))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def assert_ranks(place: Place, world: int, restart: str = "0") -> None:
    for rank in range(world):
        proof = place.proof(rank, restart)
        env = proof["env"]
        assert proof["argv"] == ["train.py", *NASTY]
        assert proof["sum"] == world
        assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (str(rank), str(world), "2")
        assert env["LOCAL_RANK"] == str(rank % 2)
        assert env["PENSTOCK_JOB_ID"] == "01J"
        assert env["SHIM"] == "1"


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_an_unmodified_script_on_one_node(place: Place, launcher: str) -> None:
    place.start_all(place.launch(launcher), free_port())
    assert place.end() == [0], place.logs()
    assert_ranks(place, 2)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_an_unmodified_script_on_two_nodes(place: Place, launcher: str) -> None:
    place.start_all(place.launch(launcher, nodes=2), free_port())
    assert place.end() == [0, 0], place.logs()
    assert_ranks(place, 4)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_killed_rank_comes_back_within_seconds(place: Place, launcher: str) -> None:
    place.start_all(place.launch(launcher, restarts=2, WAIT="1"), free_port())
    files = [place.folder / "proof" / f"{rank}-0.json" for rank in range(2)]
    place.wait_for(lambda: all(file.exists() and file.stat().st_size for file in files))
    os.kill(place.proof(1)["pid"], signal.SIGKILL)
    assert place.end() == [0], place.logs()
    assert_ranks(place, 2, restart="1")
    assert place.proof(0, "1")["env"]["TORCHELASTIC_MAX_RESTARTS"] == "2"


def test_no_restart_is_made_that_was_not_granted(place: Place) -> None:
    place.start_all(place.launch("torchrun", restarts=0, WAIT="1"), free_port())
    files = [place.folder / "proof" / f"{rank}-0.json" for rank in range(2)]
    place.wait_for(lambda: all(file.exists() and file.stat().st_size for file in files))
    os.kill(place.proof(0)["pid"], signal.SIGKILL)
    assert place.end() != [0]
    assert not (place.folder / "proof" / "0-1.json").exists()


def test_launcher_none_starts_ranks_that_find_each_other(place: Place) -> None:
    launch, port = place.launch("none", nodes=2), free_port()
    for group in launch.groups:
        line = render(launch, group, rdzv_host="127.0.0.1", rdzv_port=port, shim=("env", "SHIM=1"))
        for local in range(2):
            ranks = worker_env(launch, group, local, rdzv_host="127.0.0.1", rdzv_port=port)
            place.start(line.argv, line.env | ranks)
    assert place.end() == [0] * 4, place.logs()
    assert_ranks(place, 4)


def test_a_bare_torchrun_takes_nodes_ranks_and_rendezvous_from_the_variables(place: Place) -> None:
    launch, port = place.launch("none", nodes=2), free_port()
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    for group in launch.groups:
        line = render(launch, group, rdzv_host="127.0.0.1", rdzv_port=port, shim=None)
        place.start((torchrun, "train.py", *(word for word in NASTY if "$" not in word)), line.env | {"SHIM": "1"})
    assert place.end() == [0, 0], place.logs()
    assert [place.proof(rank)["env"]["WORLD_SIZE"] for rank in range(4)] == ["4"] * 4


def test_deepspeeds_launcher_starts_the_ranks(place: Place) -> None:
    place.start_all(place.launch("deepspeed", nodes=2), free_port())
    assert place.end() == [0, 0], place.logs()
    assert_ranks(place, 4, restart="None")
