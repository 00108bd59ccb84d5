"""Runs trials and writes the corpus: ``python -m benchmarks.diagnosis_run --each 10 --healthy 200`` (as root).

Tuning trials (the default) are what the rules may be improved by; ``--held-out`` draws from other seeds, and records the commit
of the rules that was there before the seeds were drawn.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import diagnosis_corpus as corpus
from benchmarks.diagnosis_draw import CLASSES, FURTHER, HELD_OUT, LAUNCHED, TUNING, Injection, Trial, plan
from benchmarks.diagnosis_evidence import Tails, kernel_since, ranks_of, stack, state
from benchmarks.diagnosis_net import Fabric
from benchmarks.diagnosis_ranks import Cages, Life
from benchmarks.diagnosis_score import diagnosed, report
from benchmarks.diagnosis_train import Options, make_data
from benchmarks.harness import say
from benchmarks.soak_report import commit
from penstock.base.errors import PenstockError
from penstock.diagnosis.injecting import acting
from penstock.diagnosis.state import Evidence, Happened, LogLine, NodeEvidence
from penstock.worker import watch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks/diagnosis"
STILL_S = 5.0  # without a step: the job hangs
LIMIT_S = 60.0
COUNT_S = 0.25
MOST_RANKS = 4
_WAIT_S = 0.02
LATE = 6  # steps after its time, from which on an injection is not the one that was drawn
TRIES = 4


class Ground:
    """What all trials share: namespaces, control groups, the data set, a folder on the disk. Undone when it is closed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-trials-", dir="/var/tmp"))
        self.data = self.folder / "data"
        make_data(self.data)
        self.fabric = Fabric(MOST_RANKS)
        self.cages = Cages(MOST_RANKS)
        self.notes = self.folder / "notes"

    def close(self) -> None:
        self.cages.close()
        self.fabric.close()
        shutil.rmtree(self.folder)

    def options(self, trial: Trial, folder: Path) -> list[Options]:
        port = 20_000 + trial.number % 10_000
        double = any(one.fault.name in LAUNCHED for one in trial.injections)
        return [
            Options(rank, trial.world, trial.steps, self.fabric.address(0), port, str(self.data), str(folder / "checkpoints"), trial.seed, 0, double)
            for rank in range(trial.world)
        ]  # fmt: skip


class Run:
    """One trial: its ranks, and the faults while they run."""

    def __init__(self, ground: Ground, trial: Trial) -> None:
        self.trial = trial
        self._ground = ground
        self._folder = ground.folder / f"trial-{trial.number}"
        self._happened: list[Happened] = []
        self._facts: dict[str, Any] = {}
        self._tails = Tails(self._folder, trial.world)
        self.refused: list[str] = []

    def play(self) -> corpus.Record:
        began, busy = time.time(), _busy_s()
        ours = self._ground.cages.used_s()
        self._folder.mkdir()
        (self._folder / "checkpoints").mkdir()
        with ExitStack() as undo:
            waiting = [one for one in self.trial.injections if one.at_step > 0]
            life = self._start(undo)
            try:
                self._follow(life, waiting, undo)
                evidence = self._evidence(life, began)
            finally:
                life.end()
        wall = time.time() - began
        mine = self._ground.cages.used_s() - ours
        outside = max(0.0, (_busy_s() - busy - mine) / (wall * (os.cpu_count() or 1)))
        self._facts |= {"wall_s": round(wall, 2), "refused": self.refused}
        shutil.rmtree(self._folder)
        trial = self.trial
        return corpus.Record(
            trial.number, trial.seed, trial.world, truth(trial), evidence, round(outside, 3), self._facts
        )

    def _start(self, undo: ExitStack) -> Life:
        """Faults that are there from the first step are injected while the ranks find each other."""
        ground = self._ground
        life = Life(self._folder, ground.fabric, ground.cages, ground.options(self.trial, self._folder))
        for one in self.trial.injections:
            if one.at_step == 0 and one.fault.name not in LAUNCHED:
                self._inject(one, life, undo)
        return life

    def _inject(self, one: Injection, life: Life, undo: ExitStack) -> None:
        peers = life.targets()
        chosen = tuple(target for target in peers if target.rank in one.ranks)
        asked = acting.order(one.fault, chosen, peers, strength=one.strength, until=time.time() + LIMIT_S)
        try:
            undo.enter_context(acting.injected(asked, self._folder.name, self._ground.notes))
        except (PenstockError, OSError) as error:
            self.refused.append(f"{one.fault.name}: {error}")
            return
        self._facts.setdefault("injected_at", round(time.time(), 3))
        late = min((life.step(rank) for rank in life.pids), default=0) - one.at_step
        self._facts["late"] = max(self._facts.get("late", 0), late if one.at_step else 0)

    def _follow(self, life: Life, waiting: list[Injection], undo: ExitStack) -> None:
        began = moved = time.time()
        least, first_end = 0, None
        while life.poll():
            now = time.time()
            self._tails.look()
            steps = (
                min(life.step(rank) for rank in life.pids if rank not in life.ended)
                if len(life.ended) < len(life.pids)
                else 0
            )
            if steps > least:
                least, moved = steps, now
            while waiting and least >= waiting[0].at_step:
                self._inject(waiting.pop(0), life, undo)
                moved = time.time()
            if any(life.ended.values()):
                first_end = first_end or now
                if now - first_end > 1.5:  # the others have had time to say what they saw of it
                    break
            if least and now - moved > STILL_S:
                self._facts |= {"hung_s": round(now - self._facts.get("injected_at", now), 2)}
                break
            if now - began > LIMIT_S:
                self._facts["long"] = True
                break
            time.sleep(_WAIT_S)
        if waiting:
            self._facts["late"] = self.trial.steps

    @property
    def late(self) -> bool:
        """The machine was too busy for the injection to come when it was drawn to: there is little of it to be seen, or nothing."""
        return bool(self._facts.get("late", 0) > LATE and not self.refused)

    def _evidence(self, life: Life, began: float) -> Evidence:
        """While those who hang still do."""
        at = time.time()
        hung = "hung_s" in self._facts
        stacks = {r: stack(pid) if hung and r not in life.ended else () for r, pid in life.pids.items()}
        states = {r: "gone" if r in life.ended else state(pid) for r, pid in life.pids.items()}
        codes = dict(life.ended)
        ranks = tuple(
            replace(
                told,
                stack=stacks[rank],
                state=states[rank],
                exit_code=codes[rank] if codes.get(rank, -1) >= 0 else None,
                signal=-codes[rank] if codes.get(rank, 0) < 0 else None,
            )
            for rank, told in ranks_of(self._folder, self._tails).items()
        )
        nodes = tuple(
            NodeEvidence(f"node-{rank}", kernel=tuple(_of(pid, kernel_since(began)))) for rank, pid in life.pids.items()
        )
        failed = any(codes.values())
        phase = "Failed" if failed else "Running" if hung else "Succeeded"
        if hung:
            self._happened.append(Happened(at, "RankHung", "no rank has reported a step"))
        return Evidence(
            self._folder.name, "trials", phase, at, ranks, nodes, tuple(self._happened),
            spec={"procs": self.trial.world}, topology="ddp",
        )  # fmt: skip


def _of(pid: int, lines: list[LogLine]) -> list[LogLine]:
    """Those that name this process: other trials' and other people's are in the same log."""
    return [line for line in lines if f" {pid} " in line.text or f"pid={pid}" in line.text or f"[{pid}]" in line.text]


def truth(trial: Trial) -> corpus.Truth:
    faults = [one.fault for one in trial.injections]
    return corpus.Truth(
        tuple(fault.cause for fault in faults),
        tuple(fault.name for fault in faults),
        tuple(one.strength for one in trial.injections),
        tuple(() if one.fault.everywhere else one.ranks for one in trial.injections),
        max((one.at_step for one in trial.injections), default=0),
    )


def _busy_s() -> float:
    """Seconds that this machine's processors have worked."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=2, help="trials of each class")
    parser.add_argument("--healthy", type=int, default=10)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument(
        "--classes",
        default="",
        help=f"comma-separated faults; default: all of the corpus; further: {', '.join(FURTHER)}",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="added to the range's first")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    asked = parser.parse_args()
    out = asked.out or FOLDER / ("held-out.jsonl.gz" if asked.held_out else "tuning.jsonl.gz")
    rules, until = commit(ROOT), time.monotonic() + asked.seconds
    first = (HELD_OUT + _unforeseen(rules) if asked.held_out else TUNING) + asked.seed
    trials = plan(first, asked.each, asked.healthy, asked.classes.split(",") if asked.classes else CLASSES)
    _quick()
    signal.signal(signal.SIGTERM, _end)  # all is undone then too
    ground = Ground()
    try:
        for trial in trials:
            if time.monotonic() > until:
                break
            record = _played(ground, trial)
            record = replace(record, facts=record.facts | {"rules": rules})
            record, said = diagnosed(record)
            corpus.append(out, record)
            causes = "+".join(record.truth.causes) or "healthy"
            say(
                f"{trial.number:4} {trial.world} ranks {record.facts['wall_s']:5.1f} s outside {record.outside:.0%} {causes:42} {said}"
            )
    finally:
        ground.close()
    print(report(list(corpus.read(out))))
    return 0


def _played(ground: Ground, trial: Trial) -> corpus.Record:
    """One whose injection came too late is played again, whatever a diagnosis would say of it: nobody has asked for one yet."""
    tries = 1
    run = Run(ground, trial)
    record = run.play()
    while run.late and tries < TRIES:
        tries += 1
        run = Run(ground, trial)
        record = run.play()
    return replace(record, facts=record.facts | {"tries": tries})


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _unforeseen(rules: str) -> int:
    """From the commit that holds the rules: nobody knew these seeds when they were written."""
    return int(rules[:10] or "0", 16) % 1_000_000 * 1000


def _quick() -> None:
    """Counters are told often: a trial lasts seconds, where a training lasts days. What is loaded is left alone by the collector."""
    watch.COUNT_S = COUNT_S
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
