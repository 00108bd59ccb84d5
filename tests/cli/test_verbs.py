"""The other verbs: what they send, what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.base.errors import Conflict
from penstock.base.settings import Settings
from penstock.jobs.commands import session
from tests.cli.conftest import Cli
from tests.client.standin import Reply, StandIn, job, problem, sse

JOB = "/api/v1/projects/default/jobs/digits"
EVENT = {
    "seq": 7, "at": "2026-11-22T03:43:10.000Z", "actor": "system", "kind": "Job", "project": "default", "name": "digits",
    "reason": "RankExited", "message": "rank 1: signal 9", "data": None, "hash": "abcdef0123456789",
}  # fmt: skip


def test_logs_pass_their_options_on(server: StandIn, cli: Cli) -> None:
    server.answers[f"GET {JOB}/logs"] = Reply(body=[b"a\xff\n"])
    server.answers[f"GET {JOB}/watch"] = Reply(body=sse(("job", job(phase="Succeeded"), "1")))
    ran = cli("logs", "-f", "--rank", "1", "--since", "10m", "--tail", "5", "--no-prefix", "--timestamps", "digits")
    assert ran.code == 0
    asked = server.seen(f"GET {JOB}/logs")[0].query
    assert asked == "rank=1&follow=true&since=10m&tail=5&prefix=false&timestamps=true"
    cli("logs", "digits", "--prefix", "--attempt", "2", "--raw")
    assert server.requests[-1].query == "attempt=2&prefix=true&raw=true"


def test_cancel_and_delete_do_the_others_all_the_same(server: StandIn, cli: Cli) -> None:
    server.answers[f"POST {JOB}/cancel"] = Reply(body=job(phase="Stopping", reason="CancelRequested"))
    ran = cli("cancel", "none", "digits", "--reason", "wrong data")
    assert ran.code == 4
    assert ran.out == "digits: Stopping (CancelRequested)\n"
    assert ran.err.startswith("none: ")
    assert server.requests[-1].json == {"reason": "wrong data"}
    server.answers[f"DELETE {JOB}"] = Reply(204)
    assert cli("delete", "digits").out == "digits: deleted\n"
    assert json.loads(cli("delete", "digits", "-o", "json").out)["deleted"] is True


def test_apply(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    items = [
        {
            "kind": "Job",
            "project": "default",
            "name": "a",
            "action": "create",
            "changes": [],
            "plan": ["admit at once"],
        },
        {"kind": "Job", "project": "default", "name": "b", "action": "update", "changes": ["nodes"], "plan": []},
        {"kind": "Job", "project": "default", "name": "c", "action": "unchanged", "changes": [], "plan": []},
    ]
    server.answers["POST /api/v1/apply"] = Reply(body={"dry_run": True, "items": items})
    path = tmp_path / "job.yaml"
    path.write_text("kind: Job\n")
    ran = cli("apply", "-f", str(path), "--dry-run")
    assert ran.out.splitlines() == [
        "Job default/a: would be created", "  admit at once", "Job default/b: would be updated", "  change nodes",
        "Job default/c: unchanged",
    ]  # fmt: skip
    assert server.requests[-1].body == b"kind: Job\n"
    assert cli("apply", "-f", str(path)).out.startswith("Job default/a: created")
    assert [request.query[:13] for request in server.requests[1:]] == ["dry_run=true&", "dry_run=false"]


def test_apply_tells_every_error_with_its_line(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    details = [{"path": "spec.nodess", "message": "is not a field here", "line": 3}, {"path": "name", "message": "x"}]
    server.answers["POST /api/v1/apply"] = problem(422, "InvalidInput", "2 things are wrong", details=details)
    path = tmp_path / "job.yaml"
    path.write_text("x")
    ran = cli("apply", "-f", str(path))
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "error: 2 things are wrong", "  line 3: spec.nodess: is not a field here", "  name: x", "hint: Do it right.",
    ]  # fmt: skip


def test_apply_of_no_file(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    ran = cli("apply", "-f", str(tmp_path / "none.yaml"))
    assert ran.code == 2
    assert "No such file" in ran.err
    assert server.requests == []


def test_events(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/events"] = Reply(body={"items": [EVENT], "next_cursor": None})
    ran = cli("events", "digits", "-n", "5", "--reason", "RankExited")
    assert ran.out.splitlines()[1].split() == [
        "7", "10s", "Job", "default/digits", "RankExited", "system", "rank", "1:", "signal", "9",
    ]  # fmt: skip
    assert server.requests[-1].query == "newest=true&name=digits&reason=RankExited&project=default&limit=5"


def test_events_followed(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/events"] = Reply(body={"items": [EVENT], "next_cursor": None})
    other = EVENT | {"seq": 8, "reason": "Started"}
    mine = EVENT | {"seq": 9, "message": ""}
    error = {"code": "Unauthenticated", "message": "the token was revoked", "details": []}
    stream = sse(("message", other, "8"), ("message", mine, "9"), ("error", error, "9"))
    server.answers["GET /api/v1/events/watch"] = Reply(body=stream)
    ran = cli("events", "-f", "--reason", "RankExited")
    assert ran.code == 3
    assert ran.out.splitlines() == [
        "2026-11-22T03:43:10.000Z  Job default/digits  RankExited  by system: rank 1: signal 9",
        "2026-11-22T03:43:10.000Z  Job default/digits  RankExited  by system",
    ]


def test_nodes_are_changed(server: StandIn, cli: Cli) -> None:
    node = {"name": "n", "ready": True, "cordoned": True, "draining": True}
    for verb in ("cordon", "uncordon", "drain", "lose", "restore"):
        server.answers[f"POST /api/v1/nodes/n/{verb}"] = Reply(body=node)
    assert cli("drain", "n", "--reason", "disk").out == "n: Draining\n"
    assert server.requests[-1].json == {"reason": "disk"}
    for verb in ("cordon", "uncordon", "lose", "restore-node"):
        assert cli(verb, "n").code == 0
    assert server.requests[-1].path == "/api/v1/nodes/n/restore"


def test_tokens_users_projects(server: StandIn, cli: Cli) -> None:
    token = {"kind": "Token", "id": "01J", "user": "anna", "name": "token", "token": "pst_secret"}
    server.answers |= {
        "POST /api/v1/tokens": Reply(201, token),
        "DELETE /api/v1/tokens/01J": Reply(204),
        "POST /api/v1/users": Reply(201, {"name": "anna"}),
        "GET /api/v1/users": Reply(body={"items": [{"name": "anna", "role": ""}], "next_cursor": None}),
        "PUT /api/v1/projects/vis/members/anna": Reply(body={}),
        "DELETE /api/v1/projects/vis/members/anna": Reply(204),
        "GET /api/v1/projects/vis/members": Reply(body={"items": [{"user": "anna", "role": "member"}]}),
    }
    ran = cli("token", "create", "--user", "anna", "--expires-in", "30d")
    assert ran.out == "pst_secret\n"  # alone on standard output, for TOKEN=$(penstock token create)
    assert "shown this once" in ran.err
    assert cli("token", "revoke", "01J").code == 0
    assert cli("user", "create", "anna", "--unix-user", "anna").code == 0
    assert "anna" in cli("get", "users").out
    assert cli("project", "grant", "vis", "anna", "member").err == "anna is member of vis\n"
    assert cli("project", "grant", "vis", "anna", "none").err == "anna is no member of vis\n"
    assert cli("project", "members", "vis").out.splitlines()[1].split() == ["anna", "member"]
    assert cli("project").code == 2


def test_up_completes_the_settings(cli: Cli, served: list[Settings], tmp_path: Path) -> None:
    ran = cli(
        "up", "--data-dir", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--local-nodes", "4", "--insecure",
        "--allowed-host", "a", "--allowed-host", "b", "--database-url", "postgresql+psycopg://h/d", "--job-user", "nobody",
        "--tls-cert", "/c.pem", "--tls-key", "/k.pem", "--prices", "/p.yaml",
    )  # fmt: skip
    assert ran.code == 0
    (given,) = served
    assert (given.data_dir, given.host, given.port, given.local_nodes, given.insecure) == (
        str(tmp_path),
        "0.0.0.0",
        0,
        4,
        True,
    )
    assert (given.allowed_hosts, given.database_url, given.job_user) == (
        ("a", "b"),
        "postgresql+psycopg://h/d",
        "nobody",
    )
    assert (given.tls_cert, given.tls_key, given.prices) == ("/c.pem", "/k.pem", "/p.yaml")


@pytest.mark.parametrize("flags", [["--port", "99999"], ["--port", "-1"], ["--local-nodes", "0"], ["--tls-cert", "c"]])
def test_up_refuses_what_cannot_be(cli: Cli, served: list[Settings], flags: list[str]) -> None:
    assert cli("up", *flags).code == 2
    assert served == []


def test_backup_is_whole_or_not_there(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    server.answers["GET /api/v1/backup"] = Reply(body=[b"PK", b"zip"])
    path = tmp_path / "b.zip"
    assert cli("backup", str(path)).code == 0
    assert path.read_bytes() == b"PKzip"
    assert path.stat().st_mode & 0o777 == 0o600
    server.answers["GET /api/v1/backup"] = problem(403, "Forbidden", "not you")
    assert cli("backup", str(tmp_path / "c.zip")).code == 3
    assert sorted(found.name for found in tmp_path.iterdir()) == ["b.zip"]
    server.answers["POST /api/v1/restore"] = Reply(body={})
    assert cli("restore", str(path)).code == 0
    assert server.requests[-1].body == b"PKzip"
    assert cli("restore", str(tmp_path / "none")).code == 2


def test_doctor_says_what_is_well_and_what_is_not(server: StandIn, cli: Cli, settings: Settings) -> None:
    node = {"name": "n", "ready": True, "cordoned": False}
    server.answers |= {
        "GET /healthz": Reply(body={}),
        "GET /api/v1/version": Reply(body={"version": "9.9"}),
        "GET /api/v1/whoami": Reply(body={"user": "anna", "role": "", "projects": {"vis": "member"}}),
        "GET /api/v1/nodes": Reply(body={"items": [node], "next_cursor": None}),
    }
    ran = cli("doctor")
    assert ran.code == 0
    assert "you are anna (member of vis)" in ran.out
    assert "warning" in next(line for line in ran.out.splitlines() if line.startswith("versions"))
    server.answers["GET /api/v1/whoami"] = problem(401, "Unauthenticated", "unknown token")
    ran = cli("doctor")
    assert ran.code == 3
    assert "FAILED" in ran.out
    assert cli("doctor", settings=Settings(data_dir="/none")).code == 6


def test_version(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/version"] = Reply(body={"version": "9.9"})
    lines = cli("--version").out.splitlines()
    assert lines[0].startswith("penstock ")
    assert lines[1] == f"server 9.9 at {server.url}"
    ran = cli("version", settings=Settings(data_dir="/none"))
    assert ran.code == 0
    assert "server:" in ran.err


def test_flags_of_every_verb_stand_anywhere(server: StandIn, cli: Cli, settings: Settings) -> None:
    server.answers["GET /api/v1/projects/vis/jobs/digits"] = Reply(body=job())
    nobody = Settings(data_dir="/none", token="pk_t")
    for argv in (
        ["--url", server.url, "--project", "vis", "get", "digits", "-o", "json"],
        ["get", "digits", "-o", "json", "--url", server.url, "--project", "vis"],
        [f"--url={server.url}", "-o", "json", "get", "--project=vis", "digits"],
    ):
        assert json.loads(cli(*argv, settings=nobody).out)["name"] == "digits"


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_get_refuses_a_limit_of_none(server: StandIn, cli: Cli, limit: str) -> None:
    ran = cli("get", "-n", limit)
    assert ran.code == 2
    assert f"--limit {limit}" in ran.err
    assert server.requests == []


def test_get_of_no_project(server: StandIn, cli: Cli) -> None:
    server.answers["GET /api/v1/jobs"] = Reply(body={"items": [], "next_cursor": None})
    projects = [{"kind": "Project", "name": "empty"}]
    server.answers["GET /api/v1/projects"] = Reply(body={"items": projects, "next_cursor": None})
    ran = cli("get", "--project", "nope")
    assert ran.code == 4
    assert "there is no project 'nope'" in ran.err
    assert cli("get", "--project", "empty").code == 0


def test_exec_of_an_unknown_program(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise Conflict("'nope' was not found on PATH (/usr/bin:/bin): check the spelling")

    monkeypatch.setattr(session, "_attach", refused)
    ran = cli("exec", "digits", "--", "nope")
    assert (ran.code, ran.err) == (127, "error: 'nope' was not found in the job\n")
    assert cli("exec", "digits", "--", "other").code == 5
