"""Recorded pages and trees, put where a source looks for them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def tree(folder: Path, name: str) -> str:
    """Unpacks a recorded tree."""
    for part in recorded(name).split("== ")[1:]:
        path, _, text = part.partition("\n")
        put(folder, path, text)
    return str(folder)


def put(folder: Path, path: str, text: str) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def statvfs(free: int = 50) -> Any:
    """Of any path: a disk of 100 GiB with ``free`` percent of it free."""

    def ask(_path: str) -> Any:
        return SimpleNamespace(f_frsize=4096, f_blocks=26_214_400, f_bavail=262_144 * free, f_files=1000, f_favail=900)

    return ask


def prints(folder: Path, text: str, code: int = 0) -> tuple[str, ...]:
    """A program that prints ``text`` and ends with ``code``."""
    file = folder / f"printed-{len(os.listdir(folder))}"
    file.write_text(text)
    return (sys.executable, "-c", f"import sys; sys.stdout.write(open({str(file)!r}).read()); sys.exit({code})")


def nvml_child(folder: Path, *answers: str) -> tuple[str, ...]:
    """A program that answers as nvml_child.py does, each question with the next of ``answers``, the last for ever."""
    file = folder / f"answers-{len(os.listdir(folder))}.json"
    file.write_text(json.dumps([answer.replace("\n", " ") for answer in answers]))
    script = (
        f"import json, sys\nanswers = json.load(open({str(file)!r}))\n"
        "for _ in sys.stdin:\n"
        "    print(answers.pop(0) if len(answers) > 1 else answers[0], flush=True)\n"
    )
    return (sys.executable, "-c", script)


@contextmanager
def page(body: bytes, *, status: int = 200, length: int | None = None) -> Iterator[str]:
    """A server that answers anything with ``body``, and says that it is ``length`` bytes long."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # the source has read enough
                return

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
