"""The client against a stand-in server over real sockets: what it sends, what it makes of answers, what it repeats."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import Conflict, NotFound, Unauthenticated, Unavailable
from penstock.client import discovery
from penstock.client.client import Client
from penstock.client.snapshot import take
from tests.client.standin import Reply, Request, StandIn, job, problem, raw_server, says, sse

JOBS = "/api/v1/projects/default/jobs"


def test_a_job_is_made_once_with_a_key_of_its_own(server: StandIn, client: Client) -> None:
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    made = client.jobs.create({"command": ["true"]}, name="digits", labels={"team": "x"})
    assert (made.name, made.phase, made.project, made.generation) == ("digits", "Running", "default", 1)
    client.jobs.create({"command": ["true"]})
    first, second = server.seen(f"POST {JOBS}")
    assert first.json == {"name": "digits", "labels": {"team": "x"}, "spec": {"command": ["true"]}}
    assert second.json == {"spec": {"command": ["true"]}}
    keys = [request.headers["idempotency-key"] for request in (first, second)]
    assert len(set(keys)) == 2
    assert all(len(key) == 32 for key in keys)


def test_a_creation_that_broke_off_is_repeated_with_the_same_key() -> None:
    heads: list[bytes] = []

    def breaks(near: Any) -> None:
        heads.append(near.recv(65536))

    def answers(near: Any) -> None:
        heads.append(near.recv(65536))
        body = json.dumps(job()).encode()
        near.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(breaks, answers) as url, Client(url, "t") as client:
        client.transport.pause = lambda _: None
        assert client.jobs.create({"command": ["true"]}).name == "digits"
    assert heads[0] == heads[1]


def test_names_cannot_leave_their_place_in_the_path(server: StandIn, client: Client) -> None:
    for name in ("../../users", "a/b", "a?x=1", "a#b", "a b\r\n"):
        with pytest.raises(NotFound):
            client.jobs.get(name)
    assert all(request.path.startswith(f"{JOBS}/") for request in server.requests)
    assert all(request.path.count("/") == JOBS.count("/") + 1 for request in server.requests)


def test_lists_go_from_page_to_page(server: StandIn, client: Client) -> None:
    def answer(request: Request) -> Reply:
        start = int(request.query.partition("cursor=")[2] or 0)
        limit = int(request.query.partition("limit=")[2].partition("&")[0])
        end = min(start + limit, 1200)
        items = [{"name": str(number)} for number in range(start, end)]
        return Reply(body={"items": items, "next_cursor": str(end) if end < 1200 else None})

    server.answers["GET /api/v1/jobs"] = answer
    assert [int(found.name) for found in client.jobs.list()] == list(range(1200))
    assert len(server.requests) == 3
    assert len(list(client.jobs.list(most=510, phase=["active"]))) == 510
    assert server.requests[-1].query == "phase=active&limit=10&cursor=500"


def test_nodes_are_one_list_without_parameters(server: StandIn, client: Client) -> None:
    server.answers["GET /api/v1/nodes"] = Reply(body={"items": [{"name": "node-0"}], "next_cursor": None})
    assert [node.name for node in client.nodes.list()] == ["node-0"]
    assert server.requests[0].query == ""


ACTIONS: list[tuple[str, Callable[[Client], object], Any]] = [
    (f"POST {JOBS}/a/cancel", lambda c: c.jobs.cancel("a", reason="why"), {"reason": "why"}),
    (
        f"PUT {JOBS}/a",
        lambda c: c.jobs.replace("a", {"nodes": 2}, generation=3),
        {"spec": {"nodes": 2}, "generation": 3},
    ),
    ("POST /api/v1/nodes/n/cordon", lambda c: c.nodes.cordon("n"), {}),
    ("POST /api/v1/nodes/n/uncordon", lambda c: c.nodes.uncordon("n"), {}),
    ("POST /api/v1/nodes/n/drain", lambda c: c.nodes.drain("n", "disk"), {"reason": "disk"}),
    ("POST /api/v1/nodes/n/lose", lambda c: c.nodes.lose("n"), {}),
    ("POST /api/v1/nodes/n/restore", lambda c: c.nodes.restore("n"), {}),
    (
        "POST /api/v1/users",
        lambda c: c.users.create("anna", unix_user="anna"),
        {"name": "anna", "role": "", "unix_user": "anna"},
    ),
    ("PUT /api/v1/users/anna", lambda c: c.users.change("anna", role="admin"), {"role": "admin"}),
    ("POST /api/v1/tokens", lambda c: c.tokens.create(expires_in="1d"), {"expires_in": "1d"}),
    ("POST /api/v1/projects", lambda c: c.projects.create("vis"), {"name": "vis"}),
    ("PUT /api/v1/projects/vis/members/anna", lambda c: c.projects.grant("vis", "anna", "member"), {"role": "member"}),
]


@pytest.mark.parametrize(("line", "call", "body"), ACTIONS, ids=[line for line, _, _ in ACTIONS])
def test_what_each_call_sends(
    server: StandIn, client: Client, line: str, call: Callable[[Client], object], body: Any
) -> None:
    server.answers[line] = Reply(body={"name": "x"})
    call(client)
    assert server.requests[-1].json == body


READS: list[tuple[str, Callable[[Client], object]]] = [
    (f"GET {JOBS}/a/why", lambda c: c.jobs.why("a")),
    (f"GET {JOBS}/a/progress", lambda c: c.jobs.progress("a")),
    (f"GET {JOBS}/a/cost", lambda c: c.jobs.cost("a")),
    ("GET /api/v1/version", lambda c: c.version()),
    ("GET /api/v1/whoami", lambda c: c.whoami()),
    ("GET /api/v1/audit/verify", lambda c: c.audit_verify()),
    ("GET /api/v1/openapi.json", lambda c: c.openapi()),
    ("GET /api/v1/cost/report", lambda c: c.cost_report(by="user", since="7d")),
]


@pytest.mark.parametrize(("line", "call"), READS, ids=[line for line, _ in READS])
def test_what_each_call_reads(server: StandIn, client: Client, line: str, call: Callable[[Client], Any]) -> None:
    server.answers[line] = Reply(body={"x": 1})
    assert call(client) == {"x": 1}


def test_deletions_answer_nothing(server: StandIn, client: Client) -> None:
    for path in (f"{JOBS}/a", "/api/v1/tokens/T", "/api/v1/projects/vis/members/anna"):
        server.answers[f"DELETE {path}"] = Reply(204)
    client.jobs.delete("a")
    client.tokens.revoke("T")
    client.projects.grant("vis", "anna", None)
    server.answers[f"DELETE {JOBS}/b"] = problem(409, "Conflict", "it runs")
    with pytest.raises(Conflict):
        client.jobs.delete("b")


def test_a_watch_ends_when_the_job_has_and_goes_on_after_a_break(server: StandIn, client: Client) -> None:
    streams = [
        sse(("job", job(phase="Pending"), "1"), ("job", job(phase="Running"), "2")),
        sse(("job", job(phase="Succeeded"), "3"), ("job", job(phase="Running"), "4")),
    ]

    def answer(request: Request) -> Reply:
        return Reply(body=streams.pop(0), headers={"Content-Type": "text/event-stream"})

    server.answers[f"GET {JOBS}/digits/watch"] = answer
    assert [seen.phase for seen in client.jobs.watch("digits")] == ["Pending", "Running", "Succeeded"]
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "2"]


def test_wait_answers_the_final_job(server: StandIn, client: Client) -> None:
    server.answers[f"GET {JOBS}/digits/watch"] = Reply(body=sse(("job", job(phase="Failed", exit_code=3), "1")))
    assert client.jobs.wait("digits").status["exit_code"] == 3


def test_a_watch_that_never_began_fails_at_once(client: Client, server: StandIn) -> None:
    with pytest.raises(NotFound):
        next(client.jobs.watch("none"))
    assert len(server.requests) == 1


def test_a_stream_may_tell_an_error(server: StandIn, client: Client) -> None:
    error = {"code": "NotFound", "message": "it was deleted", "details": []}
    server.answers[f"GET {JOBS}/digits/watch"] = Reply(body=sse(("job", job(), "1"), ("error", error, "2")))
    with pytest.raises(NotFound, match="deleted"):
        list(client.jobs.watch("digits"))


def test_a_watch_gives_up_when_the_server_stays_away() -> None:
    body = b"".join(sse(("job", job(), "1")))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with raw_server(says(answer)) as url, Client(url, "t") as client:
        client.transport.pause = lambda _: None
        watch = client.jobs.watch("digits")
        assert next(watch).phase == "Running"
        with raw_server() as elsewhere:
            client.transport.address = client.transport.address._replace(port=int(elsewhere.rpartition(":")[2]))
        with pytest.raises(Unavailable):
            next(watch)


def test_events_newest_last_and_followed(server: StandIn, client: Client) -> None:
    items = [{"seq": seq} for seq in (9, 8, 7)]
    server.answers["GET /api/v1/events"] = Reply(body={"items": items, "next_cursor": None})
    assert [event["seq"] for event in client.events.newest(3, kind="Job")] == [7, 8, 9]
    assert server.requests[-1].query == "newest=true&kind=Job&limit=3"
    server.answers["GET /api/v1/events/watch"] = Reply(body=sse(("message", {"seq": 10}, "10")))
    assert next(client.events.follow(after=9))["seq"] == 10
    assert server.requests[-1].headers["last-event-id"] == "9"


def test_logs_are_streamed(server: StandIn, client: Client) -> None:
    server.answers[f"GET {JOBS}/digits/logs"] = Reply(body=[b"a\n", b"b\n"])
    with client.jobs.logs("digits", follow=True, tail=5, rank=None) as log:
        assert b"".join(log) == b"a\nb\n"
    assert server.requests[-1].query == "follow=true&tail=5"


def test_a_snapshot_is_sent_once(server: StandIn, client: Client, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    stored: dict[str, bytes] = {}

    def put(request: Request) -> Reply:
        stored[request.path] = request.body
        server.answers[f"HEAD {request.path}"] = Reply(200)
        return Reply(201)

    digest = _digest(tmp_path)
    server.answers[f"PUT /api/v1/snapshots/{digest}"] = put
    assert client.carry(str(tmp_path)) == digest
    assert client.carry(str(tmp_path)) == digest
    assert [request.method for request in server.requests] == ["HEAD", "PUT", "HEAD"]
    with tarfile.open(fileobj=io.BytesIO(stored[f"/api/v1/snapshots/{digest}"])) as tar:
        assert tar.getnames() == ["train.py"]


def _digest(folder: Path) -> str:
    return take(str(folder)).digest


def test_run_carries_the_folder_and_names_the_environment(server: StandIn, client: Client, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    digest = _digest(tmp_path)
    server.answers[f"HEAD /api/v1/snapshots/{digest}"] = Reply(200)
    server.answers[f"POST {JOBS}"] = Reply(201, job())
    client.jobs.run(["python", "train.py"], workdir=str(tmp_path), procs=2)
    spec = server.requests[-1].json["spec"]
    assert spec["snapshot"] == digest
    assert spec["workdir"] == str(tmp_path)
    assert spec["procs"] == 2
    client.jobs.run(["true"], workdir=str(tmp_path), snapshot=False)
    assert "snapshot" not in server.requests[-1].json["spec"]
    assert server.requests[-1].json["spec"]["workdir"] == str(tmp_path)
    (tmp_path / "train.py").unlink()
    client.jobs.run(["true"], workdir=str(tmp_path))
    assert "workdir" not in server.requests[-1].json["spec"]  # an empty folder: the job's own will do


def test_apply_carries_the_folders_that_the_documents_name(server: StandIn, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("1")
    (tmp_path / "empty").mkdir()
    digest = _digest(tmp_path / "a")
    server.answers[f"HEAD /api/v1/snapshots/{digest}"] = Reply(200)
    folders = [str(tmp_path / "a"), str(tmp_path / "empty"), None, str(tmp_path / "a")]
    server.answers["POST /api/v1/apply"] = Reply(body={"dry_run": False, "items": [{"workdir": f} for f in folders]})
    client.apply("kind: Job\n")
    plan, _, real = server.requests
    assert (plan.query, real.query) == ("dry_run=true&project=default", "dry_run=false&project=default")
    assert "snapshots" not in plan.headers
    assert json.loads(real.headers["snapshots"]) == {str(tmp_path / "a"): digest, str(tmp_path / "empty"): ""}
    client.apply("kind: Job\n", dry_run=True)
    assert server.requests[-1].query.startswith("dry_run=true")


def test_backup_and_restore(server: StandIn, client: Client) -> None:
    server.answers["GET /api/v1/backup"] = Reply(body=[b"PK", b"zip"])
    server.answers["POST /api/v1/restore"] = lambda request: Reply(body={"bytes": len(request.body)})
    pieces: list[bytes] = []
    assert client.backup(pieces.append) == 5
    assert client.restore(b"".join(pieces)) == {"bytes": 5}


def place(folder: Path, url: str, token: str | None = "pk_local") -> str:
    folder.joinpath(discovery.SERVER_FILE).write_text(json.dumps({"url": url, "pid": 1}))
    if token is not None:
        folder.joinpath(discovery.TOKEN_FILE).write_text(token + "\n")
    return str(folder)


def test_the_data_folder_says_where_and_with_what(tmp_path: Path) -> None:
    folder = place(tmp_path, "http://127.0.0.1:7070")
    found = discovery.find(None, None, folder)
    assert (found.url, found.token) == ("http://127.0.0.1:7070", "pk_local")
    assert discovery.find(None, "pk_mine", folder).token == "pk_mine"


def test_the_local_token_goes_to_the_local_server_only(tmp_path: Path) -> None:
    folder = place(tmp_path, "http://127.0.0.1:7070")
    assert discovery.find("http://127.0.0.1:7070/", None, folder).token == "pk_local"
    assert discovery.find("http://evil.example", None, folder).token is None
    assert discovery.find("http://127.0.0.1:7071", None, folder).token is None


def test_no_server_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="holds no server") as caught:
        Client(data_dir=str(tmp_path))
    assert "penstock up" in caught.value.advice
    tmp_path.joinpath(discovery.SERVER_FILE).write_text("{")
    with pytest.raises(Unavailable, match="cannot read"):
        Client(data_dir=str(tmp_path))


def test_without_a_token_whoami_asks_for_one(server: StandIn) -> None:
    with Client(server.url) as client, pytest.raises(Unauthenticated):
        client.whoami()
    assert server.requests == []
