"""``make demo``: a 2-rank training loses a rank halfway, comes back from its checkpoint, and everything is accounted for; then its
model is served, replaced by a better one under traffic, and a bad one is thrown out by itself (demo_serving.py); and a rank is
made slow for real, and the diagnosis names it (demo_diagnosis.py).

Starts a server in a temporary data folder, does what a person would do (each command is shown as one would type it),
asserts what must be true, and leaves nothing behind; with ``--keep`` the server stays for the browser. Needs no network,
no Docker and no GPU. Exits non-zero, with the server's last words, where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from penstock.base.errors import PenstockError
from penstock.client.client import Client
from tools.demo_diagnosis import Diagnosed, end_job
from tools.demo_serving import Serving, end_service

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link out of it
JOB = "digits"
VICTIM = 1  # the rank that is killed
ACCURACY = 0.97
TIME_LIMIT_S = 600.0  # for all of it, however busy the machine; on a quiet one it takes half a minute
FINAL = frozenset({"Succeeded", "Failed", "Cancelled"})


class DemoFailedError(Exception):
    """What was not as it should be."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", action="store_true", help="leave the server running, and say how to reach and stop it"
    )
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, _interrupt)
    demo = Demo(Story())
    left = False
    try:
        code = perform(demo)
        if keep and code == 0:
            demo.leave()
            left = True
    finally:  # also when nobody reads any more what is said (a broken pipe)
        if not left:
            demo.clean()
    if code == 0 and not left:
        demo.story.say("The server is stopped and its folder removed. `make demo KEEP=1` leaves it running.")
    return code


def perform(demo: Demo) -> int:
    """The exit code, after what went wrong was told."""
    try:
        demo.play()
    except KeyboardInterrupt:
        demo.story.say("\nInterrupted: ending the job, stopping the server, removing the folder.")
        return 130
    except BrokenPipeError:  # `make demo | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (DemoFailedError, PenstockError, OSError, subprocess.SubprocessError) as error:
        demo.story.failure(f"{type(error).__name__}: {error}", demo.log)
        return 1
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Story:
    """What the reader sees: numbered steps, commands, quoted output, and one live line on a terminal."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.color = self.live and not os.environ.get("NO_COLOR")
        self.began = time.monotonic()
        self.steps = 0
        self._shown = -1
        self._drawn = False

    def step(self, title: str) -> None:
        self.steps += 1
        self.say("\n" + self._paint("1", f"{self.steps}. {title}"))

    def say(self, text: str) -> None:
        if self._drawn:
            sys.stdout.write("\r\x1b[K")
            self._drawn = False
        print(text, flush=True)

    def command(self, words: list[str]) -> None:
        self.say(self._paint("36", f"   $ {shlex.join(words)}"))

    def quote(self, text: str) -> None:
        for line in text.rstrip("\n").splitlines():
            self.say(f"     {line}")

    def good(self, text: str) -> None:
        self.say(self._paint("32", "   ok ") + text)

    def bad(self, text: str) -> None:
        self.say(self._paint("31", "   !! ") + text)

    def progress(self, status: dict[str, Any]) -> None:
        """A bar that moves in place on a terminal; elsewhere a line at every tenth."""
        now = status.get("progress") or {}
        step, total = now.get("step"), now.get("total_steps")
        if not step or not total:
            return
        rate, loss = now.get("rate"), (now.get("metrics") or {}).get("loss")
        words = f"step {step:>4}/{total}" + (f"  loss {loss:.3f}" if loss is not None else "")
        words += f"  {rate:.0f} steps/s" if rate else ""
        filled = min(30, round(30 * step / total))
        if self.live:
            sys.stdout.write("\r\x1b[K   " + self._paint("32", "█" * filled) + "░" * (30 - filled) + f"  {words}")
            sys.stdout.flush()
            self._drawn = True
        elif step * 10 // total != self._shown:
            self._shown = step * 10 // total
            self.say(f"   {'#' * filled}{'.' * (30 - filled)}  {words}")

    def failure(self, what: str, log: Path) -> None:
        self.say("")
        self.bad(f"the demo failed: {what}")
        if log.exists():
            self.say(f"   the end of the server's log ({log}):")
            self.quote("\n".join(log.read_text(errors="replace").splitlines()[-40:]))

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text


class Demo:
    """The server, its folder, and the one job."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.deadline = time.monotonic() + TIME_LIMIT_S
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
        self.folder.chmod(0o711)  # jobs of an unprivileged user pass through it
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.server: subprocess.Popen[bytes] | None = None
        self.env = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PENSTOCK_DATA_DIR": str(self.data),
            "COLUMNS": "110",
        }
        for name in ("PENSTOCK_URL", "PENSTOCK_TOKEN", "PENSTOCK_PROJECT", "PENSTOCK_DATABASE_URL"):
            self.env.pop(name, None)

    def play(self) -> None:
        self.start()
        self.submit()
        with Client(data_dir=str(self.data)) as client:
            job = self.follow(client, until=self._halfway)
            killed_at = self.kill(job)
            self.recover(client, killed_at)
            self.follow(client, until=lambda job: job.phase in FINAL)
            self.check(client, killed_at)
            self.account()
            Serving(self, client, self.folder / "early.pt", self.weights()).play()
            Diagnosed(self, client).play()
        self.story.say(f"\nAll of it took {time.monotonic() - self.story.began:.0f} s.")

    # ---------------------------------------------------------------------------------------------------- the steps

    def start(self) -> None:
        self.story.step("A server: API, console and reconcilers in one process, its data in one folder")
        words = ["penstock", "up", "--data-dir", str(self.data), "--port", "0", "--gateway-port", str(free_port())]
        self.story.command(words)
        began = time.monotonic()
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [str(BIN / "penstock"), *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        url = self.wait("the server to be ready", self._address)
        self.story.good(f"ready after {time.monotonic() - began:.1f} s; the console is at {url}")

    def submit(self) -> None:
        self.story.step("A job: 2 ranks, real digits, an unmodified PyTorch script and ten lines of YAML")
        self.cli("apply", "-f", "examples/digits/job.yaml", quote=True)
        self.story.say("   It waits for nobody, so it is placed at once. Training:")

    def kill(self, job: Any) -> int:
        step = int(job.status["progress"]["step"])
        self.story.step(f"Halfway, at step {step}, rank {VICTIM} dies: SIGKILL, no warning")
        pid = self.wait("the rank's process", lambda: rank_process(job["id"], VICTIM))
        self.story.command(["kill", "-9", str(pid)])
        os.kill(pid, signal.SIGKILL)
        shutil.copy(self.weights(), self.folder / "early.pt")
        return step

    def recover(self, client: Client, killed_at: int) -> None:
        began = time.monotonic()
        job = self.wait("the job to be restarted", lambda: self._restarted(client))
        self.story.good(
            f"seen, and restarted after {time.monotonic() - began:.1f} s (attempt {job.status['attempt']}, "
            f"restart {job.status['restarts']} of the 3 it may have); the ranks load PyTorch again"
        )
        line = self.wait("the ranks to resume", lambda: self._resumed(client))
        resumed = int(line.group(1))
        if not 0 < resumed <= killed_at + 10:
            raise DemoFailedError(f"it was killed at about step {killed_at} and resumed at step {resumed}")
        self.story.good(f"resumed at step {resumed}, its last checkpoint")

    def check(self, client: Client, killed_at: int) -> None:
        self.story.step("The end: is everything as it should be?")
        job = client.jobs.get(JOB)
        log = self._log(client)
        self.require(job.phase == "Succeeded", f"the job's phase is {job.phase}")
        scores = re.findall(r"test accuracy (\d\.\d+)", log)
        said = scores[-1] if scores else "missing"
        self.require(
            len(scores) == 1 and float(said) >= ACCURACY,
            f"test accuracy {said} on 360 images that the training never saw (at least {ACCURACY})",
        )
        reasons = [event["reason"] for event in client.jobs.events(JOB)]
        self.require("RankExited" in reasons, "an event tells that the rank exited")
        self.require(
            any(reason in reasons for reason in ("RankRestarted", "Restarting")), "an event tells that it was restarted"
        )
        resumed = int(re.findall(r"resumed at step (\d+)", log)[-1])
        self.require(resumed > 0, f"the work of {resumed} of the {killed_at} steps before the kill was kept")

    def account(self) -> None:
        self.story.step("What happened, and why")
        self.cli("events", JOB, quote=True)
        self.cli("why", JOB, quote=True)
        self.story.step("All there is to know of it")
        self.cli("describe", JOB, quote=True)
        self.story.step("What it cost, and whether anybody has touched the ledger")
        report = self.cli("cost", "report", quote=True)
        self.require(bool(re.search(r"\d\.\d+", report)), "its usage is priced")
        audit = self.cli("audit", "verify", quote=True)
        self.require(audit.startswith("ok"), "the ledger's chain of hashes is whole")

    # ------------------------------------------------------------------------------------------------------ the end

    def leave(self) -> None:
        server = self.server.pid if self.server else 0
        self.story.step("It stays for your browser")
        self.story.say(f"   Console:   {self._address()}")
        self.story.say(f"   Token:     cat {self.data / 'token'}   (paste it where the console asks)")
        self.story.say(f"   CLI:       export PENSTOCK_DATA_DIR={self.data} PATH={BIN}:$PATH; penstock get")
        self.story.say(f"   Stop it:   penstock serving delete digits; sleep 5; kill {server}; rm -r {self.folder}")

    def clean(self) -> None:
        """Ends the job first: jobs outlive their server, on purpose."""
        with _undisturbed():
            if self.server and self.server.poll() is None:
                with suppress(PenstockError, OSError, DemoFailedError):
                    self._end_job()
                self.server.terminate()
                try:
                    self.server.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    self.server.kill()
                    self.server.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end_job(self) -> None:
        with Client(data_dir=str(self.data)) as client:
            self.deadline = time.monotonic() + 20
            end_service(self, client)
            end_job(client)
            if client.jobs.get(JOB).phase not in FINAL:
                client.jobs.cancel(JOB, reason="the demo ends")
                self.deadline = time.monotonic() + 20
                self.wait("the job to end", lambda: client.jobs.get(JOB).phase in FINAL)

    # -------------------------------------------------------------------------------------------------- what it asks

    def follow(self, client: Client, until: Callable[[Any], bool]) -> Any:
        def look() -> Any:
            job = client.jobs.get(JOB)
            self.story.progress(job.status)
            if job.phase in FINAL and not until(job):
                raise DemoFailedError(
                    f"the job is {job.phase} ({job.status.get('message')}):\n{self._log(client)[-3000:]}"
                )
            return job if until(job) else None

        return self.wait("the training", look, every=0.2)

    def cli(self, *words: str, quote: bool = False) -> str:
        self.story.command(["penstock", *words])
        done = subprocess.run(
            [str(BIN / "penstock"), *words],
            capture_output=True,
            text=True,
            env=self.env,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
        if quote:
            self.story.quote(done.stdout)
        if done.returncode:
            raise DemoFailedError(f"`penstock {words[0]}` exited with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def python(self, *words: str, quiet: bool, path: Path) -> str:
        """Runs what a person would run beside train.py; ``path`` is looked into for modules too. The last line that it prints."""
        if not quiet:
            self.story.command(["python", *words])
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=ROOT / "examples/digits", timeout=300, check=False,
            env=self.env | {"TMPDIR": str(self.folder), "PYTHONPATH": f"{path}{os.pathsep}{ROOT / 'examples/digits'}"},
        )  # fmt: skip
        if done.returncode:
            raise DemoFailedError(
                f"`python {shlex.join(words)}` exited with {done.returncode}: {done.stderr.strip()[-2000:]}"
            )
        return done.stdout.strip().splitlines()[-1]

    def weights(self) -> Path:
        """The job's last checkpoint."""
        return next(self.data.glob("jobs/*/checkpoints/last.pt"))

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise DemoFailedError(f"this does not hold: {what}")
        self.story.good(what)

    def wait(self, what: str, look: Callable[[], Any], *, every: float = 0.1) -> Any:
        """What ``look`` finds, as soon as it finds something. Raises DemoFailedError when the time is up."""
        while not (found := look()):
            if self.server is None or self.server.poll() is not None:
                raise DemoFailedError(f"the server ended while waiting for {what}")
            if time.monotonic() > self.deadline:
                raise DemoFailedError(f"waited too long for {what}")
            time.sleep(every)
        return found

    def _address(self) -> str | None:
        found = re.search(r"ready: (https?://\S+)", self.log.read_text(errors="replace"))
        return found.group(1) if found else None

    @staticmethod
    def _halfway(job: Any) -> bool:
        progress = job.status.get("progress") or {}
        return bool(progress.get("total_steps")) and progress["step"] * 2 >= progress["total_steps"]

    def _restarted(self, client: Client) -> Any:
        job = client.jobs.get(JOB)
        if job.status.get("restarts"):
            return job  # it may have ended well by now: a quick machine needs some seconds for what is left
        if job.phase in FINAL:
            raise DemoFailedError(self._autopsy(client, job))
        return None

    def _autopsy(self, client: Client, job: Any) -> str:
        happened = [f"{event['reason']}: {event['message']}" for event in client.jobs.events(JOB)]
        with client.jobs.logs(JOB, tail=40) as log:
            words = log.read().decode(errors="replace")
        message = f"{job.reason}: {job.status.get('message')}"
        return "\n".join([f"the job is {job.phase} ({message})", *happened, "the end of its log:", words])

    def _resumed(self, client: Client) -> re.Match[str] | None:
        self._restarted(client)
        return re.search(r"resumed at step (\d+)", self._log(client))

    @staticmethod
    def _log(client: Client) -> str:
        with client.jobs.logs(JOB) as log:
            return log.read().decode(errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_process(job_id: str, rank: int) -> int | None:
    """The pid of a rank: the process that runs train.py and was told this job and this rank."""
    wanted = {f"PENSTOCK_JOB_ID={job_id}".encode(), f"RANK={rank}".encode()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                told = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or belongs to somebody else
                continue
            if words[1:2] == [b"train.py"] and wanted <= set(told):
                return int(entry.name)
    return None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the cleaning."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


if __name__ == "__main__":
    sys.exit(main())
