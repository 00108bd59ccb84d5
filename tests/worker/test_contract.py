from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.launchers import node_env, worker_env
from penstock.engines.spec import Launch, RankGroup
from penstock.worker import contract
from penstock.worker.contract import LaunchContract


def test_outside_a_job_all_is_neutral(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LaunchContract.from_environ({}) == LaunchContract()
    assert not LaunchContract().in_job
    for name in ("PENSTOCK_CKPT_DIR", "PENSTOCK_RESUME_FROM", "PENSTOCK_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)
    assert contract.checkpoint_dir("here") == "here"
    assert contract.resume_from() is None
    assert contract.attempt() == 1


def test_it_reads_what_the_engine_writes() -> None:
    groups = (RankGroup("a", 0, 4.0, None), RankGroup("b", 1, 4.0, None))
    launch = Launch(
        attempt_id="01J.2", job_id="01J", job_name="n", project="p", user="u", attempt=2, run_dir="/r/01J/2",
        job_dir="/r/01J", groups=groups, procs=2, launcher="none", command=("x",),
        env={"PENSTOCK_URL": "http://127.0.0.1:7070", "PENSTOCK_ARRAY_INDEX": "3", "PENSTOCK_ARRAY_COUNT": "9"},
    )  # fmt: skip
    where: dict[str, Any] = {"rdzv_host": "127.0.0.1", "rdzv_port": 4711}
    env = node_env(launch, groups[1], **where) | worker_env(launch, groups[1], 1, **where) | {"PENSTOCK_REPORT_FD": "7"}
    assert LaunchContract.from_environ(env) == LaunchContract(
        job_id="01J", job_name="n", project="p", attempt=2, restart_count=0, nnodes=2, node_rank=1, node_name="b",
        nproc=2, rank=3, local_rank=1, world_size=4, local_world_size=2, rdzv_endpoint="127.0.0.1:4711",
        checkpoint_dir="/r/01J/checkpoints", resume_from="/r/01J/checkpoints", hostfile="/r/01J/2/hostfile",
        report_fd=7, url="http://127.0.0.1:7070", array_index=3, array_count=9,
    )  # fmt: skip


names = st.sampled_from(
    ["PENSTOCK_ATTEMPT", "RANK", "WORLD_SIZE", "PENSTOCK_REPORT_FD", "PENSTOCK_NNODES", "PENSTOCK_JOB_ID"]
)


@given(st.dictionaries(names, st.text()))
def test_any_environment_is_read(environ: dict[str, str]) -> None:
    assert LaunchContract.from_environ(environ).attempt is not None


def test_after_a_restart_in_place_the_checkpoint_folder_is_resumed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CKPT_DIR", "/c")
    monkeypatch.setenv("PENSTOCK_RESUME_FROM", "")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert contract.resume_from() is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert contract.resume_from() == "/c"
    monkeypatch.setenv("PENSTOCK_RESUME_FROM", "/elsewhere")
    assert contract.resume_from() == "/elsewhere"


def test_should_stop_sees_sigterm_and_calls_the_scripts_own_handler() -> None:
    script = """
        import os, signal
        from penstock.worker.contract import should_stop
        signal.signal(signal.SIGTERM, lambda *_: print("own handler"))
        print(should_stop())
        os.kill(os.getpid(), signal.SIGTERM)
        print(should_stop())
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=os.environ, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert result.stdout == "False\nown handler\nTrue\n"
