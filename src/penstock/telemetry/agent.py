"""One process on each node: reads every source at its period, serves what was read, and tells the server what is wrong.

Each source has a thread of its own, and one that does not come back is told of and waited for no longer. The main thread turns readings
into findings; another one sends, so that the server's absence holds up nothing.
"""

from __future__ import annotations

import logging
import queue
import random
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer

from penstock.base.errors import InvalidInput, PenstockError, TooLarge
from penstock.base.text import one_line
from penstock.base.version import VERSION
from penstock.client.transport import Transport
from penstock.telemetry.exposition import CONTENT_TYPE, page
from penstock.telemetry.ordered import Ordered, Run
from penstock.telemetry.outbox import Outbox
from penstock.telemetry.push import Order, decode_answer, encode
from penstock.telemetry.rules import Rules
from penstock.telemetry.spec import Finding, Point, Reading, Source

log = logging.getLogger("penstock.agent")

PUSH = "/api/v1/telemetry/push"
SAMPLE_S = 10.0
PATIENCE_S = 30.0  # that a source may take beyond twice its period
STALE = 3.0  # periods after which what a source said last is no sample any more
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0  # between tries while the server is away
REST_S = 0.05  # between two pushes: findings of one moment go together
SHOWN_S = 3600.0  # after which a finding that was not seen again is on the page no more: nobody says that a Xid is over
REQUEST_S = 5.0  # that a scrape may take to send its request
_WAITING = 256  # readings that may wait for the main thread
_ON_PAGE = 256  # findings that are on the page at most


@dataclass(frozen=True, slots=True)
class Taken:
    reading: Reading
    tick: float
    took_s: float


class Reader(threading.Thread):
    """Reads one source at its period; at once where it has a descriptor that says that there is something."""

    def __init__(self, source: Source, put: Callable[[Taken], None]) -> None:
        super().__init__(name=f"read-{source.name}", daemon=True)
        self.source = source
        self.began: float | None = None  # since when a read has been going on
        self._put = put
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self.began = time.monotonic()
            taken = self.once()
            self.began = None
            self._put(taken)
            self._rest(taken.tick + self.source.every_s)
        self.source.close()

    def once(self) -> Taken:
        tick, now = time.monotonic(), time.time()
        try:
            reading = self.source.read(now)
        except Exception as error:  # noqa: BLE001 - see tools/allowed.toml
            log.exception("source %s", self.source.name)
            reading = Reading(self.source.name, now, problem=f"{type(error).__name__}: {one_line(str(error))}")
        return Taken(reading, tick, time.monotonic() - tick)

    def stop(self) -> None:
        self._over.set()

    def _rest(self, until: float) -> None:
        fileno = getattr(self.source, "fileno", None)
        left = until - time.monotonic()
        if fileno is None or (fd := fileno()) < 0:
            self._over.wait(max(0.0, left))
        elif left > 0:
            select.select([fd], [], [], left)


class Sender(threading.Thread):
    """Sends what waits; while the server is away it tries ever more seldom, down to every quarter of a minute."""

    def __init__(
        self,
        outbox: Outbox,
        lock: threading.Lock,
        connect: Callable[[], Transport],
        ordered: Callable[[Sequence[Order]], None],
    ) -> None:
        super().__init__(name="send", daemon=True)
        self.counts = {"taken": 0, "failed": 0, "refused": 0}
        self.problem = ""
        self._outbox = outbox
        self._lock = lock
        self._connect = connect
        self._ordered = ordered
        self._transport: Transport | None = None
        self._wake = threading.Event()
        self._over = threading.Event()
        self._pause_s = FIRST_PAUSE_S

    def run(self) -> None:
        while not self._over.is_set():
            self._wake.wait()
            self._wake.clear()
            while not self._over.is_set() and self.send():
                self._over.wait(REST_S)
        if self._transport is not None:
            self._transport.close()

    def send(self) -> bool:
        """Whether to go on at once: something was sent, and more may wait."""
        with self._lock:
            push = self._outbox.next(time.time())
        if push is None:
            return False
        try:
            if self._transport is None:
                self._transport = self._connect()
        except (PenstockError, OSError) as error:  # no token, no address: the push is none the worse
            self._failed(str(error))
            return True
        try:
            headers = {"Content-Type": "application/json"}
            said = self._transport.request("POST", PUSH, body=encode(push), headers=headers, repeatable=True)
            answer = decode_answer(said.body)
        except (InvalidInput, TooLarge) as error:  # it would be no better the next time
            self._told("refused", str(error))
            with self._lock:
                self._outbox.refused(push)
            return True
        except (PenstockError, OSError) as error:
            self._failed(str(error))
            return True
        with self._lock:
            self._outbox.taken(push, answer)
        self._ordered(answer.orders)
        self._told("taken", "")
        self._pause_s = FIRST_PAUSE_S
        return True

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._over.set()
        self._wake.set()

    def _failed(self, problem: str) -> None:
        self._told("failed", problem)
        if self._transport is not None:
            self._transport.close()
            self._transport = None  # its token, or the server's place, may be another by then
        self._over.wait(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)

    def _told(self, outcome: str, problem: str) -> None:
        self.counts[outcome] += 1
        if problem and problem != self.problem:
            log.warning("the server was told nothing: %s", problem)
        elif self.problem and not problem:
            log.warning("the server is told again")
        self.problem = problem


class Agent:
    """``told`` is called with every finding, beside the server; ``connect`` None tells no server. ``check`` runs what the
    server asks for.
    """

    def __init__(
        self,
        node: str,
        boot_id: str,
        sources: Sequence[Source],
        rules: Rules,
        connect: Callable[[], Transport] | None = None,
        told: Callable[[Finding], None] | None = None,
        *,
        check: Run | None = None,
    ) -> None:
        self.outbox = Outbox(node, boot_id, f"{random.getrandbits(64):016x}", VERSION)
        self.rules = rules
        self._told = told
        self._lock = threading.Lock()
        self._queue: queue.Queue[Taken] = queue.Queue(_WAITING)
        self._readers = [Reader(source, self._queue.put) for source in sources]
        self._newest: dict[str, Taken] = {}
        self._active: dict[tuple[str, str, str, str], Finding] = {}
        self._checks = Ordered(check, self._checked)
        self._sender = Sender(self.outbox, self._lock, connect, self._checks.take) if connect is not None else None
        self._over = threading.Event()
        self._sampled = time.monotonic()

    def run(self) -> None:
        """Until ``stop``."""
        for thread in (*self._readers, self._checks, *([self._sender] if self._sender else [])):
            thread.start()
        while not self._over.is_set():
            self.step(1.0)
        self._checks.stop()
        for reader in self._readers:
            reader.stop()
        if self._sender is not None:
            self._sender.stop()
            self._sender.join(2.0)

    def stop(self) -> None:
        self._over.set()

    def step(self, timeout_s: float) -> None:
        """Takes a reading where there is one in time, looks for sources that hang, and samples when it is time."""
        try:
            self.take(self._queue.get(timeout=timeout_s))
        except queue.Empty:
            pass
        now = time.monotonic()
        for reader in self._readers:
            self._hangs(reader, now)
        if now - self._sampled >= SAMPLE_S:
            self._sampled = max(self._sampled + SAMPLE_S, now - SAMPLE_S)
            self._sample()

    def once(self) -> list[tuple[Taken, list[Finding]]]:
        """Each source once, without threads, and what follows."""
        return [(taken, self.take(taken)) for taken in (reader.once() for reader in self._readers)]

    def take(self, taken: Taken) -> list[Finding]:
        reading = taken.reading
        with self._lock:
            self._newest[reading.source] = taken
            findings = self.rules.take(reading, taken.tick)
            for finding in findings:
                if finding.active:
                    self._active[finding.key] = finding
                else:
                    self._active.pop(finding.key, None)
            while len(self._active) > _ON_PAGE:
                del self._active[next(iter(self._active))]
            if self._sender is not None:
                self.outbox.tell(findings)
        if self._told is not None:
            for finding in findings:
                self._told(finding)
        if findings and self._sender is not None:
            self._sender.wake()
        return findings

    def _checked(self, findings: Sequence[Finding]) -> None:
        with self._lock:
            self.outbox.tell(findings)
        if self._sender is not None:
            self._sender.wake()

    def page(self) -> str:
        """The metrics of all sources, and of the agent itself."""
        with self._lock:
            return page([*self._points(), *self._own()])

    def _hangs(self, reader: Reader, now: float) -> None:
        """A source that does not come back says so by us; once in each of its periods."""
        began, every_s = reader.began, max(reader.source.every_s, SAMPLE_S)
        last = self._newest.get(reader.source.name)
        if began is None or now - began < PATIENCE_S + 2 * every_s or (last and now - last.tick < every_s):
            return
        problem = f"it has not come back for {now - began:.0f} s"
        self.take(Taken(Reading(reader.source.name, time.time(), problem=problem), now, now - began))

    def _sample(self) -> None:
        if self._sender is None:
            return
        with self._lock:
            self.outbox.sample(time.time(), self._points())
            self.outbox.sources({name: taken.reading.problem for name, taken in self._newest.items()})
        self._sender.wake()

    def _points(self) -> Iterator[Point]:
        """The newest word of each source that is not too old."""
        now = time.monotonic()
        periods = {reader.source.name: reader.source.every_s for reader in self._readers}
        for name, taken in self._newest.items():
            if now - taken.tick <= max(STALE * periods.get(name, SAMPLE_S), SAMPLE_S):
                yield from taken.reading.points

    def _own(self) -> Iterable[Point]:
        yield Point("penstock_agent_info", 1.0, (("version", VERSION),))
        for name, taken in self._newest.items():
            label = (("source", name),)
            yield Point("penstock_agent_source_up", float(not taken.reading.problem), label)
            yield Point("penstock_agent_source_read_seconds", taken.took_s, label)
        since = time.time() - SHOWN_S
        for finding in [one for one in self._active.values() if one.at >= since]:
            words = {
                "code": finding.code,
                "device": finding.device,
                "rule": finding.rule,
                "severity": finding.severity.value,
            }
            yield Point("penstock_agent_finding", 1.0, tuple(words.items()))
        if self._sender is not None:
            for outcome, count in self._sender.counts.items():
                yield Point("penstock_agent_pushes_total", float(count), (("outcome", outcome),), "counter")
            yield Point("penstock_agent_waiting_rows", float(len(self.outbox)))
            yield Point("penstock_agent_waiting_findings", float(self.outbox.findings))
            yield Point("penstock_agent_dropped_rows_total", float(self.outbox.dropped_rows), (), "counter")
            yield Point("penstock_agent_dropped_findings_total", float(self.outbox.dropped_findings), (), "counter")


class Metrics(HTTPServer):
    """``/metrics`` of an agent, one request at a time; whoever is slow is cut off."""

    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], text: Callable[[], str]) -> None:
        class Answers(BaseHTTPRequestHandler):
            timeout = REQUEST_S

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/metrics"
                body = text().encode() if found else b"/metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        super().__init__(address, Answers)

    def server_bind(self) -> None:
        """Without the look-up of the host's name that HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 2.0}, name="metrics", daemon=True).start()
