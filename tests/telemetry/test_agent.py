"""The agent: sources that hang or raise hold up nothing, a server that is away loses no finding, and its own page is sound."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.base.errors import InvalidInput, Unavailable
from penstock.client.transport import Transport
from penstock.telemetry import agent as module
from penstock.telemetry.agent import Agent, Metrics
from penstock.telemetry.choosing import OFF, Wanted, choose
from penstock.telemetry.exposition import page
from penstock.telemetry.push import Answer, Push, decode, encode_answer
from penstock.telemetry.rules import Rules
from penstock.telemetry.sources.kmsg import Kmsg
from penstock.telemetry.sources.nvml import gpu_points
from penstock.telemetry.sources.pages import parse
from penstock.telemetry.spec import Finding, Line, Point, Reading, Source
from tests.telemetry.sources.planted import put, recorded, tree

XID = "NVRM: Xid (PCI:0000:1b:00): 79, pid=1234, name=python, GPU has fallen off the bus."


class Says:
    """A source that says what it is told to."""

    every_s = 0.02

    def __init__(self, name: str, say: Callable[[float], Reading]) -> None:
        self.name = name
        self.say = say
        self.closed = threading.Event()

    def read(self, now: float) -> Reading:
        return self.say(now)

    def close(self) -> None:
        self.closed.set()


def load(now: float) -> Reading:
    return Reading("host", now, (Point("penstock_node_load1", now), Point("penstock_node_clock_offset_seconds", 0.0)))


def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Pushed(HTTPServer):
    """Takes pushes; while ``away`` it breaks every connection."""

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.away = False
        self.status = 200
        outer = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.away:
                    return
                push = decode(body)
                outer.pushes.append(push)
                problem = {"code": "InvalidInput", "message": "no", "hint": "", "details": []}
                told = encode_answer(Answer(push.sequence)) if outer.status == 200 else problem
                answer = json.dumps(told).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def findings(self) -> list[Finding]:
        return [finding for push in self.pushes for finding in push.findings]


@pytest.fixture
def server() -> Iterator[Pushed]:
    with Pushed() as pushed:
        thread = threading.Thread(target=pushed.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield pushed
        pushed.shutdown()
        thread.join()


@contextmanager
def running(*sources: Source, server: Pushed | None = None) -> Iterator[Agent]:
    connect = (lambda: Transport(f"http://127.0.0.1:{server.server_port}", "t")) if server is not None else None
    agent = Agent("n0", "b0", sources, Rules("n0"), connect)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield agent
    finally:
        agent.stop()
        thread.join(10)
        assert not thread.is_alive()


def test_a_line_of_the_kernels_log_is_told_the_server(server: Pushed, tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    os.mkfifo(log)
    with running(Kmsg(str(tmp_path / "cursor"), str(log), "b0", every_s=60.0), server=server):
        until(lambda: (tmp_path / "kmsg").exists())
        with log.open("w") as file:
            file.write(f"3,1,1000,-;{XID}\n")
            file.flush()
            until(lambda: bool(server.findings))
    (found,) = server.findings
    assert (found.rule, found.code, found.device, found.evidence) == ("Xid", "79", "0000:1b:00.0", (XID,))
    assert json.loads((tmp_path / "cursor").read_text()) == {"boot_id": "b0", "sequence": 1}


def test_a_source_that_hangs_or_raises_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    monkeypatch.setattr(module, "SAMPLE_S", 0.05)
    free = threading.Event()

    def hang(now: float) -> Reading:
        free.wait()
        return Reading("hangs", now)

    def fail(_: float) -> Reading:
        raise ZeroDivisionError("by zero")

    with running(Says("hangs", hang), Says("raises", fail), Says("host", load)) as agent:
        until(lambda: all(f'source_up{{source="{name}"}}' in agent.page() for name in ("hangs", "raises", "host")))
        lines = agent.page().splitlines()
        assert 'penstock_agent_source_up{source="hangs"} 0' in lines
        assert 'penstock_agent_source_up{source="raises"} 0' in lines
        assert 'penstock_agent_source_up{source="host"} 1' in lines
        free.set()


def test_the_server_may_be_away(server: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_S", 0.05)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)
    server.away = True
    codes = iter(range(100, 110))

    def say(now: float) -> Reading:
        code = next(codes, None)
        lines = () if code is None else (Line(now, XID.replace("79", str(code)), str(code)),)
        return Reading("kmsg", now, lines=lines)

    with running(Says("kmsg", say), Says("host", load), server=server) as agent:
        until(lambda: "penstock_agent_waiting_findings 10" in agent.page() and len(agent.outbox) > 10)
        assert server.pushes == []
        server.away = False
        until(lambda: {finding.code for finding in server.findings} == {str(code) for code in range(100, 110)})
        until(lambda: len(agent.outbox) <= 2)
        assert "penstock_agent_dropped_findings_total 0" in agent.page()
    rows = [row.at for push in server.pushes for row in push.rows]
    assert rows == sorted(rows)  # two may be of one millisecond
    assert [push.sequence for push in server.pushes] == list(range(1, len(server.pushes) + 1))
    assert server.pushes[0].sources == (("host", ""), ("kmsg", "")) or not server.pushes[0].rows


def test_what_the_server_will_never_take_makes_room_for_the_next(
    server: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_S", 0.05)
    server.status = 422
    with running(Says("host", load), server=server) as agent:
        until(lambda: 'pushes_total{outcome="refused"} 2' in agent.page())
        server.status = 200
        until(lambda: 'pushes_total{outcome="taken"} 1' in agent.page())


@pytest.mark.parametrize("failure", [InvalidInput("no such token"), Unavailable("no token file"), OSError("x")])
def test_a_token_that_is_not_there_yet_costs_no_finding(
    server: Pushed, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    failures = [failure, failure]

    def connect() -> Transport:
        if failures:
            raise failures.pop()
        return Transport(f"http://127.0.0.1:{server.server_port}", "t")

    said = iter([(Line(0.0, XID, "1"),)])
    source = Says("kmsg", lambda now: Reading("kmsg", now, lines=next(said, ())))
    agent = Agent("n0", "b0", [source], Rules("n0"), connect)
    thread = threading.Thread(target=agent.run)
    thread.start()
    until(lambda: bool(server.findings))
    agent.stop()
    thread.join(10)
    assert [finding.code for finding in server.findings] == ["79"]


def test_its_page_is_read_by_prometheus_parser_and_served() -> None:
    values = [*gpu_points(json.loads(recorded("nvml_busy.json"))), *parse(recorded("dcgm.txt"))[0]]
    odd = Point("penstock_gpu_info", 1.0, (("model", 'a "b"\\ c\nd'), ("uuid", "x")))
    with running(Says("nvml", lambda now: Reading("nvml", now, (*values, odd), problem=""))) as agent:
        until(lambda: "DCGM_FI_DEV_GPU_TEMP" in agent.page())
        metrics = Metrics(("127.0.0.1", 0), agent.page)
        metrics.start()
        connection = HTTPConnection("127.0.0.1", metrics.server_port)
        connection.request("GET", "/metrics")
        body = connection.getresponse().read().decode()
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
        metrics.shutdown()
        metrics.server_close()
    samples = [sample for family in text_string_to_metric_families(body) for sample in family.samples]
    assert len({(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples}) == len(samples)
    assert {sample.name for sample in samples} >= {
        "DCGM_FI_DEV_GPU_TEMP",
        "penstock_gpu_power_watts",
        "penstock_agent_info",
    }
    assert 'a "b"\\ c\nd' in {sample.labels.get("model") for sample in samples}


def test_an_old_line_of_the_log_is_told_the_server_and_is_not_on_the_page() -> None:
    now = time.time()
    lines = (Line(now - 86400, XID, "1"), Line(now, XID.replace("79", "48"), "2"))
    agent = Agent("n0", "b0", [], Rules("n0"), lambda: Transport("http://127.0.0.1:1", "t"))
    agent.take(module.Taken(Reading("kmsg", now, lines=lines), 0.0, 0.0))
    assert agent.outbox.findings == 2
    shown = [line for line in agent.page().splitlines() if line.startswith("penstock_agent_finding{")]
    assert shown == ['penstock_agent_finding{code="48",device="0000:1b:00.0",rule="Xid",severity="warning"} 1']


def test_a_page_of_anything_is_a_page() -> None:
    points = [Point("a", 1.5), Point("a", 2.0), Point("a", 3.0, (("x", "1"),)), Point("b", 1e300, (), "counter")]
    assert page(points) == '# TYPE a gauge\na 1.5\na{x="1"} 3\n# TYPE b untyped\nb 1e+300\n'


def test_sources_are_closed_when_it_stops() -> None:
    source = Says("host", load)
    with running(source) as agent:
        until(lambda: "penstock_node_load1" in agent.page())
    assert source.closed.wait(5)


def names(root: Path, node_exporter: str = OFF, dcgm: str = OFF, envoy: str = "") -> set[str]:
    wanted = Wanted("n0", "", "b0", str(root), node_exporter, dcgm, envoy)
    return {source.name for source in choose(wanted)}


def test_what_a_node_has_is_read(tmp_path: Path) -> None:
    base = {"kmsg", "clock", "pci", "host", "disk"}
    assert names(tmp_path / "nothing") == base
    assert names(Path(tree(tmp_path / "node", "node.tree"))) == {*base, "infiniband", "nvml"}
    put(tmp_path / "amd", "sys/bus/pci/devices/0000:05:00.0/vendor", "0x1002")
    assert names(tmp_path / "amd") == base  # without amd-smi there is nothing to ask
    put(tmp_path / "nvidia", "sys/bus/pci/devices/0000:05:00.0/vendor", "0x10de")
    put(tmp_path / "nvidia", "sys/bus/pci/devices/0000:05:00.0/class", "0x020700")
    assert names(tmp_path / "nvidia") == base  # a network adapter
    put(tmp_path / "nvidia", "sys/bus/pci/devices/0000:05:00.0/class", "0x030200")
    assert names(tmp_path / "nvidia") == {*base, "nvml"}  # whose driver is not loaded: that is told of


def test_what_an_exporter_reads_is_not_read_again(tmp_path: Path) -> None:
    root = Path(tree(tmp_path, "node.tree"))
    url = "http://127.0.0.1:9/metrics"
    assert names(root, node_exporter=url) == {"kmsg", "clock", "pci", "node_exporter", "nvml"}
    assert names(root, dcgm=url, envoy=url) == {"kmsg", "clock", "pci", "host", "disk", "infiniband", "dcgm", "envoy"}
