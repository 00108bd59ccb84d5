"""Inside a job's allocation: a terminal, a command, or a connection to a port, each a step of its own beside the ranks.

A step starts in the environment of the job's oldest process on that node and in its folder, so that the job's venv, its variables
and its GPUs are the session's too. What the far side says first is a line of our own, after which all is the session's.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.text import one_line
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.spec import Stream, Transport
from penstock.engines.spec import SessionRequest

OPEN_S = 60.0  # for a step to start
_SEE = "See `penstock describe` for what the job runs and where."
# What torchrun tells a rank is not told to a session: a script that sees RANK would wait for the others.
_RANKS_OWN = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME "
    "TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_RUN_ID TORCHELASTIC_USE_AGENT_STORE "
    "PENSTOCK_REPORT_FD"
)
# srun's own words are of use only where it started nothing; that a command failed is told by its exit code.
_SRUN = r"""
exec 3>&1
said=$(srun "$@" 2>&1 >&3 3>&-); code=$?
case $said in *": task 0: "*) ;; *) [ -z "$said" ] || printf '%s\n' "$said" ;; esac
exit "$code"
"""
# $1: the word before ours, $2: Penstock's id of the job, $3: the terminal's kind, or nothing; then the command.
_ENTER = (
    r"""
exec 2>&1
word=$1 job=$2 term=$3; shift 3
oldest=$(grep -lzx -- "PENSTOCK_JOB_ID=$job" /proc/[0-9]*/environ 2>/dev/null | sort -t/ -k3n | head -n 1)
if [ -n "$oldest" ]; then
  eval "$(sed -z -n "s/'/'\\\\''/g; s/^\([A-Za-z_][A-Za-z0-9_]*\)=\(.*\)\$/export \1='\2'/p" "$oldest" | tr '\0' '\n')"
  cd "${oldest%environ}cwd/" 2>/dev/null && cd "$(pwd -P)"
fi
unset """
    + _RANKS_OWN
    + r"""
[ -z "$term" ] || export TERM="$term"
"""
)
_COMMAND = r"""
case $1 in */*) place=$1 ;; *) place=$(command -v -- "$1") ;; esac
if [ -z "$place" ] || [ ! -e "$place" ]; then case $place in ''|*/*) echo "$word missing"; exit 127 ;; esac; fi
case $place in */*) if [ ! -x "$place" ] || [ -d "$place" ]; then echo "$word denied"; exit 126; fi ;; esac
echo "$word in"
exec "$@"
"""
# A port of the node: whatever is there that can pass bytes both ways. Only socat and Python pass on an end of input.
_PORT = r"""
listening=
hex=:$(printf %04X "$1")
for table in /proc/net/tcp /proc/net/tcp6; do
  [ -r "$table" ] || continue
  while IFS=' ' read -r row here there state rest; do
    case $here$state in *"$hex"0A) listening=1 ;; esac
  done <"$table"
done
[ -n "$listening" ] || { echo "$word silent"; exit 1; }
exec 2>/dev/null
if command -v socat >/dev/null; then
  echo "$word in"; exec socat - "TCP:localhost:$1"
elif command -v python3 >/dev/null; then
  echo "$word in"
  exec python3 -c '
import os, socket, sys, threading
link = socket.create_connection(("localhost", int(sys.argv[1])))
def inward():
    while data := os.read(0, 65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=inward, daemon=True).start()
while data := link.recv(65536):
    while data:
        data = data[os.write(1, data):]
os._exit(0)
' "$1"
elif command -v bash >/dev/null; then
  echo "$word in"
  exec bash -c 'exec 3<>"/dev/tcp/localhost/$1" 4<&0; cat <&4 >&3 & cat <&3; kill $!' bash "$1"
elif command -v nc >/dev/null; then
  echo "$word in"; exec nc localhost "$1"
fi
echo "$word helpless"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A running Slurm job, as it is entered. ``nodes``: Slurm's names, in the order of node ranks."""

    slurm_job: int
    job_id: str  # Penstock's
    user: str | None
    nodes: tuple[str, ...]


class SlurmSession:
    """A step's stream, once it has said that it is inside."""

    def __init__(self, stream: Stream, rest: bytes, *, port: bool) -> None:
        self._stream = stream
        self._rest = rest
        self._port = port

    async def receive(self) -> bytes | None:
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return await self._stream.read()

    async def send(self, data: bytes) -> None:
        await self._stream.write(data)

    async def resize(self, cols: int, rows: int) -> None:
        await self._stream.resize(cols, rows)

    async def close_input(self) -> None:
        await self._stream.close_input()

    async def wait(self) -> int | None:
        code = await self._stream.wait()
        return None if self._port else code

    async def close(self) -> None:
        """End the step, and whatever runs in it."""
        await self._stream.close()


async def open_session(transport: Transport, place: Place, request: SessionRequest) -> SlurmSession:
    """Raises InvalidInput, NotFound (no such program, or the job does not run any more), Conflict, Unreachable."""
    if request.port is None and not request.command:
        raise InvalidInput("no command was given", details=[Problem("command", "give at least one word")])
    node = request.node or place.nodes[0]
    if node not in place.nodes:
        raise Conflict(f"the job has no part on {node}: it runs on {', '.join(place.nodes)}", hint=_SEE)
    tty = (request.cols, request.rows) if request.tty and request.port is None else None
    word = f"penstock-{secrets.token_hex(8)}"
    stream = await transport.open(_entered(place, node, request, word), user=place.user, tty=tty)
    try:
        said, rest = await _first_word(stream, word)
    except BaseException:
        await stream.close()
        raise
    if said == "in":
        return SlurmSession(stream, rest, port=request.port is not None)
    await stream.close()
    raise _refusal(said, request, node)


def step(place: Place, node: str, command: Sequence[str], *, name: str, tty: bool = False) -> tuple[str, ...]:
    """Words that run a command beside the ranks on one node of the job, and end it when they are ended."""
    return (
        *("sh", "-c", _SRUN, "srun", f"--jobid={place.slurm_job}", "--overlap", "--nodes=1", "--ntasks=1"),
        *(f"--nodelist={node}", f"--job-name={name}", "--quiet", "--unbuffered", "--mpi=none", "--cpu-bind=none"),
        *("--chdir=/", "--export=PATH,LANG", *(("--pty",) if tty else ())),
        *command,
    )


def _entered(place: Place, node: str, request: SessionRequest, word: str) -> tuple[str, ...]:
    terminal = request.tty and request.port is None
    script = _ENTER + (_COMMAND if request.port is None else _PORT)
    words = request.command if request.port is None else (str(request.port),)
    entering = ("/bin/sh", "-c", script, "sh", word, place.job_id, "xterm-256color" if terminal else "", *words)
    return step(place, node, entering, name="penstock-session", tty=terminal)


async def _first_word(stream: Stream, word: str) -> tuple[str, bytes]:
    """What the step said of itself, and what came after it."""
    told = re.compile(rb"(?:^|\n)%b (\w+)\r?\n" % word.encode())
    heard = b""
    try:
        async with asyncio.timeout(OPEN_S):
            while (found := told.search(heard)) is None:
                data = await stream.read()
                if data is None:
                    raise _not_started(heard)
                heard = (heard + data)[-(1 << 16) :]
    except TimeoutError:
        raise Unreachable(f"Slurm started nothing within {OPEN_S:.0f} s inside the job") from None
    return found[1].decode(), heard[found.end() :]


def _not_started(heard: bytes) -> NotFound | Conflict:
    """What srun says instead: most often that the job is over."""
    words = one_line(heard.decode("utf-8", "replace").replace("srun: error: ", ""))
    if re.search(r"(?i)invalid job id|job/step already complet|expired|no allocation|job .* not running", words):
        return NotFound("the job is not running: there is nothing to enter")
    return Conflict(f"Slurm starts nothing inside the job: {words or 'it did not say why'}", hint=_SEE)


def _refusal(said: str, request: SessionRequest, node: str) -> NotFound | Conflict:
    program = request.command[0] if request.command else ""
    match said:
        case "missing":
            return NotFound(
                f"{program!r} was not found in the job's environment",
                hint="Name the program by its path, or enter with `sh` and look for it.",
            )
        case "denied":
            return Conflict(f"this user may not execute {program}", hint=_SEE)
        case "silent":
            return Conflict(f"nothing on {node} listens on port {request.port} (yet)", hint=_SEE)
        case _:
            return Conflict(
                f"{node} has none of socat, python3, bash and nc: a port cannot be reached there",
                hint="Install socat on the nodes, or have the job's environment bring python3.",
            )
