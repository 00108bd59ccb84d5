"""The built-in ONNX runtime: CPU for each request against ONNX Runtime alone, tritonserver and MLServer; memory after an unload.

One model (512-2048-2048-10, 21 MB), one row of 512 numbers a request, closed loop of wrk on loopback, in one run. The
peers take turns within a round, so each ratio is of neighbours in time; the bar is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import Bar, alone, percentile, say, spread
from benchmarks.measure import free_ports
from benchmarks.serving_load import Body, Round, bodies, load, raw_us, resident
from benchmarks.serving_peers import Peer, mlserver, ours, triton
from tests.serving.onnx import models

ROUNDS = 7
SECONDS = 2.0
WIDTH = 512
SIZES = (WIDTH, 2048, 2048, 10)


def measure() -> list[Bar]:
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = models.mlp(folder / "models/mlp/1/model.onnx", SIZES)
        binary, plain = bodies(folder, WIDTH)
        own = stack.enter_context(ours(folder / "models", free_ports(1)[0]))
        bars.append(against_raw(folder, own, model, binary))
        with triton(folder, model, WIDTH, free_ports(3)) as peer:
            bars += against_triton(folder, own, peer, binary)
        with mlserver(folder, model, WIDTH, free_ports(3)) as peer:
            bars.append(against_mlserver(folder, own, peer, plain))
        bars.append(unloaded(own))
    return bars


def against_raw(folder: Path, own: Peer, model: Path, body: Body) -> Bar:
    ratios, costs = [], []
    load(folder, own.infer, body, 64, 1.0, own.pid)
    for _ in range(ROUNDS):
        raw = raw_us(model, 32, WIDTH)
        here = load(folder, own.infer, body, 64, SECONDS, own.pid)
        ratios.append(here.cpu_us / raw)
        costs.append(here.cpu_us)
        say(
            f"   64 connections: {here.cpu_us:.0f} us a request, {here.rate:.0f} a second; raw batch 32: {raw:.0f} us a row"
        )
    return Bar(
        "CPU at 64 connections / raw ONNX Runtime", statistics.median(ratios), 2.0, "x",
        note=f"ratio {spread(ratios)}; {spread(costs, ' us')}; Triton was 1.8, MLServer 14.6",
    )  # fmt: skip


def against_triton(folder: Path, own: Peer, peer: Peer, body: Body) -> list[Bar]:
    pairs = paired(folder, own, peer, body)
    ratios = [here.cpu_us / there.cpu_us for here, there in pairs]
    rates = [here.rate / there.rate for here, there in pairs]
    medians = [here.p50 / there.p50 for here, there in pairs]
    told = "; ".join((
        f"ratio {spread(ratios)}", f"requests/s ratio {interval(rates)}", f"P50 ratio {interval(medians)}",
        f"here {statistics.median(one.rate for one, _ in pairs):.0f}/s, {statistics.median(one.p50 for one, _ in pairs):.2f} ms",
        f"there {statistics.median(one.rate for _, one in pairs):.0f}/s, {statistics.median(one.p50 for _, one in pairs):.2f} ms",
    ))  # fmt: skip
    return [Bar("CPU at 16 connections / tritonserver", statistics.median(ratios), 1.0, "x", note=told)]


def against_mlserver(folder: Path, own: Peer, peer: Peer, body: Body) -> Bar:
    pairs = paired(folder, own, peer, body)
    ratios = [here.cpu_us / there.cpu_us for here, there in pairs]
    told = f"ratio {spread(ratios)}; here {pairs[-1][0].rate:.0f}/s, there {pairs[-1][1].rate:.0f}/s"
    return Bar("CPU at 16 connections, JSON / MLServer", statistics.median(ratios), 0.5, "x", note=told)


def paired(folder: Path, own: Peer, peer: Peer, body: Body) -> list[tuple[Round, Round]]:
    """Rounds in which both were measured, the order of the two changing each time."""
    for one in (own, peer):
        load(folder, one.infer, body, 16, 1.0, one.pid)
    pairs = []
    for turn in range(ROUNDS):
        found = {one.name: load(folder, one.infer, body, 16, SECONDS, one.pid) for one in _order(own, peer, turn)}
        here, there = found[own.name], found[peer.name]
        pairs.append((here, there))
        say(f"   16 connections: {here.cpu_us:.0f} us here, {there.cpu_us:.0f} us {peer.name}")
    return pairs


def _order(one: Peer, other: Peer, turn: int) -> tuple[Peer, Peer]:
    return (one, other) if turn % 2 == 0 else (other, one)


def interval(values: list[float]) -> str:
    """Median and the middle nine tenths of the rounds."""
    return f"{statistics.median(values):.2f} ({percentile(values, 0.05):.2f}-{percentile(values, 0.95):.2f})"


def unloaded(own: Peer) -> Bar:
    """Resident memory of the tree after load, traffic and unload, over what it was without the model."""
    base = f"http://127.0.0.1:{own.port}/v2/repository/models/mlp"
    ask(f"{base}/unload")
    before = settled(own.pid)
    ask(f"{base}/load")
    loaded = resident(own.pid)
    ask(f"{base}/unload")
    after = settled(own.pid)
    note = f"{before / 1e6:.1f} MB, loaded {loaded / 1e6:.1f} MB, unloaded {after / 1e6:.1f} MB"
    return Bar("memory kept after an unload", (after / before - 1) * 100, 5.0, "%", note=note)


def settled(pid: int) -> int:
    time.sleep(0.5)
    return resident(pid)


def ask(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=60) as answer:
        answer.read()


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
