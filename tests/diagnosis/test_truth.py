"""Failures of others whose cause is known: Flight Recorder dumps of injected hangs, and traces of two slow trainings."""

from __future__ import annotations

import csv
import lzma
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest

from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Culprit, Evidence, Happened, Rank, Step
from penstock.training import culprit, flight

DATA = Path(__file__).parents[2] / "data" / "failures"


@pytest.mark.parametrize("run", ["gpu_error_1st", "lock_gil_1st"])
def test_hangs_of_nvrx_blame_an_injected_rank_and_no_other(run: str) -> None:
    with tarfile.open(DATA / "nvrx_fr_traces.tar.xz") as archive:
        files = {
            name.rpartition("/")[2]: archive.extractfile(name)
            for name in archive.getnames()
            if name.startswith(f"{run}/")
        }
        contents = {name: file.read() for name, file in files.items() if file is not None}
    injected = {int(rank) for rank in re.findall(rb"Rank (\d+), fault_type", contents["fault_injection.log"])}
    dumps = {int(name.rpartition("_")[2]): content for name, content in contents.items() if name.startswith("_dump_")}
    seen = flight.gather((rank, flight.reduce(flight.load(dump))) for rank, dump in dumps.items())
    behind = culprit.behind(seen)
    hang = Happened(0.0, "RankHung", "no step for 180s", {"ranks": list(behind), "clue": "fewer collectives"})
    found = diagnose(
        Evidence("train", "default", "Running", 0.0, tuple(Rank(rank, "") for rank in dumps), happened=(hang,))
    )
    assert found.verdict == "collective_hang"
    blamed = {int(each.name) for each in found.culprits if each.kind == "rank"}
    assert blamed
    assert blamed <= injected


TRACES = [("ar", "slow_compute_rank", [Culprit("rank", "0")]), ("st", "pp_bubble", None)]


@pytest.mark.parametrize(("trace", "cause", "culprits"), TRACES, ids=["one slow worker", "unequal stages"])
def test_stragglers_of_bytedance_are_told_apart(trace: str, cause: str, culprits: list[Culprit] | None) -> None:
    found = diagnose(trained(DATA / f"bytedance_straggler_{trace}.csv.xz"))
    assert found.verdict == cause
    if culprits is not None:
        assert list(found.culprits) == culprits
    else:
        assert {each.name for each in found.culprits} == {"6", "7"}  # the last stage of both replicas


def trained(path: Path) -> Evidence:
    """A trace as evidence: each micro-batch is a step of its rank's."""
    rows: dict[tuple[int, int, int], list[tuple[int, int, float]]] = defaultdict(list)
    with lzma.open(path, "rt") as file:
        for row in csv.DictReader(file):
            key = (int(row["rank"]), int(row["stage"]), int(row["dp_rank"]))
            rows[key].append((int(row["step"]), int(row["mb_id"]), float(row["duration_ms"]) / 1000))
    ranks = []
    for (rank, stage, replica), parts in sorted(rows.items()):
        steps, at = [], 0.0
        for number, (_, _, seconds) in enumerate(sorted(parts)):
            at += seconds
            steps.append(Step(number, at, seconds, compute=seconds))
        ranks.append(Rank(rank, f"node-{rank // 8}", tuple(steps), config={"stage": stage, "replica": replica}))
    return Evidence("train", "default", "Running", 0.0, tuple(ranks), topology="pipeline")
