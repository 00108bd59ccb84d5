"""An S3 server (moto's) on a free port of this machine, which can be told to refuse, to hang, or to cut the answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


class S3Server:
    """``faults`` is consumed one a request: ``503`` answers so, a float waits so many seconds, None serves.

    ``always`` holds for every request whose method it names.
    """

    def __init__(self) -> None:
        self.faults: deque[int | float | None] = deque()
        self.always: dict[str, int | float] = {}
        self.asked: list[tuple[str, str]] = []
        self._store = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def puts(self) -> list[str]:
        return [path for method, path in self.asked if method == "PUT"]

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.asked.append((method, environ["PATH_INFO"]))
        fault = self.always.get(method) or (self.faults.popleft() if self.faults else None)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            start(f"{fault} Slow Down", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        answer: Iterable[bytes] = self._store(environ, start)
        return answer
