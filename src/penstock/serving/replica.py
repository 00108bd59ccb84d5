"""The process inside a replica's job: it starts the runtime, says where it listens once it has answered a first request, and
drains it when it is told to end.

    python -m penstock.serving.replica '{"service": ..., "model": ...}'

It waits for signals alone (sigtimedwait); a thread of its own asks the runtime whether it is ready, and warms it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.engines.local.kernel import die_with
from penstock.serving import formats
from penstock.serving.fitness import fit
from penstock.serving.recent import Recent
from penstock.serving.runtimes.known import runtime
from penstock.serving.runtimes.spec import Launch, Load, Model, Ports, Request, Runtime
from penstock.serving.told import OWN, PHASES, REFUSED, Told, ended
from penstock.worker.report import report

_BEGAN = time.time()
_WAKE = signal.SIGUSR1  # from the thread: something is to be told
_HEARD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, _WAKE})
_ASK_S = 0.02  # between two questions whether the runtime is ready; it grows to _ASK_LIMIT_S
_ASK_LIMIT_S = 0.5
_QUIET_S = 0.5  # nothing is reported of a young replica before: the first report of all is passed on at once
_REPORT_S = 1.0
_LINGER_S = 1.0  # after SIGTERM: until then the gateway has heard of it
_POLL_S = 0.05
_ESTABLISHED = "01"  # Linux: include/net/tcp_states.h
_ANSWER = 16 << 20  # bytes of an answer that are read
_WARMING_S = 600.0


class Refused(Exception):
    """The model is not served, and why."""


def main(argv: Sequence[str]) -> int:
    told = Told.from_json(argv[0])
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    try:
        replica = Replica(told)
    except Refused as error:
        _say(str(error))
        return REFUSED
    return replica.run()


class Replica:
    """One runtime's process, from its start to its end."""

    def __init__(self, told: Told) -> None:
        """Raises Refused."""
        self.told = told
        self.model, name = _model(told)
        self.runtime: Runtime = runtime(name, told.health)
        self.ports = _free_ports(told.host)
        self.phase = PHASES.index("Starting")
        self.stages: dict[str, float] = {"queued": max(0.0, _BEGAN - told.submitted_at)} if told.submitted_at else {}
        self.process: subprocess.Popen[bytes] | None = None
        self.failed = ""  # why the thread gave up
        self._recent = {"ttft": Recent(), "tpot": Recent()}
        self._began = time.monotonic()
        self._reported_at = 0.0

    def run(self) -> int:
        """The job's exit code."""
        launch = self.runtime.launch(self.model, self.told.options, self.ports, os.getcwd())
        self.process = _start(launch, deaf=self.runtime.name == "command")
        self.stages["started"] = time.time() - _BEGAN
        threading.Thread(target=self._prepare, daemon=True).start()
        while True:
            seen = signal.sigtimedwait(_HEARD, _REPORT_S if self.phase else _QUIET_S)
            code = self.process.poll()
            if code is not None:
                return self._ended(code)
            if seen is not None and seen.si_signo in (signal.SIGTERM, signal.SIGINT):
                return self._drain(self.process)
            if self.failed:
                _say(self.failed)
                return self._end(self.process, 0.0) or 1
            self._report(at_once=seen is not None and seen.si_signo == _WAKE)

    def _prepare(self) -> None:
        """In a thread: wait until the model is loaded, have it compute once, and say so."""
        try:
            loaded_from = time.monotonic()
            wait = _ASK_S
            while not _ok(self._ask(self.runtime.ready(self.model), 2.0)):
                time.sleep(wait)
                wait = min(wait * 1.1, _ASK_LIMIT_S)
            self.stages["loaded"] = time.monotonic() - loaded_from
            self.phase = PHASES.index("Warming")
            self._warm()
            self.phase = PHASES.index("Ready")
        except Exception as error:  # the thread's edge: what stopped it ends the replica, with its words
            self.failed = f"the first request failed: {error}"
        os.kill(os.getpid(), _WAKE)

    def _warm(self) -> None:
        """Raises Refused for an answer that is none."""
        began = time.monotonic()
        described: Mapping[str, object] = {}
        asked = self.runtime.describe(self.model)
        if asked is not None:
            status, body = self._ask(asked, 30.0)
            if status == 200:
                with contextlib.suppress(ValueError):
                    described = json.loads(body)
        first = self.runtime.warming(self.model, described)
        if first is not None:
            status, body = self._ask(first, _WARMING_S)
            if not 200 <= status < 300:
                said = body[:500].decode(errors="replace")
                raise Refused(f"{first.method} {first.path} was answered with {status}: {said}")
        self.stages["warmed"] = time.monotonic() - began

    def _ask(self, request: Request, timeout: float) -> tuple[int, bytes]:
        """Status and body; status 0 where nobody answers yet."""
        host = "127.0.0.1" if self.ports.host == "0.0.0.0" else self.ports.host  # noqa: S104 - compared, not bound
        port = self.ports.metrics if request.port == "metrics" else self.ports.http
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request(request.method, request.path, request.body or None, dict(request.headers))
            answer = connection.getresponse()
            return answer.status, answer.read(_ANSWER)
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def _report(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and (now - self._reported_at < _REPORT_S or now - self._began < _QUIET_S):
            return
        self._reported_at = now
        load = Load()
        page = self.runtime.metrics() if self.phase == PHASES.index("Ready") and not at_once else None
        if page is not None:
            status, body = self._ask(page, 1.0)
            load = self.runtime.load(body.decode(errors="replace")) if status == 200 else load
        metrics = {
            "serving_phase": self.phase,
            "port": self.ports.http,
            "grpc_port": self.ports.grpc if self.runtime.grpc else 0,
            "metrics_port": self.ports.metrics,
            **{f"{stage}_s": round(seconds, 4) for stage, seconds in self.stages.items()},
            **_figures(load),
            **self._of_tokens(load, now),
        }
        if self.process is not None:
            metrics["memory_bytes"] = _memory(self.process.pid)
        report(**metrics)

    def _of_tokens(self, load: Load, now: float) -> dict[str, float]:
        """P95 of the last minute, and of how many, where the runtime counts them."""
        told: dict[str, float] = {}
        for name, total in (("ttft", load.ttft), ("tpot", load.tpot)):
            found = self._recent[name].take(now, total) if total.bounds else None
            if found is not None:
                told |= {f"{name}_p95": found[0], f"{name}_samples": found[1]}
        return told

    def _drain(self, process: subprocess.Popen[bytes]) -> int:
        """Until the gateway has let go of its connections, or the time is over; then the runtime is told to end."""
        self.phase = PHASES.index("Draining")
        self._report(at_once=True)
        began = time.monotonic()
        ports = {self.ports.http, self.ports.grpc}
        while (passed := time.monotonic() - began) < max(self.told.drain, _LINGER_S):
            if process.poll() is not None:
                return 0
            if passed >= _LINGER_S and not _connections(ports):
                break
            time.sleep(_POLL_S)
        return self._end(process, self.runtime.grace)

    def _end(self, process: subprocess.Popen[bytes], grace: float) -> int:
        """0: it was told to."""
        if _deaf(process.pid):  # it has answered what it had: nothing is lost
            process.kill()
        process.terminate()
        try:
            process.wait(max(grace, 0.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return 0

    def _ended(self, code: int) -> int:
        _say(ended(self.runtime.name, code, ready=self.phase == PHASES.index("Ready")))
        return code if 0 < code < 128 else 1


def _say(words: str) -> None:
    print(f"{OWN}{words}", file=sys.stderr, flush=True)


def _model(told: Told) -> tuple[Model | None, str]:
    """The model and its runtime's name. Raises Refused."""
    if told.model is None:
        return None, _fit(None, told)
    try:
        found = formats.tell(os.path.abspath(told.model))
    except OSError as error:
        raise Refused(f"the model {told.model} cannot be read: {error.strerror}") from error
    return Model(told.model_name, told.version, found.path, found.format), _fit(found, told)


def _fit(found: formats.Found | None, told: Told) -> str:
    """The runtime's name. Raises Refused."""
    name, problems = fit(found, told.runtime, told.options, pickles=told.pickles)
    if problems:
        raise Refused("; ".join(f"{problem.path}: {problem.message}" for problem in problems))
    return name


def _free_ports(host: str) -> Ports:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in held:
            one.bind((host, 0))
        http_port, grpc_port, metrics_port = (int(one.getsockname()[1]) for one in held)
        return Ports(http_port, grpc_port, metrics_port, host)


def _start(launch: Launch, *, deaf: bool) -> subprocess.Popen[bytes]:
    """``deaf``: SIGTERM, which a job's end sends to all of its processes, is ignored unless the program handles it: one that does not
    would drop what it has begun. Raises Refused.
    """
    for name, data in launch.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    parent = os.getpid()

    def child() -> None:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        die_with(parent)

    try:
        return subprocess.Popen(list(launch.argv), env={**os.environ, **launch.env}, preexec_fn=child)  # noqa: PLW1509 - no thread yet
    except OSError as error:
        there = shutil.which(launch.argv[0], path={**os.environ, **launch.env}.get("PATH"))
        why = error.strerror if there else "there is no such program on the PATH"
        raise Refused(f"{launch.argv[0]} cannot be run: {why}") from error


def _ok(answer: tuple[int, bytes]) -> bool:
    return answer[0] == 200


def _figures(load: Load) -> dict[str, float]:
    """What the runtime says of its work, as plain numbers."""
    told = {
        "running": load.running,
        "waiting": load.waiting,
        "queue_s": load.queue_s,
        "compute_s": load.compute_s,
        "memory_used": load.memory_used,
    }
    batches = {f"batch_{size}": count for size, count in sorted(load.batches.items())[:24]}
    return {name: value for name, value in told.items() if value is not None} | batches


def _deaf(pid: int) -> bool:
    """Whether a process ignores SIGTERM."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    except (OSError, ValueError, StopIteration):
        return False
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


def _memory(pid: int) -> int:
    """Resident bytes; 0 where that is not told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _connections(ports: set[int]) -> int:
    """Connections to these ports that somebody still holds."""
    count = 0
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}", encoding="ascii") as file:
            for line in file.readlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                count += state == _ESTABLISHED and int(local.rpartition(":")[2], 16) in ports
    return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
