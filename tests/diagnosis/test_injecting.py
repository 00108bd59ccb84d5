"""Injections are undone: at the end, after an error, and by whoever comes after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.base.errors import Conflict, InvalidInput
from penstock.diagnosis.injecting import acting, catalogue, network, notes
from penstock.diagnosis.injecting.groups import home
from penstock.diagnosis.injecting.spec import Order, Target
from penstock.engines.local import procs

_IDLE = "import time\nwhile True: sum(range(100000)); time.sleep(0.002)"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    child = subprocess.Popen([sys.executable, "-S", "-c", _IDLE])
    yield Target(1, child.pid, procs.start_time(child.pid) or 0, "node-1", str(tmp_path / "inject.json"))
    child.kill()
    child.wait()


def _order(name: str, target: Target, strength: float | None = None) -> Order:
    return acting.order(catalogue.named(name), (target,), (target,), strength=strength)


def test_every_fault_is_of_a_cause_and_has_words() -> None:
    for name, fault in catalogue.FAULTS.items():
        assert name == fault.name
        assert fault.cause and fault.words and fault.layer
        assert 0 < fault.strength.low <= fault.strength.default <= fault.strength.high


def test_unknown_fault_is_named() -> None:
    with pytest.raises(InvalidInput, match="there is no fault 'gremlins'"):
        catalogue.named("gremlins")


def test_a_fault_is_found_by_its_cause() -> None:
    assert catalogue.named("process_frozen").name == "freeze"


@pytest.mark.needs("root")
def test_quota_throttles_and_goes_again(target: Target, tmp_path: Path) -> None:
    before = home(target.pid, "cpu")
    with acting.injected(_order("cpu-quota", target, strength=0.05), "job", tmp_path / "notes"):
        inside = home(target.pid, "cpu")
        assert inside != before or Path(inside, "cpu.max").exists()
        time.sleep(0.3)
        stat = Path(inside, "cpu.stat").read_text()
        assert int(dict(line.split() for line in stat.splitlines())["nr_throttled"]) > 0
    assert home(target.pid, "cpu") == before
    assert not list((tmp_path / "notes").iterdir())


@pytest.mark.needs("root")
def test_burners_share_the_core_and_go_again(target: Target, tmp_path: Path) -> None:
    before = os.sched_getaffinity(target.pid)
    with acting.injected(_order("cpu-contention", target, strength=2), "job", tmp_path / "notes") as note:
        burners = [step[1] for step in note.said["undo"] if step[0] == "end"]
        assert len(burners) == 2
        assert all(procs.start_time(pid) for pid in burners)
        assert len(os.sched_getaffinity(target.pid)) == 1
    assert os.sched_getaffinity(target.pid) == before
    assert not any(procs.start_time(pid) for pid in burners)


def test_hook_faults_are_written_for_the_chosen_ranks_and_taken_out(target: Target, tmp_path: Path) -> None:
    hook = Path(target.hook)
    with (
        acting.injected(_order("slow-loader", target, strength=0.02), "job", tmp_path / "notes"),
        acting.injected(_order("float64", target), "job", tmp_path / "notes"),
    ):
        told = json.loads(hook.read_text())["faults"]
        assert [(each["fault"], each["ranks"], each["strength"]) for each in told] == [
            ("slow-loader", [1], 0.02),
            ("float64", None, 1.0),
        ]
    assert not hook.exists()


def test_refused_where_the_training_did_not_opt_in(target: Target, tmp_path: Path) -> None:
    bare = Target(1, target.pid, target.start)
    with pytest.raises(Conflict, match="PENSTOCK_INJECT"), acting.injected(_order("leak", bare), "job", tmp_path):
        pass


def test_refused_on_a_network_that_others_use(target: Target, tmp_path: Path) -> None:
    with pytest.raises(Conflict), acting.injected(_order("bandwidth", target), "job", tmp_path):
        pass


def test_refused_for_a_process_that_is_another_now(target: Target, tmp_path: Path) -> None:
    other = Target(1, target.pid, target.start + 1)
    with pytest.raises(Conflict, match="has ended"), acting.injected(_order("freeze", other), "job", tmp_path):
        pass


def test_whoever_comes_after_a_crash_undoes_it(target: Target, tmp_path: Path) -> None:
    """The injector is killed while its rank stands still."""
    root = tmp_path / "notes"
    words = (
        "import sys, time\nfrom pathlib import Path\n"
        "from penstock.diagnosis.injecting import acting, catalogue\nfrom penstock.diagnosis.injecting.spec import Target\n"
        f"t = Target(1, {target.pid}, {target.start})\n"
        "order = acting.order(catalogue.named('freeze'), (t,), (t,), strength=60)\n"
        "with acting.injected(order, 'job', Path(sys.argv[1])): time.sleep(60)\n"
    )
    injector = subprocess.Popen([sys.executable, "-c", words, str(root)])
    deadline = time.monotonic() + 20
    while _state(target.pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _state(target.pid) == "T"
    assert notes.undo_all(root) == ([], [])  # it is another's, who lives
    assert [note.ours for note in notes.all_notes(root)] == [False]
    injector.send_signal(signal.SIGKILL)
    injector.wait()
    done, failures = notes.undo_all(root)
    assert len(done) == 1
    assert not failures
    assert _state(target.pid) != "T"
    assert not list(root.iterdir())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]


def test_a_note_is_of_the_process_that_made_it(tmp_path: Path) -> None:
    notes.Note.new("freeze", "job", tmp_path).will("unlink", str(tmp_path / "none"))
    assert [note.ours for note in notes.all_notes(tmp_path)] == [True]


def test_traffic_of_others_needs_a_peer(target: Target, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="of one rank"):
        network.congestion(_order("congestion", target), notes.Note.new("congestion", "job", tmp_path))


def test_undo_twice_is_no_error(target: Target, tmp_path: Path) -> None:
    note = notes.Note.new("freeze", "job", tmp_path)
    note.will("continue", target.pid, target.start)
    note.will("unlink", str(tmp_path / "none"))
    note.will("ungroup", str(tmp_path / "gone"), str(tmp_path))
    assert note.undo() == []
    assert note.undo() == []


def test_what_cannot_be_undone_stays_noted(tmp_path: Path) -> None:
    note = notes.Note.new("disk-full", "job", tmp_path)
    note.will("unlink", str(tmp_path / "a-file"))
    (tmp_path / "a-folder").mkdir()
    note.will("unlink", str(tmp_path / "a-folder"))
    assert note.undo()
    assert [step[1] for step in notes.all_notes(tmp_path)[0].said["undo"]] == [str(tmp_path / "a-folder")]
