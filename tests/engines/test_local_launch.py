"""How a job starts: user, folders, code, environment, and what a person is told when it cannot."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.local import environment, rank, rendering, snapshot
from penstock.engines.local.child import LaunchError
from penstock.engines.spec import Launch, RankGroup
from tests.engines.conftest import JOB_USER, World

Local = Callable[..., None]
ROOT = os.geteuid() == 0
PYTHON = os.path.realpath(sys.executable)


def archive(path: Path, *members: tuple[str, bytes | str], kind: bytes | None = None) -> str:
    """A gzip tar; a member's content is bytes for a file, text for the target of a link (or of ``kind``)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = kind or tarfile.SYMTYPE, content
                tar.addfile(info)
    return str(path)


def write(path: Path, text: str, mode: int = 0o644) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def folder(path: Path, mode: int = 0o755) -> str:
    path.mkdir(parents=True)
    path.chmod(mode)
    return str(path)


def exists(path: str) -> bool:
    return os.path.exists(path)


def test_what_a_job_sees(local: Local) -> None:
    script = 'import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.getuid(), os.getgroups(), sorted(os.listdir("/proc/self/fd"))]))'

    async def body(world: World) -> None:
        launch = await world.begin(PYTHON, "-c", script, wait=False, env={"MINE": "1", "CUDA_VISIBLE_DEVICES": "7"})
        await world.end_of(launch)
        env, cwd, uid, groups, fds = json.loads(await world.log(launch))
        assert "SECRET" not in env
        assert not [name for name in env if "TOKEN" in name]
        assert env["MINE"] == "1"
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert (env["PENSTOCK_JOB_ID"], env["PENSTOCK_ATTEMPT"]) == (launch.job_id, "1")
        assert exists(env["HOME"])
        assert cwd == f"{launch.job_dir}/work"
        assert fds == ["0", "1", "2", "3", "4"]  # the last one is the listing itself
        if JOB_USER is not None:
            assert uid == pwd.getpwnam(JOB_USER).pw_uid
            assert 0 not in groups
            assert env["USER"] == JOB_USER

    local(body)


def test_a_user_without_a_home_gets_a_folder_of_its_own(local: Local) -> None:
    script = "touch ~/mine && ls -A $PENSTOCK_CKPT_DIR && stat -c %U ~ && echo ~"

    async def body(world: World) -> None:
        launch = await world.begin("sh", "-c", script, wait=False)
        assert (await world.end_of(launch)).reason == "Completed"
        if ROOT:  # else jobs run as we do, and we have a home
            assert (await world.log(launch)).split() == [JOB_USER, f"{launch.job_dir}/home"]
        given = await world.begin("sh", "-c", "echo ~", wait=False, env={"HOME": "/tmp"})
        await world.end_of(given)
        assert await world.log(given) == "/tmp\n"
        assert not exists(f"{given.job_dir}/home")

    local(body)


def test_never_as_root(local: Local) -> None:
    async def body(world: World) -> None:
        for user in (None, "root", "no-such-user"):
            ended = await world.run("id", unix_user=user)
            if ROOT:
                assert ended.reason == "LaunchFailed", user
                assert "root" in ended.message or "no-such-user" in ended.message

    local(body)


def test_a_job_reaches_its_own_folders_and_no_others(local: Local, data: Path) -> None:
    async def body(world: World) -> None:
        other = await world.begin("sleep", "300")
        spy = " ".join(f"{other.run_dir}/{name}" for name in ("launch.json", "started.json", "lock", "logs"))
        script = f"touch here $PENSTOCK_CKPT_DIR/there && echo mine; cat {spy}; ls {data}; ls {other.run_dir}; true"
        launch = await world.begin("sh", "-c", script, wait=False)
        await world.end_of(launch)
        text = await world.log(launch)
        assert text.startswith("mine\n")
        if ROOT:
            assert text.count("Permission denied") >= 5

    local(body)


@pytest.mark.parametrize(
    ("command", "reason", "hint"),
    [
        (("no-such-command",), "CommandNotFound", "no-such-command"),
        (("/no/such/path",), "CommandNotFound", "/no/such/path"),
        (("/etc/passwd",), "NotExecutable", "chmod +x"),
        (("{data}/script",), "NotExecutable", "#!/bin/sh"),
        (("{data}/lost",), "CommandNotFound", "interpreter"),
        (("{data}/windows",), "NotExecutable", r"carriage return (Windows line ends): mend it with sed -i 's/\r$//' "),
    ],
)
def test_commands_that_cannot_run(local: Local, data: Path, command: tuple[str, ...], reason: str, hint: str) -> None:
    write(data / "script", "no magic here", 0o755)
    write(data / "lost", "#!/no/such/interpreter\n", 0o755)
    (data / "windows").write_bytes(b"#!/bin/sh\r\necho hello\r\n")
    (data / "windows").chmod(0o755)

    async def body(world: World) -> None:
        ended = await world.run(*(word.format(data=data) for word in command))
        assert (ended.reason, ended.exit_code) == (reason, 126 if reason == "NotExecutable" else 127)
        assert hint in ended.message

    local(body)


def test_the_shim_knows_windows_line_ends_as_well(tmp_path: Path) -> None:
    (tmp_path / "windows").write_bytes(b"#!/bin/sh\r\n")
    (tmp_path / "other").write_bytes(b"#!/no/such/interpreter\n")
    missing = FileNotFoundError(errno.ENOENT, "")
    told = rank._why(f"{tmp_path}/windows", missing)
    assert (told["reason"], "carriage return" in str(told["message"])) == ("NotExecutable", True)
    assert rank._why(f"{tmp_path}/other", missing)["reason"] == "CommandNotFound"


def test_folders_and_environments_that_cannot_be_used(local: Local, data: Path) -> None:
    closed = folder(data / "closed", 0o700)
    folder(data / "closed/inner/bin")
    venv = folder(data / "venv/bin").removesuffix("/bin")

    async def body(world: World) -> None:
        missing = await world.run("true", workdir=f"{data}/nowhere")
        assert (missing.reason, f"{data}/nowhere" in missing.message) == ("WorkdirMissing", True)
        no_venv = await world.run("true", environment={"venv": venv})
        assert (no_venv.reason, f"{venv}/bin/python" in no_venv.message) == ("EnvironmentMissing", True)
        no_conda = await world.run("true", environment={"conda": "nope"})
        assert no_conda.reason == "EnvironmentMissing"
        assert "there is no conda environment 'nope'" in no_conda.message
        if ROOT:
            shut = await world.run("true", workdir=f"{closed}/inner")
            assert (shut.reason, closed in shut.message) == ("WorkdirMissing", True)
            assert JOB_USER is not None
            assert JOB_USER in shut.message
            far = await world.run("true", environment={"conda": f"{closed}/inner"})
            assert (far.reason, closed in far.message) == ("EnvironmentMissing", True)

    local(body)


def test_a_virtual_environment_comes_first(local: Local, data: Path) -> None:
    binaries = folder(data / "venv/bin")
    write(Path(binaries, "python"), "#!/bin/sh\necho from $VIRTUAL_ENV\n", 0o755)

    async def body(world: World) -> None:
        launch = await world.begin("python", wait=False, environment={"venv": f"{data}/venv"})
        await world.end_of(launch)
        assert await world.log(launch) == f"from {data}/venv\n"

    local(body)


def test_the_snapshot_is_the_code_that_runs(local: Local, data: Path) -> None:
    packed = archive(data / "snap", ("run.sh", b"#!/bin/sh\necho v1; pwd\n"), ("sub/data", b"d"), ("link", "sub/data"))

    async def body(world: World) -> None:
        launch = await world.begin("./run.sh", wait=False, snapshot=packed)
        assert (await world.end_of(launch)).reason == "Completed"
        assert await world.log(launch) == f"v1\n{launch.job_dir}/work\n"
        again = replace(launch, attempt_id=f"{launch.job_id}.2", attempt=2, run_dir=f"{launch.job_dir}/2")
        archive(data / "snap", ("run.sh", b"#!/bin/sh\necho v2\n"))  # unpacked once: later changes do not matter
        await world.engine.submit(again)
        await world.end_of(again)
        assert (await world.log(again)).startswith("v1\n")

    local(body)


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([("../evil", b"x")], None),
        ([("/tmp/evil", b"x")], None),
        ([("a/../../evil", b"x")], None),
        ([("out", "/etc"), ("out/evil", b"x")], None),
        ([("up", ".."), ("up/evil", b"x")], None),
        ([("in", "b"), ("b", "../.."), ("in/evil", b"x")], None),
        ([("hard", "/etc/passwd")], tarfile.LNKTYPE),
        ([("hard", "../../secret")], tarfile.LNKTYPE),
        ([("dev", "")], tarfile.CHRTYPE),
        ([("fifo", "")], tarfile.FIFOTYPE),
    ],
)
def test_snapshots_stay_inside(tmp_path: Path, members: list[tuple[str, Any]], kind: bytes | None) -> None:
    target = tmp_path / "a/b/work"
    target.mkdir(parents=True)
    source = os.open(archive(tmp_path / "snap", *members, kind=kind), os.O_RDONLY)
    with pytest.raises(LaunchError) as refused:
        snapshot.unpack(source, str(target))
    os.close(source)
    assert refused.value.reason == "LaunchFailed"
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/evil").exists()


def test_a_damaged_snapshot_is_named(local: Local, data: Path) -> None:
    whole = Path(archive(data / "snap", ("big", os.urandom(100_000)))).read_bytes()
    (data / "torn").write_bytes(whole[:5000])
    (data / "text").write_bytes(b"no tar at all")

    async def body(world: World) -> None:
        for name in ("torn", "text", "missing"):
            ended = await world.run("true", snapshot=f"{data}/{name}")
            assert ended.reason == "LaunchFailed"
            assert "snapshot" in ended.message

    local(body)


def test_images_need_apptainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "container", lambda: None)
    assert [problem.path for problem in environment.problems({"image": "x.sif"})] == ["environment.image"]
    monkeypatch.setattr(environment, "container", lambda: "/usr/bin/apptainer")
    prepared = environment.prepare({"image": "x.sif", "modules": ("gcc/12; id",)}, {"PATH": "/bin"}, folders=("/w",))
    assert prepared.wrap[-4:] == ("--nv", "--bind", "/w", "x.sif")
    assert "gcc/12; id" in prepared.wrap  # an argument of its own, never shell text


def test_modules_are_loaded_by_a_login_shell(local: Local, data: Path) -> None:
    profile = 'module() { [ "$1" = load ] && [ "$2" != nope ] && export LOADED="$2"; }\n'

    async def body(world: World) -> None:
        env = {"HOME": str(data)}
        write(data / ".bash_profile", profile)
        launch = await world.begin("sh", "-c", "echo $LOADED", wait=False, env=env, environment={"modules": ["gcc/12"]})
        await world.end_of(launch)
        assert (await world.log(launch)).endswith("gcc/12\n")
        lacking = await world.run("true", env=env, environment={"modules": ["nope"]})
        assert (lacking.reason, "module load nope" in lacking.message) == ("EnvironmentMissing", True)
        write(data / ".bash_profile", "unset -f module\n")
        bare = await world.run("true", env=env, environment={"modules": ["gcc/12"]})
        assert (bare.reason, "no command `module`" in bare.message) == ("EnvironmentMissing", True)
        plain = await world.run("sh", "-c", "exit 213")
        assert (plain.reason, plain.exit_code) == ("Failed", 213)

    local(body)


def test_ports_are_not_handed_out_twice() -> None:
    renderer = rendering.Renderer({"PATH": "/bin"}, 100, None, sys.executable)
    launches = [json.loads(renderer.frame(_bare(str(number)))) for number in range(50)]
    ports = {launch["rendered"][0]["env"]["MASTER_PORT"] for launch in launches}
    assert len(ports) == 50


def _bare(name: str) -> Launch:
    group = RankGroup("node-0", 0, 1.0, None)
    return Launch(f"{name}.1", name, name, "p", "u", 1, f"/d/{name}/1", f"/d/{name}", (group,), 1, "none", ("true",))


def test_signals_are_as_a_shell_leaves_them(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await world.begin("grep", "^Sig[BI]", "/proc/self/status", wait=False)
        await world.end_of(launch)
        masks = [int(line.split()[1], 16) for line in (await world.log(launch)).splitlines()]
        glibcs_own = 3 << 31  # signals 32 and 33: it lets nobody touch them, so they are as our own parent left them
        assert [mask & ~glibcs_own for mask in masks] == [0, 0]

    local(body)
