"""What is rendered is what runs: the batch script parsed back by the shell that runs it, and sbatch's options."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engines.slurm import runfolder, script
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.spec import Launch, RankGroup

FIXED = (Path(script.__file__).parent / "batch.sh").read_text()
USER = "nobody" if os.geteuid() == 0 else None
SHOW = 'for word do printf "%s\\0" "$word"; done; printf "\\1\\0"; exec env -0'
NASTY = (
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "\n#SBATCH --wrap=x\ntouch canary\n",
    "EOF\ntouch canary",
    "${p_run}",
    "$$",
    "\\",
    "a b\tc",
    "-n",
    "",
    "*",
    "~",
    "é✓\udcff",
)
WORDS = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from("'\"\\$`!;&|<>(){}[]*?~# \n\t%="), max_size=30),
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(lambda name: not name.startswith("SLURM"))
OWN = (
    "PATH",
    "HOME",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "IFS",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "PENSTOCK_REPORT_FD",
    "LD_AUDIT",
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="penstock-script-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def launch(*command: str, **fields: Any) -> Launch:
    told: dict[str, Any] = {
        "attempt_id": "01TEST.1",
        "job_id": "01TEST",
        "job_name": "test",
        "project": "default",
        "user": "tester",
        "attempt": 1,
        "run_dir": "/server/run",
        "job_dir": "/server",
        "groups": (RankGroup("", 0, 1.0, None),),
        "procs": 1,
        "launcher": "none",
        "command": command,
        "grace_s": 5.0,
    }
    return Launch(**(told | fields))


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    run: Path

    @property
    def output(self) -> bytes:
        return (self.run / "logs/0.out").read_bytes()

    @property
    def facts(self) -> runfolder.Facts:
        done = subprocess.run(runfolder.command([str(self.run)]), capture_output=True, text=True, check=True)
        return runfolder.read(done.stdout, [str(self.run)])[str(self.run)]


def run(folder: Path, *launches: Launch, shell: str = "sh", fresh: bool = True, **environment: str) -> Ran:
    """As slurmd would, on a node of the name n1, with ``shell``."""
    where = script.place(str(folder), launches[0])
    if fresh:
        for path in (where.run, where.job):
            shutil.rmtree(path, ignore_errors=True)
    text = script.text(launches, SlurmConfig("c1"), str(folder), FIXED)
    told = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "n1",
        **environment,
    }
    words: dict[str, Any] = {"user": pwd.getpwnam(USER).pw_uid} if USER else {}
    with tempfile.NamedTemporaryFile(prefix="slurm_script") as file:
        file.write(text)
        file.flush()
        os.chmod(file.name, 0o644)
        done = subprocess.run([shell, file.name], env=told, cwd="/", check=False, timeout=60, **words)
    return Ran(done.returncode, Path(where.run))


SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)]


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=40)
@given(data=st.data())
def test_words_and_variables_arrive_as_they_are(shell: str, folder: Path, data: st.DataObject) -> None:
    words = data.draw(st.lists(WORDS, max_size=5))
    env = data.draw(st.dictionaries(NAMES.filter(lambda name: name not in OWN), WORDS, max_size=5))
    ran = run(folder, launch("sh", "-c", SHOW, "x", *words, env=env), shell=shell)
    shown = ran.output.split(b"\0")
    assert shown[: len(words) + 1] == [*map(os.fsencode, words), b"\1"]
    found = dict(line.partition(b"=")[::2] for line in shown[len(words) + 1 :] if line)
    for name, value in env.items():
        if not name.startswith(("PENSTOCK_", "PET_")):
            assert found[name.encode()] == os.fsencode(value), name
    assert found[b"PENSTOCK_JOB_ID"] == b"01TEST"
    assert not [name for name in found if name.startswith(b"p_") and name.decode() not in env]
    assert not any(path.name == "canary" for path in ran.run.rglob("*"))
    assert ran.code == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_names_that_shells_keep_for_themselves_are_set_too(shell: str, folder: Path) -> None:
    odd = ("IFS", "PPID", "UID", "OPTIND", "LINENO", "p_run", "p_code", "RANDOM", "PS4", "ENV", "SHELLOPTS")
    env = {name: f"own {name}" for name in odd}
    ran = run(folder, launch("env", "-0", env=env), shell=shell)
    found = dict(line.partition("=")[::2] for line in ran.output.decode().split("\0") if line)
    assert {name: found.get(name) for name in odd} == env


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_a_word_is_one_word(words: list[str]) -> None:
    text = "p_run='a b'; printf '%s\\0' " + " ".join(script.word(word) for word in words) + "\n"
    done = subprocess.run(["sh"], input=text.encode("utf-8", "surrogateescape"), capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_a_folder_of_odd_characters_is_the_working_folder(folder: Path) -> None:
    odd = folder / "it's $(touch canary) `x` \n#SBATCH"
    odd.mkdir(exist_ok=True)
    odd.chmod(0o777)
    ran = run(folder, launch("pwd", workdir=str(odd)))
    assert ran.output.decode() == f"{odd}\n"
    assert list(odd.iterdir()) == []


@pytest.mark.parametrize(("command", "reason", "code", "signal"), [
    (("sh", "-c", "exit 3"), "Failed", 3, None),
    (("sh", "-c", "kill -9 $$"), "Failed", None, 9),
    (("true",), "Completed", 0, None),
    (("no-such-program",), "CommandNotFound", 127, None),
    (("/no/such/program",), "CommandNotFound", 127, None),
    (("/etc/passwd",), "NotExecutable", 126, None),
    (("exit",), "CommandNotFound", 127, None),
])  # fmt: skip
def test_an_end_is_told_with_its_reason(
    folder: Path, command: tuple[str, ...], reason: str, code: int | None, signal: int | None
) -> None:
    ran = run(folder, launch(*command))
    end = ran.facts.end
    assert end is not None
    assert (end.reason, end.exit_code, end.signal) == (reason, code, signal)
    if reason in ("Failed", "Completed"):
        [rank] = ran.facts.ranks
        assert (rank.node, rank.exit_code, rank.signal) == ("n1", code, signal)
    assert ran.facts.started_at is not None
    assert ran.facts.started_at <= end.at


def test_what_is_missing_is_named(folder: Path) -> None:
    end = run(folder, launch("true", workdir="/no/such")).facts.end
    assert end is not None
    assert (end.reason, "/no/such" in end.message) == ("WorkdirMissing", True)
    end = run(folder, launch("true", environment={"venv": "/no/such venv"})).facts.end
    assert end is not None
    assert (end.reason, "/no/such venv/bin/python" in end.message) == ("EnvironmentMissing", True)
    end = run(folder, launch("true", environment={"conda": "nothing"})).facts.end
    assert end is not None
    assert (end.reason, "'nothing'" in end.message) == ("EnvironmentMissing", True)


def test_an_attempt_is_run_once_but_for_a_requeue(folder: Path) -> None:
    told = launch("sh", "-c", 'echo "ran $PENSTOCK_RESUME_FROM"')
    assert run(folder, told).code == 0
    for environment in ({}, {"SLURM_JOB_ID": "8"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}):
        ran = run(folder, told, fresh=False, **environment)
        assert ran.code == 96
        assert ran.output == b"ran \n"
    ran = run(folder, told, fresh=False, SLURM_RESTART_COUNT="1")
    assert ran.code == 0
    assert ran.output.decode() == f"ran \nran {folder}/01TEST/checkpoints\n"
    assert ran.facts.requeues == 1
    assert run(folder, told, fresh=False, SLURM_RESTART_COUNT="1").code == 96


def test_several_ranks_are_watched_and_the_first_that_fails_ends_all(folder: Path) -> None:
    ran = run(folder, launch("sh", "-c", '[ "$RANK" = 1 ] && { sleep 1; exit 4; }; exec sleep 50', procs=3))
    assert [(rank.rank, rank.exit_code, rank.signal) for rank in ran.facts.ranks] == [
        (0, None, 15),
        (1, 4, None),
        (2, None, 15),
    ]
    assert ran.facts.end is not None
    assert (ran.facts.end.reason, ran.facts.end.exit_code) == ("Failed", 4)


def test_a_stubborn_rank_is_killed_after_the_grace(folder: Path) -> None:
    command = 'if [ "$RANK" = 1 ]; then sleep 0.3; exit 4; fi; trap "" TERM; while :; do sleep 1; done'
    ran = run(folder, launch("sh", "-c", command, procs=2, grace_s=0.3))
    assert [(rank.rank, rank.exit_code, rank.signal) for rank in ran.facts.ranks] == [(0, None, 9), (1, 4, None)]


def test_time_limits_are_kept_to_the_tenth(folder: Path) -> None:
    for procs in (1, 2):
        ran = run(folder, launch("sleep", "50", procs=procs, time_limit_s=0.2))
        end, began = ran.facts.end, ran.facts.started_at
        assert end is not None
        assert began is not None
        assert (end.reason, end.signal) == ("TimeLimit", 15)
        assert end.at - began < 10


def test_tasks_of_an_array_find_their_own_by_index(folder: Path) -> None:
    tasks = [
        launch("sh", "-c", 'echo "$PENSTOCK_JOB_NAME $I"', attempt_id=f"01TASK{n}.1", job_id=f"01TASK{n}", job_name=f"t-{n}",
               env={"I": f"own '{n}'", "SAME": "x"}, array=("01ARRAY", n))
        for n in (0, 3)
    ]  # fmt: skip
    assert script.alike(tasks[0]) == script.alike(tasks[1])
    assert script.alike(tasks[0]) != script.alike(replace(tasks[1], command=("true",)))
    assert script.submission(tasks, SlurmConfig("c1"), b"").array == "0,3"
    for task, index in zip(tasks, (0, 3), strict=True):
        run(folder, *tasks, fresh=False, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID=str(index))
        where = Path(script.place(str(folder), task).run)
        assert (where / "logs/0.out").read_text() == f"t-{index} own '{index}'\n"
        assert (where / "claim").read_text().startswith(f"5_{index} ")


def test_a_port_that_is_taken_is_not_given(folder: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 20091))
        taken.listen()
        ran = run(folder, launch("sh", "-c", "echo $MASTER_PORT", procs=2))
        assert int(ran.output) == 20092


def test_options_say_what_was_asked_for() -> None:
    told = launch(
        "true", groups=(RankGroup("c1-n1", 0, 2.5, 3 << 30), RankGroup("", 1, 2.5, 3 << 30)), gpus_per_node=2, time_limit_s=3600.0,
        grace_s=30.0, options={"account": "ml", "--exclusive": True, "mail_user": "a@b"}, exclude_nodes=("c1-n7",),
    )  # fmt: skip
    config = SlurmConfig("c1", node_prefix="c1-", partition="gpu", options={"qos": "high", "account": "none"})
    found = script.options(told, config, "name", ("h100",))
    assert found == {
        "nodes": 2, "ntasks-per-node": 1, "cpus-per-task": 3, "mem": "3072M", "gres": "gpu:h100:2", "time": 62,
        "nodelist": "n1", "exclude": "n7", "partition": "gpu", "qos": "high", "account": "ml", "exclusive": True,
        "mail-user": "a@b", "no-requeue": True, "open-mode": "append", "job-name": "name", "output": "/dev/null", "chdir": "/",
        "comment": "penstock: default/test, attempt 1, by tester",
    }  # fmt: skip
    assert "no-requeue" not in script.options(replace(told, options={"requeue": True}), config, "name")


def test_told_to_end_twice_it_hears_of_it_once(folder: Path) -> None:
    told = "trap 'n=$((n+1))' TERM; n=0; kill -TERM $PPID; kill -TERM $PPID"
    first = "i=0; while [ $n -eq 0 ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done"
    script_ = f"{told}; {first}; for i in 1 2 3 4 5; do sleep 0.1; done; exit $((10+n))"
    ran = run(folder, launch("sh", "-c", script_))
    end = ran.facts.end
    assert end is not None
    assert (end.reason, end.exit_code) == ("Stopped", 11)


def test_nothing_of_it_is_left_that_slurms_step_would_wait_for(folder: Path) -> None:
    """The timers of its limit and of its grace, with their sleeps."""
    for procs in (1, 2):
        limit, grace = (base + os.getpid() % 10_000 + procs / 8 for base in (40_000, 60_000))  # nobody else's
        assert run(folder, launch("true", procs=procs, time_limit_s=limit)).code == 0
        assert run(folder, launch("sleep", "50", procs=procs, time_limit_s=0.2, grace_s=grace)).code == 143
        deadline = time.monotonic() + 20
        while left := {f"{limit:g}", f"{grace:g}"} & sleeping():
            assert time.monotonic() < deadline, left


def sleeping() -> set[str]:
    """What is asked of each `sleep` on this machine."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if words[0] == b"sleep":
                found.add(words[1].decode())
    return found


def test_a_folder_that_cannot_be_written_is_no_second_start(folder: Path) -> None:
    where = folder / "closed"
    where.mkdir(mode=0o555)
    assert run(where, launch("true")).code == 97
    assert list(where.iterdir()) == []


@pytest.mark.parametrize("procs", [1, 3])
def test_a_rank_that_is_told_to_end_while_it_starts_is_not_left_to_the_end_of_the_grace(
    folder: Path, procs: int
) -> None:
    told = launch("sleep", "60", procs=procs, grace_s=15.0)
    where = script.place(str(folder), told)
    text = folder / "script"
    text.write_bytes(script.text([told], SlurmConfig("c1"), str(folder), FIXED))
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
    words: dict[str, Any] = {"user": pwd.getpwnam(USER).pw_uid} if USER else {}
    for pause_s in (0.0, 0.01):
        for path in (where.run, where.job):
            shutil.rmtree(path, ignore_errors=True)
        batch = subprocess.Popen(["sh", str(text)], env=environment, cwd="/", **words)
        while not os.path.exists(f"{where.run}/logs/batch.out"):
            time.sleep(0.001)
        time.sleep(pause_s)
        batch.send_signal(signal.SIGTERM)
        batch.wait(60)
        facts = Ran(0, Path(where.run)).facts
        assert facts.end is not None
        assert facts.end.reason == "Stopped"
        assert 9 not in {rank.signal for rank in facts.ranks}


def rendered_for(told: Launch, count: int, node_rank: int, local: int) -> str:
    """What the process ``local`` of a node is told, and is, where Slurm has given ``count`` nodes."""
    text = script.text([told], SlurmConfig("c1"), "/folder", FIXED).decode()
    begin, _, _ = text.rpartition('p_main "$@"')
    shown = f"""
p_values
[ -z "$p_least" ] || p_size
p_node_rank={node_rank} p_rank=$((p_node_rank * p_procs + {local})) p_host=n0 p_port=20001 p_resume= p_path=/bin:/usr/bin p_devices=0,1
p_exec() {{ printf '<%s>\\n' "$@"; }}
p_prepare_environment
p_command
p_export
env | grep -v '^\\(_\\|PWD\\|SHLVL\\|SLURM_.*\\)='
"""
    told_by_slurm = {"PATH": "/bin:/usr/bin", "SLURM_JOB_NUM_NODES": str(count), "SLURMD_NODENAME": f"n{node_rank}"}
    return subprocess.run(
        ["sh"], input=begin + shown, env=told_by_slurm, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("launcher", ["none", "torchrun", "accelerate", "deepspeed"])
@pytest.mark.parametrize("procs", [1, 2])
@pytest.mark.parametrize("least", [1, 2])
def test_on_the_nodes_that_it_got_a_job_is_as_one_that_asked_for_so_many(launcher: str, procs: int, least: int) -> None:
    groups = tuple(RankGroup("", rank, 2.0, None) for rank in range(4))
    told = launch("train.py", "--nnodes", "$x", groups=groups, procs=procs, launcher=launcher, least=least)
    for count in range(least, 5):
        for node_rank in (0, count - 1):
            same = replace(told, groups=groups[:count], least=0)
            said = rendered_for(told, count, node_rank, procs - 1)
            assert said == rendered_for(same, count, node_rank, procs - 1)
            assert f"PENSTOCK_NNODES={count}" in said


def test_a_job_that_takes_fewer_nodes_asks_for_a_range() -> None:
    groups = tuple(RankGroup("", rank, 2.0, None) for rank in range(4))
    asked = script.options(launch("true", groups=groups, least=2), SlurmConfig("c1"), "x")
    assert asked["nodes"] == "2-4"
    assert "ntasks-per-node" not in asked
    asked = script.options(launch("true", groups=groups), SlurmConfig("c1"), "x")
    assert (asked["nodes"], asked["ntasks-per-node"]) == (4, 1)
