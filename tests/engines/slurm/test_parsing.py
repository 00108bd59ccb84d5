"""What Slurm's commands print is read as it was printed (recorded of 22.05.8), and no text of a user's changes what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.slurm import parsing, runfolder
from penstock.engines.slurm.offers import offer
from penstock.engines.slurm.spec import SlurmJob

RECORDED = Path(__file__).parent / "recorded"
MARK, SEPARATOR = "x00112233", "x44556677"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def squeue(text: str) -> list[SlurmJob]:
    return [job for row in parsing.rows(text, MARK, SEPARATOR) if (job := parsing.job(row)) is not None]


def test_squeue() -> None:
    jobs = {job.key: job for job in squeue(recorded("answer_squeue.txt"))}
    states = {key: job.state for key, job in jobs.items()}
    assert sorted(set(states.values())) == ["CANCELLED", "COMPLETED", "FAILED", "PENDING", "RUNNING"]
    runs = next(job for job in jobs.values() if job.state == "RUNNING")
    assert runs.nodes
    assert runs.started_at is not None
    assert runs.start_estimate is None
    tasks = [job for job in jobs.values() if job.array_index is not None]
    assert len({job.key for job in tasks}) == len(tasks) >= 2
    assert any("\n" in job.name for job in jobs.values())


def test_sacct() -> None:
    jobs = {job.key: job for job in parsing.finished(recorded("answer_sacct.txt"), MARK, {0: "root"})}
    assert any(job.state == "CANCELLED" and job.cancelled_by == "root" for job in jobs.values())
    assert any(job.state == "FAILED" and job.exit_code == 3 for job in jobs.values())
    assert any("\n" in job.name for job in jobs.values())
    assert parsing.cancellers(recorded("answer_sacct.txt")) == {0}


def test_nodes() -> None:
    nodes = parsing.nodes(recorded("answer_nodes.txt"))
    ways = parsing.topology(recorded("answer_topology.txt"))
    assert [node.name for node in nodes] == [f"node-{n}" for n in range(8)]
    assert ways["node-5"] == "spine.leaf2.node-5"
    assert (nodes[0].cpus, nodes[0].memory, len(offer(nodes[0]).gpus)) == (8, 4000 << 20, 4)
    drained = next(node for node in nodes if "DRAIN" in node.state)
    assert (drained.reason, drained.reason_by) == ("bad DIMM = slot 3 [b]", "root")
    assert drained.reason_at is not None
    assert offer(drained).closed
    assert offer(nodes[0], "c1-").name == "c1-node-0"


def test_devices() -> None:
    found = parsing.devices(recorded("answer_devices.txt"))
    assert all(set(numbers) <= {0, 1, 2, 3} for shares in found.values() for numbers in shares.values())
    assert {len(numbers) for shares in found.values() for numbers in shares.values()} == {2}
    assert max(len(shares) for shares in found.values()) == 2


@pytest.mark.parametrize(("text", "names"), [
    ("node-[0-2,7],login", ("node-0", "node-1", "node-2", "node-7", "login")),
    ("gpu[08-11]", ("gpu08", "gpu09", "gpu10", "gpu11")),
    ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
    ("", ()),
    ("(null)", ()),
])  # fmt: skip
def test_hosts(text: str, names: tuple[str, ...]) -> None:
    assert parsing.hosts(text) == names


@pytest.mark.parametrize(("text", "seconds"), [
    ("1-02:03:04", 93784.0), ("10:00", 600.0), ("UNLIMITED", None), ("NONE", None), ("", None),
])  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert parsing.duration(text) == seconds


FIELDS = st.text(st.sampled_from("abcx01234567_|,.:- []()=\n"), max_size=20)
ROWS = st.lists(st.tuples(st.integers(1, 10**9), FIELDS, FIELDS), max_size=6)


@given(ROWS)
def test_names_and_reasons_of_any_text_are_read_as_they_are(rows: list[tuple[int, str, str]]) -> None:
    printed = ""
    for number, name, reason in rows:
        told = [str(number)] * 3 + ["N/A", "RUNNING", "ann", "ml", "gpu", "q", "n1", "1", "2", "3"]
        fields = [*told, reason, reason, name]
        printed += MARK + SEPARATOR.join(fields) + "\n"
    found = squeue(printed)
    assert [(job.id, job.name) for job in found] == [(number, name) for number, name, _ in rows]


@given(ROWS)
def test_names_in_accounting_too(rows: list[tuple[int, str, str]]) -> None:
    printed = "".join(
        MARK.join([str(n), str(n), name, "FAILED", "1:0", user, "ml", "gpu", "q", "n1", "1", "2", "3"]) + "\n"
        for n, name, user in rows
    )
    found = parsing.finished(printed, MARK, {})
    assert [(job.id, job.name, job.user) for job in found] == rows


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    squeue(MARK + text)
    parsing.finished(text.replace(" ", MARK), MARK, {})
    parsing.nodes(text)
    parsing.nodes(f"NodeName={text}")
    parsing.topology(f"SwitchName={text} Nodes={text}")
    parsing.partitions(f"PartitionName={text} MaxTime={text}")
    parsing.devices(f"JobId=1 Nodes=n[{text}] CPU_IDs= Mem= GRES=gpu(IDX:{text})")
    parsing.settings(text)
    runfolder.facts("\n".join(f"==> {name} <==\n{text}\n" for name in ("claim", "started", "ended", "ranks/0")))


@given(st.text(st.characters(exclude_characters="\n"), max_size=60))
def test_a_run_folders_end_is_read(message: str) -> None:
    text = f"==> claim <==\n12 0\n\n==> ended <==\n12.5 - 9 Failed {message}\n\n==> ranks/3 <==\nn1 4 0 12.25 1\n"
    found = runfolder.facts(text)
    assert found.end == runfolder.End(12.5, None, 9, "Failed", message)
    assert [(rank.rank, rank.node, rank.exit_code, rank.restarts) for rank in found.ranks] == [(3, "n1", 4, 1)]


def test_one_folders_text_heads_no_others() -> None:
    printed = (
        "==> /r/a/claim <==\n12 0\n\n==> /r/a/ended <==\n==> /r/b/ended <==\n\n==> /r/b/claim <==\n13 0\n\n"
        "==> /r/b/ended <==\n9.5 3 0 Failed \n\n==> /r/b/ranks/0 <==\n==> /r/a/ended <=="
    )
    found = runfolder.read(printed, ["/r/a", "/r/b", "/r/gone"])
    assert found["/r/a"] == runfolder.Facts(claim="12")
    assert found["/r/b"].end == runfolder.End(9.5, 3, None, "Failed") and found["/r/b"].claim == "13"
    assert "/r/gone" not in found


@pytest.mark.parametrize(
    ("said", "unanswered"),
    [
        ("sbatch: error: Batch job submission failed: Connection reset by peer", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("slurm_load_jobs error: Socket timed out on send/recv operation", True),
        ("sbatch: error: Batch job submission failed: Broken pipe", True),
        ("sbatch: error: Batch job submission failed: No route to host", True),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            False,
        ),
    ],
)
def test_no_answer_is_no_refusal(said: str, unanswered: bool) -> None:
    assert parsing.unavailable(said) is unanswered
