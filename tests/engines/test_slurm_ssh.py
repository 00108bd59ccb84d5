"""The SSH transport against a real sshd: what is carried, as whom, and what is said when the connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.spec import Stream
from penstock.engines.slurm.ssh import SSHTransport
from tests.engines.conftest import until
from tests.engines.sshd import Sshd, sshd

pytestmark = [pytest.mark.real, pytest.mark.needs("sshd"), pytest.mark.needs("root")]
Body = Callable[[SSHTransport], Awaitable[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pssh-"))
    yield path
    shutil.rmtree(path)


def over(server: Sshd, folder: Path, body: Body) -> None:
    async def main() -> None:
        transport = SSHTransport(server.target(), str(folder / "ssh"), config=server.config)
        try:
            await body(transport)
        finally:
            await transport.close()

    asyncio.run(main())


async def everything(stream: Stream) -> bytes:
    parts = []
    while (data := await stream.read()) is not None:
        parts.append(data)
    return b"".join(parts)


def test_a_command_is_carried_as_it_is(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        words = ("a b", "$(touch /tmp/canary)", "`id`", "'\"\\", "new\nline", "", "*", "-n", "ü€")
        done = await transport.run(("printf", "%s\\0", *words))
        assert done.out.decode().split("\0")[:-1] == list(words)
        data = os.urandom(300_000)
        done = await transport.run(("sh", "-c", "cat; echo gone wrong >&2; exit 3"), stdin=data)
        assert (done.code, done.out, done.err) == (3, data, b"gone wrong\n")
        assert (await transport.run(("sh", "-c", "exit 255"))).code == 254
        assert len(server.connections()) == 1

    over(server, folder, body)


@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_any_words_pass_unchanged(words: list[str]) -> None:
    """What a remote shell makes of the line, asked of a shell here."""
    transport = SSHTransport("host", "/tmp")
    line = transport._argv(command=("printf", "%s\\0", "", *words))[-1]

    async def main() -> bytes:
        process = await asyncio.create_subprocess_exec("sh", "-c", line, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    assert asyncio.run(main()).decode().split("\0")[1:-1] == words


def test_others_are_acted_for(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        done = await transport.run(
            ("sh", "-c", 'id -un; id -Gn; echo "$HOME $USER $LOGNAME"; cat'), stdin=b"x", user="daemon"
        )
        assert done.out.decode().splitlines() == ["daemon", "daemon", "/usr/sbin daemon daemon", "x"]
        assert await transport.home("daemon") == "/usr/sbin"
        assert await transport.home(None) == "/root"
        with pytest.raises(Refused):
            await transport.home("no-such-user")
        assert (await transport.run(("true",), user="no-such-user")).code == 126
        with pytest.raises(Refused):
            await transport.run(("true",), user="-x; reboot")
        stream = await transport.open(("id", "-un"), user="daemon")
        assert await everything(stream) == b"daemon\n"

    over(server, folder, body)


def test_the_environment_of_slurms_commands_is_set(server: Sshd, folder: Path) -> None:
    async def main() -> None:
        transport = SSHTransport(server.target(), str(folder), config=server.config, environment={"SLURM_CONF": "/a b"})
        done = await transport.run(("sh", "-c", 'echo "$SLURM_CONF"'), user="daemon")
        assert done.out == b"/a b\n"
        await transport.close()

    asyncio.run(main())


def test_a_stream_flows_both_ways_and_ends(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        data = os.urandom(1_000_000)
        stream = await transport.open(("sh", "-c", "cat; exit 7"))

        async def feed() -> None:
            await stream.write(data)
            await stream.close_input()

        feeding = asyncio.create_task(feed())
        assert await everything(stream) == data
        await feeding
        assert await stream.wait() == 7
        await stream.close()

    over(server, folder, body)


def test_a_terminal_is_one_and_learns_its_size(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        stream = await transport.open(("sh",), tty=(91, 33))
        await stream.write(b"tty; stty size\n")
        text = b""
        while b"33 91" not in text:
            text += await stream.read() or b""
        await stream.resize(100, 40)
        while b"40 100" not in text:  # the new size travels beside what is typed
            await stream.write(b"stty size\n")
            text += await stream.read() or b""
        await stream.write(b"exit 3\n")
        text += await everything(stream)
        assert b"/dev/pts/" in text
        assert await stream.wait() == 3
        await stream.close()

    over(server, folder, body)


def commands() -> dict[int, bytes]:
    """What every process was called with."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def alive(marker: str) -> int:
    return list(commands().values()).count(f"sleep\0{marker}\0".encode())


@pytest.mark.parametrize("user", [None, "daemon"])
@pytest.mark.parametrize("tty", [None, (80, 24)])
def test_closing_a_stream_ends_its_command(
    server: Sshd, folder: Path, user: str | None, tty: tuple[int, int] | None
) -> None:
    async def body(transport: SSHTransport) -> None:
        marker = f"77{os.getpid()}.{time.monotonic_ns() % 10**6}"
        stream = await transport.open(("sleep", marker), user=user, tty=tty)
        await until(lambda: alive(marker) == 1)
        await stream.close()
        await until(lambda: alive(marker) == 0)

    over(server, folder, body)


def test_a_lost_connection_is_said_ends_streams_and_heals(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        marker = f"78{os.getpid()}.{time.monotonic_ns() % 10**6}"
        stream = await transport.open(("sleep", marker))
        hanging = asyncio.create_task(transport.run(("sleep", "60"), timeout_s=60))
        await until(lambda: alive(marker) == 1)
        await asyncio.sleep(0.3)
        server.drop()
        with pytest.raises(Unreachable):
            await hanging
        assert await stream.read() is None
        await until(lambda: alive(marker) == 0)
        assert (await transport.run(("echo", "again"))).out == b"again\n"
        await stream.close()

    over(server, folder, body)


def test_a_command_that_hangs_is_ended_on_both_sides(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        marker = f"79{os.getpid()}.{time.monotonic_ns() % 10**6}"
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"did not answer within 0\.5 s"):
            await transport.run(("sleep", marker), timeout_s=0.5)
        assert time.monotonic() - began < 10
        await until(lambda: alive(marker) == 0)
        assert (await transport.run(("echo", "there"))).out == b"there\n"

    over(server, folder, body)


def master_of(path: str) -> int:
    [found] = [pid for pid, words in commands().items() if path.encode() in words]
    return found


def test_a_dead_or_hung_master_is_replaced(server: Sshd, folder: Path) -> None:
    async def body(transport: SSHTransport) -> None:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            await transport.run(("true",))
            [path] = (folder / "ssh").iterdir()
            master = master_of(str(path))
            os.kill(master, number)
            try:
                if number == signal.SIGSTOP:
                    with pytest.raises(Unreachable):
                        await transport.run(("true",), timeout_s=0.5)
                assert (await transport.run(("echo", "new"))).out == b"new\n"
                assert (await transport.run(("echo", "new"))).err == b""
            finally:
                if number == signal.SIGSTOP:
                    os.kill(master, signal.SIGKILL)

    over(server, folder, body)


def test_more_streams_than_a_connection_takes(server: Sshd, folder: Path) -> None:
    """sshd's MaxSessions is 10: the others come by connections of their own."""

    async def body(transport: SSHTransport) -> None:
        streams = [await transport.open(("cat",)) for _ in range(14)]
        for number, stream in enumerate(streams):
            await stream.write(b"%d\n" % number)
        for number, stream in enumerate(streams):
            assert await stream.read() == b"%d\n" % number
        assert (await transport.run(("echo", "on"))).out == b"on\n"
        for stream in streams:
            await stream.close()

    over(server, folder, body)


def test_who_cannot_be_reached_is_told(server: Sshd, folder: Path) -> None:
    async def main() -> None:
        stopped = SSHTransport("root@127.0.0.1:1", str(folder), config=server.config)
        with pytest.raises(Unreachable, match="Connection refused"):
            await stopped.run(("true",))
        with pytest.raises(Unreachable, match="Connection refused"):  # at once, and with the same words
            await stopped.run(("true",))
        stranger = SSHTransport(f"root@localhost:{server.port}", str(folder), config=server.config)
        with pytest.raises(Unreachable, match=r"Host key verification failed|No ED25519 host key is known"):
            await stranger.run(("true",))
        (folder / "config").write_text(
            f"UserKnownHostsFile {server.folder}/known\nIdentityFile /nowhere\nIdentityAgent none\n"
        )
        unknown = SSHTransport(server.target(), str(folder), config=str(folder / "config"))
        with pytest.raises(Unreachable, match="Permission denied"):
            await unknown.run(("true",))

    asyncio.run(main())


def test_a_long_path_of_the_socket_is_avoided(server: Sshd, folder: Path) -> None:
    folders = []

    async def main() -> None:
        transport = SSHTransport(server.target(), str(folder / ("x" * 90)), config=server.config)
        assert (await transport.run(("echo", "on"))).out == b"on\n"
        own = transport._own_folder
        assert own is not None
        await transport.close()
        folders.append(own)

    asyncio.run(main())
    assert not Path(folders[0]).exists()


@pytest.mark.parametrize("target", ["", "-oProxyCommand=x", "a b", "u@", "@h", "h:", "u@h:99x", "u;v@h", "-l@h"])
def test_a_target_is_checked(target: str) -> None:
    with pytest.raises(ValueError, match="is not user@host"):
        SSHTransport(target, "/tmp")
