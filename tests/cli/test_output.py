"""Golden output: tables, JSON, YAML, errors; and strangers' text that would take over a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput, Problem
from penstock.base.settings import Settings
from penstock.cli.live import ERASE, Bar
from penstock.cli.output import Screen, print_error
from penstock.client.verb import Column, Progress
from penstock.fleet.commands import COLUMNS as NODES
from penstock.jobs.commands import view
from tests.cli.conftest import NOW, Cli
from tests.client.standin import Reply, StandIn, job
from tests.health.sample import NODE as SICK
from tests.telemetry.agents import an_hour

HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\x9bc\u202e\r\nd"
SETTINGS = Settings(data_dir="/none", width=100)

ARRAY = {"total": 10, "succeeded": 3, "failed": 1, "cancelled": 0, "running": 4, "pending": 2}
JOBS = [
    job(
        "digits",
        progress={"step": 30, "total_steps": 100, "metrics": {"loss": 0.3}, "rate": 5.1, "eta_s": 14},
        restarts=1,
    ),
    job("sweep", "Running", array=ARRAY, nodes=[]),
    job("later", "Pending", reason="WaitingForResources", message="needs 8 GPUs, 2 are free", nodes=[]),
    job("broken", "Failed", reason="Failed", message="the command exited with code 7", exit_code=7),
    job("done", "Succeeded", reason="Completed"),
]
TABLE = """\
NAME    PHASE      PROGRESS    RESTARTS    AGE  NODES   WHY
digits  Running      30/100           1  2m48s  node-0  Started
sweep   Running    4/10 tasks         0  2m48s  -       Started
later   Pending             -         0  2m48s  -       WaitingForResources: needs 8 GPUs, 2 are free
broken  Failed              -         0  2m48s  node-0  the command exited with code 7
done    Succeeded           -         0  2m48s  node-0  Completed
"""


def plain(text: str) -> str:
    """Runs of blanks as one: the golden text is about words and order, ``test_columns_align`` about the rest."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


class Tty(io.TextIOWrapper):
    """A terminal, as far as whoever writes to it can tell."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="utf-8", write_through=True, newline="")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        return self.bytes.getvalue().decode()


class Pipe(Tty):
    def isatty(self) -> bool:
        return False


def test_get_is_a_table(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": JOBS, "next_cursor": None})
    ran = cli("get")
    assert ran.code == 0
    assert plain(ran.out) == plain(TABLE)
    assert server.requests[-1].query == "project=default&replicas=false&limit=101"


def test_columns_align(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": JOBS, "next_cursor": None})
    lines = cli("get").out.splitlines()
    assert {line.index("2m48s") for line in lines[1:]} == {lines[0].index("AGE") - 2}
    assert all(line == line.rstrip() for line in lines)


def test_get_json_and_yaml_are_what_the_api_said(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/projects/default/jobs/digits"] = Reply(body=JOBS[0])
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": JOBS, "next_cursor": None})
    assert json.loads(cli("get", "digits", "-o", "json").out) == JOBS[0]
    assert yaml.safe_load(cli("-o", "yaml", "get", "job/digits").out) == JOBS[0]
    assert json.loads(cli("get", "jobs", "--output", "json").out) == {"items": JOBS}


def test_get_tells_when_there_is_more(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": JOBS, "next_cursor": "7"})
    ran = cli("get", "-n", "4", "--phase", "active", "-A", "-q", "x")
    assert len(ran.out.splitlines()) == 5
    assert "the newest 4 of more" in ran.err
    assert ran.out.startswith("PROJECT")
    assert server.requests[0].query == "phase=active&q=x&replicas=false&limit=5"


def test_get_several_tells_of_each(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/projects/default/jobs/digits"] = Reply(body=JOBS[0])
    ran = cli("get", "digits", "none")
    assert ran.code == 4
    assert "digits" in ran.out
    assert ran.err.startswith("none: ")


def test_describe(server: StandIn, cli: Cli) -> None:
    path = "GET /api/v1/projects/default/jobs/broken"
    attempt = {
        "number": 1, "phase": "Failed", "reason": "Failed", "message": "code 7", "nodes": ["node-0"], "started_at": None,
        "ended_at": None, "exit_code": 7, "signal": None, "restarts": 0,
    }  # fmt: skip
    event = {"seq": 1, "at": "2026-11-22T03:43:10Z", "reason": "Created", "actor": "admin", "message": "by admin"}
    server.answers |= {
        path: Reply(body=JOBS[3]),
        f"{path}/attempts": Reply(body={"items": [attempt], "next_cursor": None}),
        f"{path}/checkpoints": Reply(body={"saves": [], "count": 0, "policy": None, "loads": [], "measured": {}}),
        f"{path}/steps": Reply(body={"watched": False, "phases": [], "ranks": [], "charts": [], "more": 0}),
        f"{path}/cost": Reply(body={"total": 0.0123, "currency": "USD", "items": []}),
        f"{path}/events": Reply(body={"items": [event], "next_cursor": None}),
    }
    where = {"queue": "train", "placement": {"level": "rack", "required": True}, "flavors": ["h100", "h200"]}
    where |= {"exclude_nodes": ["node-3"], "reservation": "demo"}
    server.answers[path] = Reply(body={**JOBS[3], "spec": {**JOBS[3]["spec"], **where}})
    words = plain(cli("describe", "broken").out)
    for line in (
        "Queue: train", "Placement: one rack, required", "Flavors: h100, h200", "Not on: node-3", "Reservation: demo",
    ):  # fmt: skip
        assert line in words
    server.answers[path] = Reply(body=JOBS[3])
    ran = cli("describe", "broken")
    words = plain(ran.out)
    for line in (
        "Name: default/broken", "Command: python train.py", "Shape: 1 node(s) x 2 rank(s)", "Phase: Failed", "Queue: its project's",
        "Why: the command exited with code 7", "Exit code: 7", "Cost: 0.0123 USD", "1 Failed node-0 - - 7 0 code 7",
        "10s Created admin by admin",
    ):  # fmt: skip
        assert line in words
    whole = json.loads(cli("describe", "broken", "-o", "json").out)
    assert whole["attempts"] == [attempt]
    assert whole["events"] == [event]


def test_nodes(server: StandIn, cli: Cli) -> None:
    gpus = [{"id": "GPU-1", "model": "H200"}]
    node = {
        "kind": "Node", "name": "node-0", "engine": "local", "capacity": {"cpus": 4.0, "memory": 8 << 30, "gpus": gpus},
        "allocated": {"cpus": 1.5, "memory": 1 << 30, "gpus": ["GPU-1"]}, "cordoned": True, "ready": True,
        "topology": {"block": "", "rack": "r7"}, "draining": False, "reason": "Cordoned", "message": "new disk", "jobs": [{"project": "default", "name": "digits"}],
    }  # fmt: skip
    server.answers["GET /api/v1/nodes"] = Reply(body={"items": [node], "next_cursor": None})
    assert plain(cli("nodes").out).splitlines() == [
        "NAME STATE CPUS MEMORY GPUS PLACE JOBS WHY",
        "node-0 Cordoned 1.5/4 1Gi/8Gi 1/1 H200 r7 1 Cordoned new disk",
    ]
    server.answers["GET /api/v1/nodes/node-0"] = Reply(body=node)
    server.answers["GET /api/v1/nodes/node-0/health"] = Reply(body=SICK)
    server.answers["GET /api/v1/nodes/node-0/telemetry"] = Reply(body=an_hour("node-0", NOW, 60.0))
    told = plain(cli("describe", "node", "node-0").out)
    assert "GPUs: 1/1 H200 in use" in told
    assert "Xid 79 on GPU-1: fell off the bus (active)" in told
    assert NODES[0].title == "NAME"


def test_engines_are_shown_where_there_are_several(server: StandIn, cli: Cli) -> None:
    there = job("far") | {"id": "01F"}
    there["status"] = there["status"] | {"engine": "c1", "engine_job": "1234", "start_estimate": "2026-11-25T12:00:00Z"}
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": [job("near"), there], "next_cursor": None})
    rows = plain(cli("get").out).splitlines()
    assert rows[0].startswith("NAME ENGINE PHASE")
    assert rows[2].startswith("far c1:1234 ")
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": [there], "next_cursor": None})
    assert "far" in cli("get", "c1:1234").out
    assert "q=c1%3A1234" in server.seen("GET /api/v1/jobs")[-1].query
    assert "far" in cli("get", "--engine", "c1").out
    assert "engine=c1" in server.seen("GET /api/v1/jobs")[-1].query
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": [job("near")], "next_cursor": None})
    assert "ENGINE" not in cli("get").out


def test_why(server: StandIn, cli: Cli) -> None:
    body = {
        "project": "default", "name": "later", "phase": "Pending", "reason": "WaitingForResources", "message": "8 GPUs",
        "evidence": ["node-0: 2 GPUs free"], "helps": ["fewer GPUs"],
    }  # fmt: skip
    server.answers["GET /api/v1/projects/default/jobs/later/why"] = Reply(body=body)
    assert cli("why", "later").out == (
        "default/later is Pending: WaitingForResources: 8 GPUs\n"
        "Evidence:\n  node-0: 2 GPUs free\nWhat helps:\n  fewer GPUs\n"
    )


def test_cost(server: StandIn, cli: Cli) -> None:
    quantities = {"cpu_hours": 1.5, "memory_gib_hours": 2.0, "gpu_hours": 0.25}
    item = {"key": {"project": "default", "job": "digits"}, "amount": 0.75, "quantities": quantities}
    report = {"currency": "EUR", "by": "job", "since": None, "until": None, "items": [item], "total": 0.75}
    server.answers["GET /api/v1/cost/report"] = Reply(body=report)
    assert plain(cli("cost", "report", "--by", "job", "--since", "7d").out).splitlines() == [
        "PROJECT JOB CPU-HOURS GIB-HOURS GPU-HOURS EUR",
        "default digits 1.5000 2.0000 0.2500 0.7500",
        "total 0.7500 EUR",
    ]
    assert server.requests[-1].query == "by=job&since=7d&project=default"


def test_audit(server: StandIn, cli: Cli) -> None:
    good = {"ok": True, "rows": 23, "first_bad_seq": None, "problem": None, "head": {"seq": 23, "hash": "abc"}}
    server.answers["GET /api/v1/audit/verify"] = Reply(body=good)
    assert cli("audit").out == "ok: 23 rows, the last hash is abc\n"
    bad = {"ok": False, "rows": 23, "first_bad_seq": 7, "problem": "its hash does not match", "head": None}
    server.answers["GET /api/v1/audit/verify"] = Reply(body=bad)
    ran = cli("audit", "verify")
    assert ran.code == 9
    assert "row 7 of the ledger is not as it was written: its hash does not match" in ran.err


def test_errors_are_told_with_their_places() -> None:
    error = InvalidInput(
        "2 things are wrong with this file",
        details=[Problem("spec.nodes", "must be 1 or more", 3), Problem("name", HOSTILE)],
    )
    screen = io.StringIO()
    print_error(error, screen, color=True)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "error: 2 things are wrong with this file"
    assert lines[1] == "  line 3: spec.nodes: must be 1 or more"
    assert lines[2].startswith("  name: ab")
    assert lines[3] == "hint: Correct what is named and send it again; nothing was changed."
    assert "\x1b" not in screen.getvalue()
    tty = Tty()
    print_error(error, tty, color=True)
    assert tty.shown().startswith("\x1b[31merror:\x1b[0m 2 things")


def test_the_servers_error_becomes_an_exit_code(server: StandIn, cli: Cli) -> None:
    body = {"code": "Conflict", "message": "it runs", "hint": "Cancel it.", "details": []}
    server.answers["DELETE /api/v1/projects/default/jobs/digits"] = Reply(409, body)
    ran = cli("delete", "digits")
    assert (ran.code, ran.out, ran.err) == (5, "", "error: it runs\nhint: Cancel it.\n")


def test_no_server_says_what_to_do(cli: Cli) -> None:
    ran = cli("get", settings=Settings(data_dir="/nonexistent"))
    assert ran.code == 6
    assert "penstock up" in ran.err


@given(st.text(), st.sampled_from(["table", "json", "yaml"]), st.booleans())
def test_no_text_of_a_stranger_reaches_the_terminal_as_it_is(text: str, form: str, tty: bool) -> None:
    out = Tty() if tty else Pipe()
    screen = Screen(form, SETTINGS, out, Pipe())
    hostile = job("x", reason="", message=text + HOSTILE)
    hostile["name"] = text + HOSTILE
    try:
        screen.table(view.COLUMNS, [hostile], NOW) if form == "table" else screen.document(hostile)
    except UnicodeEncodeError:
        return  # lone surrogates cannot come out of a server's JSON in UTF-8
    shown = out.shown()
    own = shown.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[36m", "")
    assert not [c for c in own if c in "\x1b\x9b\x07\r\u202e" or (ord(c) < 32 and c not in "\n\t")]


def test_a_terminal_gets_a_drawn_table_that_is_no_wider_than_it() -> None:
    out = Tty()
    Screen("table", SETTINGS, out, Pipe()).table(view.COLUMNS, JOBS, NOW)
    assert "\x1b[31mFailed" in out.shown()
    assert "\x1b[32mSucceeded" in out.shown()
    out = Tty()
    columns = [Column("NAME", lambda row, _: str(row["name"]))]
    Screen("table", SETTINGS, out, Pipe()).table(columns, [{"name": "[red]x[/red] :smile:"}], NOW)
    assert "[red]x[/red] :smile:" in out.shown()


def test_without_colours_a_terminal_gets_plain_lines() -> None:
    out = Tty()
    Screen("table", Settings(data_dir="/", color=False), out, Pipe()).table(view.COLUMNS, JOBS, NOW)
    assert "\x1b" not in out.shown()


def bars(out: Any, err: Any) -> Bar:
    return Bar(out, err, 80)


def test_a_bar_stands_below_the_log_and_goes_without_a_trace() -> None:
    tty = Tty()
    bar = bars(tty, tty)
    bar.show(view.bar(JOBS[0]))
    bar.write(b"one\ntw")
    bar.write(b"o\nthree")
    bar.show(Progress(1.0, "all"))
    bar.close()
    screen = ""
    for piece in tty.shown().split(ERASE)[1:]:  # what stays after each erased line
        screen += piece[: piece.rfind("\n") + 1] or ("" if "\u2501" in piece or "\u2500" in piece else piece)
    assert screen == "one\ntwo\nthree"
    assert "30/100" in tty.shown()
    assert "5.1 steps/s" in tty.shown()
    assert "14s left" in tty.shown()


def test_a_bar_is_not_drawn_into_a_pipe() -> None:
    out, err = Pipe(), Pipe()
    bar = bars(out, err)
    bar.show(Progress(0.5, "x"))
    bar.write(b"\xff partial")
    bar.close()
    assert out.bytes.getvalue() == b"\xff partial"
    assert err.bytes.getvalue() == b""


def test_a_bar_beside_a_redirected_log_leaves_the_log_alone() -> None:
    out, err = Pipe(), Tty()
    bar = bars(out, err)
    bar.show(Progress(0.5, HOSTILE * 10))
    bar.write(b"par")
    bar.write(b"tial")
    bar.close()
    assert out.bytes.getvalue() == b"partial"
    line = err.shown().split(ERASE)[1]
    assert len(line) < 80
    assert "\x1b" not in line


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_every_byte_of_a_log_arrives_in_order(chunks: list[bytes]) -> None:
    out, err = Tty(), Tty()  # both terminals, so lines and bar take turns; looked at apart
    bar = bars(out, err)
    for number, chunk in enumerate(chunks):
        bar.show(Progress(None, str(number)))
        bar.write(chunk)
    bar.close()
    assert out.bytes.getvalue() == b"".join(chunks)


@pytest.mark.parametrize(
    "progress", [None, {}, {"step": 5}, {"step": None, "metrics": {}}, {"step": 5, "total_steps": 0}]
)
def test_odd_reports_do_not_break_the_bar(progress: Any) -> None:
    assert view.bar(job(progress=progress)).done is None


def test_an_arrays_bar_counts_its_tasks() -> None:
    assert view.bar(JOBS[1]).done == pytest.approx(0.4)


def test_what_compiling_a_queue_file_would_change(server: StandIn, cli: Cli) -> None:
    answer = {
        "engine": "c1", "cluster": "test", "managed": True, "dry_run": True, "failed": [],
        "changes": [
            {"action": "add", "what": "account vision", "fields": {"parent": "root", "limit gres/gpu": "16"}, "why": "queue vision", "command": []},
            {"action": "set", "what": "account nlp", "fields": {"max_wall": ""}, "why": "queue nlp; max_wall: 60 -> nothing", "command": []},
            {"action": "delete", "what": "user ann in account old", "fields": {}, "why": "the queue file has it no more", "command": []},
        ],
        "drift": [{"what": "account cv", "field": "fairshare", "message": "account cv: fairshare is 9, changed by hand from 2"}],
        "left": ["account root: is there already"], "cannot": ["lending limits of nlp"],
    }  # fmt: skip
    server.answers["POST /api/v1/queues/compile"] = Reply(body=answer)
    assert plain(cli("queues", "compile", "--engine", "c1", "--dry-run").out).splitlines() == [
        "+ account vision: limit gres/gpu=16 parent=root (queue vision)",
        "~ account nlp: max_wall=none (queue nlp; max_wall: 60 -> nothing)",
        "- user ann in account old: (the queue file has it no more)",
        "changed by hand: account cv: fairshare is 9, changed by hand from 2 (--overwrite sets it back)",
        "left: account root: is there already",
        "not in Slurm: lending limits of nlp",
        "c1: 3 changes would be made",
    ]
    refused = answer | {"dry_run": False, "failed": ["account nlp: you may not"]}
    server.answers["POST /api/v1/queues/compile"] = Reply(body=refused)
    done = cli("queues", "compile", "--engine", "c1")
    assert done.code == 1
    assert plain(done.out).splitlines()[-2:] == ["refused: account nlp: you may not", "c1: 2 changes made"]
