"""A program that answers as vLLM does: vllm_replies.json has its replies, written down from the source of the release it names
(its build for processors needs AVX-512, so that no other machine can record one).

A prompt ``slow`` takes a second, as many tokens do; ``late`` is one whose first token is counted as having taken two. SIGTERM: it answers what it has begun and ends, as vLLM does when it is
told to wait (`--shutdown-timeout`).
"""

from __future__ import annotations

import http.server
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

REPLIES: dict[str, Any] = json.loads((Path(__file__).with_name("vllm_replies.json")).read_text())
LOADING_S = 0.5
FIRST_TOKENS: list[float] = []


class Replies(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.path, None)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("prompt") == "slow":
            time.sleep(1.0)
        FIRST_TOKENS.append(2.0 if asked.get("prompt") == "late" else 0.04)
        self._answer(self.path, asked)

    def _answer(self, path: str, asked: dict[str, Any] | None) -> None:
        if asked is not None and asked.get("model") != NAME:
            path = "unknown-model"
        found = REPLIES["replies"].get(path, REPLIES["replies"]["unknown-path"])
        body = found["body"].replace(REPLIES["model"], NAME).encode()
        if path == "/metrics":
            body += times().encode()
        self.send_response(found["status"])
        self.send_header("content-type", found["type"])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def times() -> str:
    """The histogram of first tokens, in some of its buckets."""
    labels = f'engine="0",model_name="{NAME}"'
    bounds = (0.02, 0.06, 0.25, 1.0, 2.5, float("inf"))
    counts = ((bound, sum(took <= bound for took in FIRST_TOKENS)) for bound in bounds)
    name = "vllm:time_to_first_token_seconds_bucket"
    return "".join(
        f'{name}{{{labels},le="{str(bound).replace("inf", "+Inf")}"}} {count}.0\n' for bound, count in counts
    )


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


assert sys.argv[1] == "serve", sys.argv
NAME = option("--served-model-name")
time.sleep(LOADING_S)
server = http.server.ThreadingHTTPServer((option("--host"), int(option("--port"))), Replies)
server.daemon_threads = False  # what was begun is answered before the end
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
