"""``python -m penstock.serving.comparator --port N --folder F``: asks a candidate what the stable version was asked, and compares.

Envoy sends it copies of requests and answers (extproc.py) and waits for nothing, so callers never meet it. What comes faster
than the candidate answers is dropped and counted. Its counts lie in a file for each service, which it reads again when it
starts: a death loses half a second of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from penstock.serving import compare
from penstock.serving.asking import Candidate, Failed, Question
from penstock.serving.extproc import Kind, Part, decoded
from penstock.serving.judging import Judge, Unjudged
from penstock.serving.orders import SERVICE_HEADER, Folder, Orders, Shadow, named
from penstock.serving.processes import told
from penstock.serving.reply import Reply, shown
from penstock.serving.shadowed import Tally
from penstock.serving.state import WHOLE

log = logging.getLogger("penstock.comparator")

PREFIX_HEADER = "x-penstock-prefix"  # what the route takes off the path
ORDERS, SEEN = "orders", "seen"
WRITE_S = 0.5
QUEUE = 256  # exchanges of one service that wait to be compared
AT_ONCE = 8  # questions to one service's candidate
LARGEST = 8 << 20  # bytes of one request and answer together
ALL = 256 << 20  # bytes of all exchanges that are here
IN_LOOP = 64 << 10  # bytes; what is larger is compared in a thread


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and the stable version's answer, as they come in."""

    request: dict[str, bytes] = field(default_factory=dict)
    answer: dict[str, bytes] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)
    size: int = 0
    asked_at: float = 0.0
    answered_at: float = 0.0

    def add(self, part: Part, now: float) -> bool:
        """Whether that was the end of it."""
        if part.kind is Kind.REQUEST_HEADERS:
            self.request = dict(part.headers)
            self.asked_at = now  # an answer may come before the end of what was asked
        elif part.kind is Kind.RESPONSE_HEADERS:
            self.answer = dict(part.headers)
        elif part.kind is Kind.REQUEST_BODY:
            self.sent.append(part.body)
        elif part.kind is Kind.RESPONSE_BODY:
            self.got.append(part.body)
        self.size += len(part.body)
        if part.end and part.kind in (Kind.REQUEST_HEADERS, Kind.REQUEST_BODY, Kind.REQUEST_TRAILERS):
            self.asked_at = now
        ended = part.end and part.kind in (Kind.RESPONSE_HEADERS, Kind.RESPONSE_BODY, Kind.RESPONSE_TRAILERS)
        if ended:
            self.answered_at = now
        return ended

    def question(self, prefix: str) -> Question:
        path = self.request.get(":path", b"/").decode("latin-1")
        if prefix not in ("", "/") and path.startswith(prefix):
            path = "/" + path[len(prefix) :].lstrip("/")
        plain = tuple((key.encode(), value) for key, value in self.request.items() if not key.startswith(":"))
        host = self.request.get(":authority", b"candidate")
        return Question(self.request.get(":method", b"POST"), path, host, plain, b"".join(self.sent))

    def reply(self) -> Reply:
        status = self.answer.get(":status", b"0")
        headers = {key: value.decode("latin-1") for key, value in self.answer.items()}
        return Reply(int(status) if status.isdigit() else 0, headers, b"".join(self.got))


class Service:
    """One service in shadow: its exchanges in line, its candidate, its counts."""

    def __init__(self, project: str, name: str, folder: Folder, seen: Path) -> None:
        self.key = (project, name)
        self._folder = folder
        self._file = seen / project / f"{name}.json"
        self._stamp: tuple[int, int] | None = None
        self._queue: asyncio.Queue[tuple[Exchange, str]] = asyncio.Queue(QUEUE)
        self._workers: list[asyncio.Task[None]] = []
        self._judge: Judge | None = None
        self._candidate = Candidate()
        self.orders: Orders | None = None
        self.tally: Tally | None = None
        self.held = 0  # bytes
        self._due = 0  # of WHOLE: what the share has come to since it last took an exchange
        self._written = ""

    @property
    def shadow(self) -> Shadow | None:
        """What it is to be compared with, by the orders as they are now."""
        stamp = self._folder.stamp(*self.key)
        if stamp != self._stamp:
            self._stamp = stamp
            self.orders = None if stamp is None else self._folder.get(*self.key)
            self._counted(None if self.orders is None else self.orders.shadow)
        return None if self.orders is None else self.orders.shadow

    def _counted(self, shadow: Shadow | None) -> None:
        """Counts of this candidate: those that a comparator before this one wrote, or new ones."""
        if shadow is None:
            return
        if self.tally is None:
            with contextlib.suppress(OSError, ValueError):
                self.tally = Tally.from_json(json.loads(self._file.read_text()))
        if self.tally is None or (self.tally.version, self.tally.stable_version) != (shadow.candidate, shadow.stable):
            self.tally = Tally(shadow.stable, shadow.candidate)

    def takes(self, share: int) -> bool:
        """Whether the next exchange is one of the share: evenly, and by no chance."""
        self._due += share
        if self._due < WHOLE:
            return False
        self._due -= WHOLE
        return True

    def put(self, exchange: Exchange, prefix: str) -> bool:
        """Into the line. Not: there is no room in it."""
        try:
            self._queue.put_nowait((exchange, prefix))
        except asyncio.QueueFull:
            return False
        self.held += exchange.size
        if not self._workers:
            self._workers = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]
        return True

    async def _work(self) -> None:
        while True:
            exchange, prefix = await self._queue.get()
            try:
                await self._compare(exchange, prefix)
            finally:
                self.held -= exchange.size

    async def _compare(self, exchange: Exchange, prefix: str) -> None:
        shadow, tally, orders = self.shadow, self.tally, self.orders
        if shadow is None or tally is None or orders is None:
            return
        stable = exchange.reply()
        if not 100 <= stable.status < 500 or exchange.request.get("content-type", b"").startswith(b"application/grpc"):
            tally.skipped += 1
            return
        backends = orders.versions.get(shadow.candidate, ())
        if not backends:
            tally.drop("no_replica")
            return
        question = exchange.question(prefix)
        began = time.monotonic()
        try:
            candidate = await self._candidate.ask(backends, question, orders.timeout, LARGEST)
            failed = "" if candidate.status < 500 else f"status {candidate.status}"
        except Failed as error:
            candidate, failed = Reply(0, {}, b""), str(error)
        taken = time.monotonic() - began
        tally.stable.add(max(0.0, exchange.answered_at - exchange.asked_at), error=False)
        tally.candidate.add(taken, error=bool(failed))
        if failed:
            tally.failed += 1
            differs = failed
        else:
            try:
                differs = await self._judged(shadow, stable, candidate)
            except Unjudged as error:
                tally.unjudged += 1
                tally.problem = str(error)
                return
            tally.compared += 1
            tally.agreed += not differs
        if differs:
            request_headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in question.headers}
            asked = Reply(0, request_headers, question.body)
            tally.example({
                "at": time.time(),
                "method": question.method.decode("latin-1"),
                "path": question.path.partition("?")[0][:200],
                "request": shown(asked),
                "stable": shown(stable),
                "candidate": shown(candidate) if candidate.status else "",
                "stable_status": stable.status,
                "candidate_status": candidate.status,
                "slower_s": round(taken - (exchange.answered_at - exchange.asked_at), 6),
                "differs": differs[:1000],
            })  # fmt: skip

    async def _judged(self, shadow: Shadow, stable: Reply, candidate: Reply) -> str:
        """Empty: they agree. Raises Unjudged."""
        if shadow.how == "function":
            if shadow.function is None:
                raise Unjudged("no function is named")
            if stable.status != candidate.status:
                return f"status {stable.status} against {candidate.status}"
            if self._judge is None or self._judge.function != shadow.function:
                if self._judge is not None:
                    await self._judge.close()
                self._judge = Judge(shadow.function)
            return await self._judge.ask(stable, candidate)
        rule = compare.Rule(shadow.how, shadow.tolerance)
        if len(stable.body) + len(candidate.body) <= IN_LOOP:
            return compare.replies(stable, candidate, rule)
        return await asyncio.to_thread(compare.replies, stable, candidate, rule)

    def write(self) -> None:
        if self.tally is None:
            return
        text = json.dumps(self.tally.to_json())
        if text == self._written:
            return
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._file.with_name(f".{self._file.name}.new")
        draft.write_text(text)
        draft.replace(self._file)
        self._written = text

    async def close(self) -> None:
        for task in self._workers:
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._judge is not None:
            await self._judge.close()
        await self._candidate.close()


class Comparator(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    """Envoy's external processor: every method is a stream of bytes that is answered by nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services: dict[tuple[str, str], Service] = {}
        self._size = 0  # bytes of exchanges that still come in

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        del handler_call_details
        return grpc.stream_stream_rpc_method_handler(self._process)

    async def _process(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        given = {key: str(value) for key, value in context.invocation_metadata() or ()}
        key = named(given.get(SERVICE_HEADER, ""))
        if key is not None:
            prefix = given.get(PREFIX_HEADER, f"/{key[0]}/{key[1]}/")
            await self._taken(self._found(key), messages, prefix)

    def _found(self, key: tuple[str, str]) -> Service:
        if key not in self._services:
            self._services[key] = Service(*key, Folder(self._folder / ORDERS), self._folder / SEEN)
        return self._services[key]

    async def _taken(self, service: Service, messages: AsyncIterator[bytes], prefix: str) -> None:
        """One exchange: read all of it, keep it if there is room. What its stable side broke off is no exchange."""
        shadow = service.shadow
        if shadow is None or service.tally is None:
            return
        service.tally.offered += 1
        if not service.takes(shadow.share):
            return
        exchange = Exchange()
        why = ""
        counted = 0
        ended = False
        try:
            async for message in messages:
                part = decoded(message)
                if part is None:
                    continue
                ended = exchange.add(part, time.monotonic())
                if exchange.size > LARGEST:
                    why = "too_large"
                elif self._held() + exchange.size - counted > ALL:
                    why = "backlog"
                if why:
                    exchange.sent, exchange.got = [], []
                else:
                    self._size += exchange.size - counted
                    counted = exchange.size
                if ended:
                    break
        except ValueError as error:
            log.warning("%s: %s", "/".join(service.key), error)
            why = "unreadable"
        finally:
            self._size -= counted
        if not ended and not why:
            return
        service.tally.received += 1
        if why or not service.put(exchange, prefix):
            service.tally.drop(why or "backlog")

    def _held(self) -> int:
        return self._size + sum(service.held for service in self._services.values())

    async def write(self) -> None:
        """The counts, each half second."""
        while True:
            await asyncio.sleep(WRITE_S)
            self.flush()

    def flush(self) -> None:
        for service in self._services.values():
            with contextlib.suppress(OSError):  # a full disk is no reason to stop; the next half second tries again
                service.write()

    async def close(self) -> None:
        for service in self._services.values():
            await service.close()
        self.flush()


OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST * 2),
    ("grpc.so_reuseport", 1),  # its successor listens before it has ended
    ("grpc.http2.max_ping_strikes", 0),  # Envoy asks each second whether it still hears
    ("grpc.keepalive_permit_without_calls", 1),
)


async def serve(host: str, port: int, folder: Path) -> None:
    comparator = Comparator(folder)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((comparator,))
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    writing = asyncio.create_task(comparator.write())
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await asked.wait()
    await server.stop(1.0)
    writing.cancel()
    await comparator.close()


def main() -> None:
    arguments = told("penstock.serving.comparator", "penstock-compar")
    asyncio.run(serve(arguments.host, arguments.port, arguments.folder))


if __name__ == "__main__":
    main()
