"""A replica that can be made bad, and callers that come evenly: processes of serving_rollout_live.py.

`replica MS ERRORS WRONG [PORT]` answers each request after about so many milliseconds (lognormal), a share of what is posted with
500 and a share with another answer; `load PORT REQUESTS PATH...` asks so many a second of each path until it is told to stop (SIGTERM).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import sys

import uvloop

from benchmarks.serving_upstream import Replica

SPREAD = 0.2
EACH = 10  # requests a second on one connection, which waits for nobody's answer but its own


class Way(Replica):
    errors = 0.0
    wrong = 0.0
    median = 0.0

    def data_received(self, data: bytes) -> None:
        self.errors_now = 0.0 if data.startswith(b"GET") else self.errors
        Replica.delay = self.median * math.exp(random.gauss(0.0, SPREAD))
        super().data_received(data)

    def answer(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        if random.random() < self.errors_now:
            self.transport.write(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")
            return
        value = 0.5 if random.random() < self.wrong else 0.25
        body = json.dumps({"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "data": [value]}]}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


async def replica(median: str, errors: str, wrong: str, port: str = "0") -> None:
    Way.median, Way.errors, Way.wrong = float(median) / 1000, float(errors), float(wrong)
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(Way, "127.0.0.1", int(port))
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


async def calls(port: int, path: str, told: asyncio.Event, first: float) -> None:
    """One connection: a request each tenth of a second, or as soon as the last was answered."""
    body = b'{"inputs": []}'
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    loop = asyncio.get_running_loop()
    await asyncio.sleep(first)
    while not told.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            due = loop.time()
            while not told.is_set():
                writer.write(request)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
                due = max(due + 1 / EACH, loop.time())
                await asyncio.sleep(due - loop.time())
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.1)


async def load(port: str, requests: str, *paths: str) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    each = int(requests) // EACH
    print("begun", flush=True)
    await asyncio.gather(*(calls(int(port), path, told, n / EACH / each) for path in paths for n in range(each)))


if __name__ == "__main__":
    uvloop.run(replica(*sys.argv[2:]) if sys.argv[1] == "replica" else load(*sys.argv[2:]))
