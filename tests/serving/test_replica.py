"""A replica's process as its job ends it: SIGTERM to all of its processes, while a request is being answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.serving.runtimes.spec import Options
from penstock.serving.scaling import of_replicas
from penstock.serving.told import PHASES, Told
from tests.serving.runtimes.worlds import WORLDS

SLOW = """
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            time.sleep(1.5)
        self.send_response(200); self.end_headers(); self.wfile.write(b"done")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Slow).serve_forever()
"""


@contextmanager
def replica(told: Told, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, in a group of its own, and the port that it reports once it is ready."""
    with reporting(told, folder) as (process, reports):
        ready = next(one for one in reports if one.get("serving_phase") == PHASES.index("Ready"))
        yield process, int(ready["port"])


@contextmanager
def reporting(
    told: Told, folder: Path, env: Mapping[str, str] = os.environ
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[dict[str, Any]]]]:
    """The process, and what it reports."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.serving.replica", told.to_json()],
        cwd=folder,
        env={**env, "PENSTOCK_REPORT_FD": str(writer)},
        pass_fds=(writer,),
        start_new_session=True,
    )
    os.close(writer)
    with os.fdopen(reader) as reports:
        try:
            yield process, (body.get("metrics", body) for body in map(json.loads, reports))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_command_that_knows_nothing_of_signals_answers_what_it_has_begun(tmp_path: Path) -> None:
    told = Told("files", 1, "files", runtime="command", options=Options(command=(sys.executable, "-c", SLOW, "{port}")))
    answers: list[bytes] = []
    with replica(told, tmp_path) as (process, port):

        def ask() -> None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                answers.append(answer.read())

        thread = threading.Thread(target=ask)
        thread.start()
        threading.Event().wait(0.3)
        os.killpg(process.pid, signal.SIGTERM)
        thread.join(20)
        assert answers == [b"done"]
        assert process.wait(10) == 0


def test_times_of_tokens_are_reported_as_the_last_minutes_p95(tmp_path: Path) -> None:
    world = WORLDS["vllm"]
    model, options = world.make(tmp_path), world.options(tmp_path)
    assert model is not None
    Path(model.path, "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    told = Told("llm", 1, "llm", model.path)
    with reporting(told, tmp_path, {**os.environ, **options.env}) as (_, reports):
        ready = next(one for one in reports if "waiting" in one)
        assert "ttft_p95" not in ready  # the warming request is nobody's
        for prompt in ("late", "late", "prompt"):
            body = json.dumps({"model": "llm", "prompt": prompt}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{int(ready['port'])}/v1/completions", body, timeout=20):
                pass
        report = next(one for one in reports if one.get("ttft_samples") == 3)
    assert 2.0 < report["ttft_p95"] <= 2.5
    assert of_replicas([report], "ttft") == (report["ttft_p95"], 3)


def test_a_program_that_is_not_there_is_told_as_that(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = Told("x", 1, "x", runtime="command", options=Options(command=("no-such-program", "{port}")))
    command = [sys.executable, "-m", "penstock.serving.replica", told.to_json()]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode != 0
    assert "no-such-program cannot be run: there is no such program on the PATH" in capfd.readouterr().err
