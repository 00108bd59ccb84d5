"""``penstock run``: what its flags say in the spec, how it follows, and what it leaves with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from penstock.base.settings import Settings
from tests.cli.conftest import Cli, with_
from tests.client.standin import Reply, Request, StandIn, job, problem, sse

JOBS = "/api/v1/projects/default/jobs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def spec_of(server: StandIn) -> dict[str, Any]:
    spec: dict[str, Any] = server.seen(f"POST {JOBS}")[-1].json["spec"]
    return spec


FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    (["--nodes", "2", "--procs", "8"], {"nodes": 2, "procs": 8}),
    (["--cpus", "500m", "--memory", "8Gi", "--gpus", "2:H100"],
     {"resources": {"cpus": "500m", "memory": "8Gi", "gpus": 2, "gpu_model": "H100"}}),
    (["--gpus", "1:H100,H200"], {"resources": {"gpus": 1, "gpu_model": ["H100", "H200"]}}),
    (["--placement", "rack:required"], {"placement": {"level": "rack", "required": True}}),
    (["--placement", "block"], {"placement": {"level": "block"}}),
    (["--flavor", "fast", "--flavor", "slow", "--exclude-node", "node-7"],
     {"flavors": ["fast", "slow"], "exclude_nodes": ["node-7"]}),
    (["--gpus", "1"], {"resources": {"gpus": 1}}),
    (["--time-limit", "1h30m", "--max-restarts", "3", "--grace-period", "5s"],
     {"time_limit": "1h30m", "max_restarts": 3, "grace_period": "5s"}),
    (["--env", "A=1", "--env", "B=x=y", "--env", "C="], {"env": {"A": "1", "B": "x=y", "C": ""}}),
    (["--launcher", "accelerate", "--priority", "-5"], {"launcher": "accelerate", "priority": -5}),
    (["--conda", "torch", "--module", "cuda/12"], {"environment": {"conda": "torch", "modules": ["cuda/12"]}}),
    (["--venv", "/opt/venv"], {"environment": {"venv": "/opt/venv"}}),
    (["--image", "nvcr.io/x:1"], {"environment": {"image": "nvcr.io/x:1"}}),
    (["--depends-on", "a", "--depends-on", "b:finished"],
     {"depends_on": [{"job": "a"}, {"job": "b", "condition": "Finished"}]}),
    (["--array", "100%8"], {"array": {"count": 100, "max_parallel": 8}}),
    (["--array", "3"], {"array": {"count": 3}}),
    (["--engine", "c1", "--engine-option", "constraint=a100|h100", "--engine-option", "exclusive", "--engine-option=--nice=5"],
     {"engine": "c1", "engine_options": {"constraint": "a100|h100", "exclusive": True, "nice": "5"}}),
    (["--interactive", "--idle-timeout", "30m"], {"interactive": True, "idle_timeout": "30m"}),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "fields"), FLAGS, ids=[flags[0] for flags, _ in FLAGS])
def test_flags(server: StandIn, cli: Cli, flags: list[str], fields: dict[str, Any]) -> None:
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    ran = cli("run", "--detach", *flags, "--", "python", "train.py", "--", "-x")
    assert (ran.code, ran.out) == (0, "digits\n")
    spec = spec_of(server)
    assert spec.pop("command") == ["python", "train.py", "--", "-x"]
    if "environment" not in fields:
        spec.pop("environment", None)
    assert spec == fields


def test_name_labels_key_and_project(server: StandIn, cli: Cli) -> None:
    server.answers["POST /api/v1/projects/vis/jobs"] = Reply(201, job())
    argv = [
        "--project",
        "vis",
        "run",
        "--detach",
        "--name",
        "digits",
        "--label",
        "a=b",
        "--idempotency-key",
        "K",
        "--",
        "x",
    ]
    assert cli(*argv).code == 0
    assert server.requests[-1].headers["idempotency-key"] == "K"
    assert {**server.requests[-1].json, "spec": 0} == {"name": "digits", "labels": {"a": "b"}, "spec": 0}


@pytest.mark.parametrize(
    "flags",
    [["--env", "A"], ["--env", "=x"], ["--gpus", "many"], ["--array", "3%"], ["--array", "x"], ["--label", "a"]],
)
def test_wrong_flags_send_nothing(server: StandIn, cli: Cli, flags: list[str]) -> None:
    ran = cli("run", "--detach", *flags, "--", "x")
    assert ran.code == 2
    assert "error: " in ran.err
    assert server.requests == []


def test_the_default_environment_is_the_callers(server: StandIn, cli: Cli, settings: Settings) -> None:
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    cases: list[tuple[dict[str, str], list[str], dict[str, Any] | None]] = [
        ({"virtual_env": "/v"}, [], {"venv": "/v"}),
        ({"conda_prefix": "/c"}, [], {"conda": "/c"}),
        ({"virtual_env": "/v"}, ["--conda", "x"], {"conda": "x"}),
        ({"virtual_env": "/v"}, ["--venv", "none"], None),
        ({}, [], {"venv": sys.prefix} if sys.prefix != sys.base_prefix else None),
    ]
    for fields, flags, environment in cases:
        cli("run", "--detach", *flags, "--", "x", settings=with_(settings, **fields))
        assert spec_of(server).get("environment") == environment


def test_the_work_folder_is_carried_and_sent_once(server: StandIn, cli: Cli, empty_folder: Path) -> None:
    (empty_folder / "train.py").write_text("print(1)")
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    kept: set[str] = set()

    def snapshots(request: Request) -> Reply:
        kept.add(request.path)
        return Reply(201)

    class Answers(dict[str, Any]):
        def get(self, line: str, default: Any = None) -> Any:
            method, _, path = line.partition(" ")
            if path.startswith("/api/v1/snapshots/"):
                return snapshots if method == "PUT" else Reply(200 if path in kept else 404)
            return super().get(line, default)

    server.answers = Answers(server.answers)
    for _ in range(2):
        assert cli("run", "--detach", "--", "x").code == 0
    assert [r.method for r in server.requests] == ["HEAD", "PUT", "POST", "HEAD", "POST"]
    assert spec_of(server)["workdir"] == str(empty_folder)
    assert f"/api/v1/snapshots/{spec_of(server)['snapshot']}" in kept
    assert cli("run", "--detach", "--no-snapshot", "--", "x").code == 0
    assert "snapshot" not in spec_of(server)
    assert spec_of(server)["workdir"] == str(empty_folder)


def test_json_prints_the_job(server: StandIn, cli: Cli) -> None:
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    assert json.loads(cli("run", "--detach", "-o", "json", "--", "x").out) == job()


def attached(server: StandIn, log: list[bytes], final: dict[str, Any]) -> None:
    server.answers |= {
        f"POST {JOBS}": Reply(201, job(phase="Pending")),
        f"GET {JOBS}/digits/logs": Reply(body=log),
        f"GET {JOBS}/digits/watch": Reply(body=sse(("job", job(), "1"), ("job", final, "2"))),
    }


@pytest.mark.parametrize(
    ("final", "code"),
    [
        (job(phase="Succeeded", reason="Completed"), 0),
        (job(phase="Failed", reason="Failed", exit_code=7), 7),
        (job(phase="Failed", reason="OutOfMemory", signal=9), 137),
        (job(phase="Cancelled", reason="Cancelled"), 1),
    ],
)
def test_following_shows_the_log_and_leaves_with_the_jobs_code(
    server: StandIn, cli: Cli, final: dict[str, Any], code: int
) -> None:
    attached(server, [b"step 1\n", b"step 2"], final)
    ran = cli("run", "--", "x")
    assert ran.code == code
    assert ran.out == "step 1\nstep 2"
    assert ran.err.splitlines()[-1].startswith(f"job default/digits: {final['status']['phase']}")
    assert server.seen(f"GET {JOBS}/digits/logs")[0].query == "follow=true"


def test_following_tells_how_long_and_why(server: StandIn, cli: Cli) -> None:
    times = {"started_at": "2026-11-22T03:40:33Z", "finished_at": "2026-11-22T03:41:45.5Z"}
    final = job(phase="Failed", reason="OutOfMemory", message="rank 1 needed more than 1Gi", restarts=2, **times)
    attached(server, [], final)
    expected = "job default/digits: Failed after 1m12s, 2 restarts (OutOfMemory: rank 1 needed more than 1Gi)"
    assert cli("run", "--", "x").err.splitlines()[-1] == expected


def test_following_as_json_prints_the_finished_job(server: StandIn, cli: Cli) -> None:
    attached(server, [b"not shown"], job(phase="Succeeded"))
    ran = cli("run", "-o", "json", "--", "x")
    assert json.loads(ran.out)["status"]["phase"] == "Succeeded"
    assert ran.err == ""


def test_an_array_is_followed_by_its_counts(server: StandIn, cli: Cli) -> None:
    made = job(phase="Pending")
    made["spec"]["array"] = {"count": 4}
    attached(server, [], job(phase="Succeeded"))
    server.answers[f"POST {JOBS}"] = Reply(201, made)
    assert cli("run", "--array", "4", "--", "x").code == 0
    assert not server.seen(f"GET {JOBS}/digits/logs")


def test_a_job_deleted_while_it_is_followed(server: StandIn, cli: Cli) -> None:
    attached(server, [], job())
    server.answers[f"GET {JOBS}/digits/logs"] = problem(404, "NotFound", "gone")
    server.answers[f"GET {JOBS}/digits/watch"] = problem(404, "NotFound", "there is no job 'digits'")
    ran = cli("run", "--", "x")
    assert ran.code == 4
    assert "there is no job" in ran.err


def test_ctrl_c_lets_go_and_says_how_to_follow_and_to_cancel(server: StandIn, empty_folder: Path) -> None:
    go = threading.Event()

    def log(_: Request) -> Reply:
        go.wait(20)
        return Reply(body=[b"late"])

    attached(server, [], job())
    server.answers[f"GET {JOBS}/digits/logs"] = log
    server.answers[f"GET {JOBS}/digits/watch"] = log
    code = (
        # Whoever runs the tests in the background may have them ignore SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys; from penstock.app import main; sys.exit(main(['run', '--', 'x']))"
    )
    environ = {"PATH": os.environ["PATH"], "PENSTOCK_URL": server.url, "PENSTOCK_TOKEN": "pk_t"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        cwd=empty_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "job default/digits was made\n"
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(20) == 130
    go.set()
    assert "penstock logs -f digits" in err
    assert "penstock cancel digits" in err
    assert "Traceback" not in err


def test_a_reader_that_went_away_is_no_error(server: StandIn, empty_folder: Path) -> None:
    server.answers[f"GET {JOBS}/digits/logs"] = Reply(body=[b"x" * 60_000 + b"\n"] * 50)
    environ = {"PATH": os.environ["PATH"], "PENSTOCK_URL": server.url, "PENSTOCK_TOKEN": "pk_t"}
    code = "import sys; from penstock.app import main; sys.exit(main(['logs', 'digits']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, cwd=empty_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


@pytest.mark.parametrize("words", [("run", "--", "x"), ("run", "--no-snapshot", "--", "x")])
def test_a_current_folder_that_was_deleted(cli: Cli, empty_folder: Path, words: tuple[str, ...]) -> None:
    empty_folder.rmdir()
    ran = cli(*words)
    assert ran.code == 2
    assert "the current folder cannot be found" in ran.err


def test_the_servers_complaints_name_the_flags(server: StandIn, cli: Cli) -> None:
    paths = ["body.spec.procs", "body.spec.resources.cpus", "body.name", "body.spec.depends_on[0].job", "body.x"]
    details = [{"path": path, "message": "is wrong", "line": None} for path in paths]
    server.answers[f"POST {JOBS}"] = problem(422, "InvalidInput", "5 things are wrong", details=details)
    ran = cli("run", "--", "x")
    assert ran.code == 2
    named = [line.strip().partition(":")[0] for line in ran.err.splitlines()[1:6]]
    assert named == ["--procs", "--cpus", "--name", "--depends-on", "body.x"]


@pytest.mark.parametrize("gpus", ["1:H100:x", "1:", "x"])
def test_gpus_are_a_number_and_a_model(server: StandIn, cli: Cli, gpus: str) -> None:
    ran = cli("run", "--gpus", gpus, "--", "x")
    assert ran.code == 2
    assert f"--gpus {gpus!r}" in ran.err
    assert server.requests == []
