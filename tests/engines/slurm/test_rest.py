"""slurmrestd: what its versions say, read; what they are told; and the real one of Slurm 22.05."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure import until
from penstock.engines.slurm import drained, restdata, restjob
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.rest import RestController
from penstock.engines.slurm.spec import SlurmConfig, SlurmJob, Submission
from tests.slurm_cluster import Cluster

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, Any]:
    """What slurmrestd of Slurm 22.05.8 (openapi v0.0.38) answered."""
    found: dict[str, Any] = json.loads((RECORDED / f"slurmrestd-v0.0.38-{name}.json").read_text())
    return found


def is_set(number: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": number}


UNSET = {"set": False, "infinite": False, "number": 0}
ENDLESS = {"set": True, "infinite": True, "number": 0}

# Built by hand from the schemas that SchedMD publishes for v0.0.42 to v0.0.45; not recorded: no such slurmrestd was at hand.
BUILT_META = {"slurm": {"version": {"major": "24", "micro": "5", "minor": "11"}, "release": "24.11.5", "cluster": "c1"}}
BUILT_JOBS = {
    "jobs": [
        {
            "job_id": 11,
            "array_job_id": is_set(0),
            "array_task_id": UNSET,
            "array_task_string": "",
            "name": "train.01J.1",
            "job_state": ["RUNNING"],
            "state_reason": "None",
            "user_name": "nobody",
            "account": "research",
            "partition": "gpu",
            "qos": "normal",
            "nodes": "gpu[01-02]",
            "submit_time": is_set(1_790_000_000),
            "start_time": is_set(1_790_000_010),
            "end_time": is_set(1_790_003_610),
            "exit_code": {"status": ["SUCCESS"], "return_code": is_set(0), "signal": {"id": UNSET, "name": ""}},
            "restart_cnt": 1,
            "gres_detail": ["gpu:h100:2(IDX:0,3)", "gpu:h100:2(IDX:1-2)"],
        },
        {
            "job_id": 12,
            "array_job_id": is_set(12),
            "array_task_id": UNSET,
            "array_task_string": "3,5-6%2",
            "name": "sweep.01K",
            "job_state": ["PENDING"],
            "state_reason": "Priority",
            "start_time": is_set(0),
            "exit_code": {"status": ["PENDING"], "return_code": UNSET, "signal": {"id": UNSET, "name": ""}},
        },
        {
            "job_id": 13,
            "array_job_id": is_set(12),
            "array_task_id": is_set(0),
            "name": "sweep.01K",
            "job_state": ["FAILED", "COMPLETING"],
            "nodes": "gpu01",
            "start_time": is_set(1_790_000_010),
            "end_time": is_set(1_790_000_020),
            "exit_code": {"status": ["SIGNALED"], "return_code": UNSET, "signal": {"id": is_set(9), "name": "KILL"}},
        },
    ],
    "meta": BUILT_META,
    "errors": [],
    "warnings": [],
}
BUILT_NODES = {
    "nodes": [
        {
            "name": "gpu01",
            "state": ["IDLE", "DRAIN"],
            "cpus": 64,
            "real_memory": 1000,
            "gres": "gpu:h100:4(S:0-1)",
            "gres_used": "gpu:h100:0(IDX:N/A)",
            "reason": "bad DIMM",
            "reason_set_by_user": "root",
            "reason_changed_at": is_set(1_790_000_000),
            "partitions": ["gpu"],
            "features": ["h100"],
            "topology": "spine.leaf1.gpu01",
            "address": "gpu01",
        }
    ],
    "meta": BUILT_META,
    "errors": [],
}
BUILT_PARTITIONS = {
    "partitions": [
        {
            "name": "gpu",
            "nodes": {"configured": "gpu[01-02]", "total": 2},
            "accounts": {"allowed": "research,interns", "deny": ""},
            "qos": {"allowed": "", "deny": "", "assigned": ""},
            "maximums": {"time": is_set(60), "nodes": ENDLESS},
            "defaults": {"time": UNSET},
            "partition": {"state": ["UP"]},
        }
    ],
    "meta": BUILT_META,
    "errors": [],
}


def test_recorded_jobs() -> None:
    first, running, _, *waiting = restdata.jobs(recorded("jobs"))
    assert (first.key, first.state, first.user, first.nodes) == ("1", "CANCELLED", "nobody", ("node-0", "node-1"))
    assert first.ended_at is not None and first.exit_code == 0
    assert (running.key, running.state, running.id) == ("2_0", "RUNNING", 3)
    assert running.gpus == {f"node-{n}": (0, 1) for n in range(8)}
    assert [job.key for job in waiting] == ["2_2", "2_3"]
    assert {job.state for job in waiting} == {"PENDING"} and waiting[0].reason == "Resources"
    assert waiting[0].start_estimate is not None and waiting[0].started_at is None


def test_recorded_nodes_partitions_and_ends() -> None:
    node = restdata.nodes(recorded("nodes"))[0]
    assert (node.name, node.state, node.cpus, node.memory, node.gres) == ("n1", "IDLE", 8, 4000 << 20, "gpu:a100:4")
    gpu, urgent = restdata.partitions(recorded("partitions"))
    assert (gpu.name, gpu.default, gpu.state, gpu.max_time_s) == ("gpu", True, "UP", 3600.0)
    assert gpu.nodes == ("n1", "n2", "n3", "n4") and gpu.max_nodes is None and gpu.allow_accounts == ()
    assert not urgent.default and urgent.max_time_s is None
    (ended,) = restdata.finished(recorded("slurmdb-job"))
    assert (ended.key, ended.state, ended.exit_code, ended.signal) == ("1", "FAILED", None, 15)
    assert ended.started_at is not None and ended.ended_at is not None and ended.name == "hello.abc.1"
    assert restdata.release(recorded("nodes")) == ("22.05.8", "")
    assert restdata.errors(recorded("refused")) == [
        (2045, "Invalid account or account/partition combination specified")
    ]


def test_documents_built_from_the_schemas_of_newer_versions() -> None:
    running, *waiting, failed = restdata.jobs(BUILT_JOBS)
    assert running.gpus == {"gpu01": (0, 3), "gpu02": (1, 2)} and running.restarts == 1
    assert (running.state, running.started_at, running.ended_at) == ("RUNNING", 1_790_000_010.0, None)
    assert [job.key for job in waiting] == ["12_3", "12_5", "12_6"] and waiting[0].start_estimate is None
    assert (failed.key, failed.state, failed.exit_code, failed.signal) == ("12_0", "FAILED", None, 9)
    (node,) = restdata.nodes(BUILT_NODES)
    assert node.state == "IDLE+DRAIN" and node.reason_at == 1_790_000_000.0 and node.topology == "spine.leaf1.gpu01"
    assert drained.closed(node) == "drained in Slurm by root at 2026-09-21T14:13:20.000Z: bad DIMM"
    (part,) = restdata.partitions(BUILT_PARTITIONS)
    assert part.nodes == ("gpu01", "gpu02") and part.max_time_s == 3600.0 and part.max_nodes is None
    assert part.allow_accounts == ("research", "interns") and part.allow_qos == ()
    assert restdata.release(BUILT_NODES) == ("24.11.5", "c1")


SUBMITTED = Submission(
    b"#!/bin/sh\necho '$(id)'\n",
    {
        "job-name": 'it\'s "x"\n#SBATCH --uid=0.01J.1',
        "nodes": 2,
        "ntasks-per-node": 1,
        "gres": "gpu:h100:2,nic:1",
        "mem": "4G",
        "time": 90,
        "no-requeue": True,
        "signal": "B:USR2@35",
        "output": "/dev/null",
        "exclusive": False,
    },
    "nobody",
    array="0-3",
)


def test_a_submission_as_the_older_and_the_newer_versions_want_it() -> None:
    old, lacking = restjob.document(SUBMITTED, 38)
    assert lacking == ["signal"] and old["script"] == "#!/bin/sh\necho '$(id)'\n"
    assert old["job"] == {
        "current_working_directory": "/",
        "environment": {"PATH": restdata.PATH},
        "array": "0-3",
        "name": 'it\'s "x"\n#SBATCH --uid=0.01J.1',
        "nodes": "2",
        "tasks_per_node": 1,
        "gres": "gpu:h100:2,nic:1",
        "memory_per_node": 4096,
        "time_limit": 90,
        "requeue": False,
        "standard_output": "/dev/null",
    }
    new, lacking = restjob.document(SUBMITTED, 42)
    assert lacking == []
    assert new["job"]["environment"] == [f"PATH={restdata.PATH}"]
    assert new["job"]["tres_per_node"] == "gres/gpu:h100:2,gres/nic:1"
    assert new["job"]["memory_per_node"] == is_set(4096) and new["job"]["time_limit"] == is_set(90)
    assert new["job"]["kill_warning_signal"] == "USR2" and new["job"]["kill_warning_flags"] == ["BATCH_JOB"]
    assert new["job"]["kill_warning_delay"] == is_set(35)
    assert restjob.document(SUBMITTED, 39)[0]["job"]["tres_per_node"] == "gres:gpu:h100:2,gres:nic:1"


def test_what_a_version_has_no_field_for_is_named() -> None:
    asked = Submission(b"", {"exclude": "node-1,node-2", "burst-buffer": "x", "time": "soon"}, None)
    assert restjob.document(asked, 38)[1] == ["exclude", "burst-buffer", "time=soon"]
    body, lacking = restjob.document(asked, 42)
    assert lacking == ["burst-buffer", "time=soon"] and body["job"]["excluded_nodes"] == ["node-1", "node-2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5, 5), ("90", 90), ("1:30", 2), ("1:00:00", 60), ("1-12", 2160), ("1-0:30", 1470), ("0:01", 1)],
)
def test_times_as_sbatch_takes_them(text: str | int, expected: int) -> None:
    assert restjob.minutes(text) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
JOB_KEYS = ("job_id", "array_job_id", "array_task_id", "array_task_string", "name", "job_state", "nodes", "exit_code",
            "start_time", "gres_detail", "restart_cnt", "time", "state", "array")  # fmt: skip


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(JOB_KEYS), st.text(max_size=8) | st.integers() | st.booleans() | st.none(), max_size=6
        ),
        max_size=3,
    )
)
def test_reading_is_total_over_plain_values(records: list[dict[str, Any]]) -> None:
    plain = [{k: v for k, v in record.items() if k not in {"time", "state", "array"}} for record in records]
    assert all(isinstance(job, SlurmJob) for job in restdata.jobs({"jobs": plain}))


@given(JSON)
def test_numbers_are_numbers_or_none(value: Any) -> None:
    assert restdata.number(value) is None or isinstance(restdata.number(value), int)


def test_versions_are_negotiated() -> None:
    paths = ["/slurm/v0.0.36/jobs", "/slurm/v0.0.38/jobs", "/slurmdb/v0.0.40/x", "/openapi"]
    assert restdata.versions(paths) == [38, 36] and restdata.chosen([38, 36]) == 38
    assert restdata.chosen([99, 45, 44]) == 45 and restdata.chosen([99, 98]) == 98 and restdata.chosen([]) is None
    assert restdata.chosen([35]) is None


def token(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.c2ln"


def test_whose_a_token_is() -> None:
    assert restdata.token_user(token(sun="root", exp=1_790_000_000)) == ("root", 1_790_000_000.0)
    assert restdata.token_user("nonsense") == ("", None) and restdata.token_user(None) == ("", None)
    assert restdata.token_user("a.W10.b") == ("", None)


# -- a server that answers what was built


@contextmanager
def answering(answers: dict[tuple[str, str], tuple[int, Any]]) -> Iterator[tuple[str, list[tuple[str, str, Any, str]]]]:
    """Its URL, and what was asked: method, path, body, as whom."""
    asked: list[tuple[str, str, Any, str]] = []

    class Answering(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            asked.append((self.command, self.path, body, self.headers.get("X-SLURM-USER-NAME", "")))
            status, doc = answers.get((self.command, self.path), (404, "Unable find requested URL."))
            raw = doc.encode() if isinstance(doc, str) else json.dumps(doc).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

        def log_message(self, *_words: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        return await work()

    return asyncio.run(inside())


BASE = "/slurm/v0.0.42"
BUILT: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/openapi/v3"): (200, {"paths": {f"{BASE}/jobs/": {}, "/slurm/v0.0.41/jobs/": {}}}),
    ("GET", f"{BASE}/ping/"): (200, {"pings": [], "meta": BUILT_META, "errors": []}),
    ("GET", f"{BASE}/jobs/?flags=DETAIL"): (200, BUILT_JOBS),
    ("GET", f"{BASE}/nodes/"): (200, BUILT_NODES),
    ("GET", f"{BASE}/partitions/"): (200, BUILT_PARTITIONS),
    ("POST", f"{BASE}/job/submit"): (200, {"job_id": 77, "step_id": "batch", "errors": [], "meta": BUILT_META}),
    ("DELETE", f"{BASE}/job/77?signal=TERM&flags=BATCH_JOB"): (200, {"errors": [], "status": []}),
    ("DELETE", f"{BASE}/job/78"): (500, {"errors": [{"error_number": 2017, "error": "Invalid job id specified"}]}),
    ("POST", f"{BASE}/node/gpu01"): (200, {"errors": []}),
    ("GET", "/slurmdb/v0.0.42/qos/"): (200, {"qos": [], "errors": []}),
}


def test_a_newer_slurmrestd_as_its_schema_has_it() -> None:
    with answering(BUILT) as (url, asked):

        async def story() -> None:
            rest = RestController(SlurmConfig("c1", rest=url, token=token(sun="root")))
            assert await rest.submit(SUBMITTED) == 77
            assert asked[-1][3] == "nobody" and asked[-1][2]["job"]["array"] == "0-3"
            assert [job.key for job in await rest.jobs(["11", "12_5", "99"])] == ["11", "12_5"]
            assert asked[-1][3] == "root"
            await rest.signal("77", "TERM")
            await rest.cancel("78")
            await rest.set_node("gpu01", "DRAIN", "penstock: x")
            assert asked[-1][2] == {"state": ["DRAIN"], "reason": "penstock: x"}
            site = await rest.site()
            assert (site.version, site.cluster, site.api) == ("24.11.5", "c1", "v0.0.42")
            assert site.gres_types == ("gpu",) and "slurmdbd" in site.accounting and site.config == {}

        run(story)


def test_without_a_description_versions_are_tried() -> None:
    ping = {("GET", "/slurm/v0.0.38/ping"): (200, {"pings": [{"ping": "UP"}], "errors": []})}
    with answering(ping) as (url, asked):
        assert run(RestController(SlurmConfig("c1", rest=url)).version) == 38
        assert asked[1][1] == "/slurm/v0.0.45/ping/"
    with answering({}) as (url, _), pytest.raises(Unreachable, match="not as a slurmrestd"):
        run(RestController(SlurmConfig("c1", rest=url)).version)


def test_errors_are_told_apart() -> None:
    strange: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", "/openapi/v3"): BUILT["GET", "/openapi/v3"],
        ("GET", f"{BASE}/nodes/"): (
            500,
            {"errors": [{"error": "Unable to contact slurm controller (connect failure)"}]},
        ),
        ("POST", f"{BASE}/job/submit"): (500, {"errors": [{"error_number": 2045, "error": "Invalid account"}]}),
        ("GET", f"{BASE}/partitions/"): (502, "<html>bad gateway</html>"),
        ("GET", f"{BASE}/jobs/?flags=DETAIL"): (401, "Authentication failure"),
    }
    with answering(strange) as (url, _):
        rest = RestController(SlurmConfig("c1", rest=url, token=token(sun="root")))
        with pytest.raises(Unreachable, match="Unable to contact"):
            run(rest.nodes)
        with pytest.raises(Refused, match="Invalid account"):
            run(lambda: rest.submit(Submission(b"x", {}, None)))
        with pytest.raises(Refused, match="does not let root in"):
            run(lambda: rest.jobs(["1"]))
        with pytest.raises(Unreachable, match="bad gateway"):
            run(lambda: rest._ask("GET", "partitions"))
    with pytest.raises(Unreachable, match="does not answer"):
        run(RestController(SlurmConfig("c1", rest="http://127.0.0.1:1")).nodes)
    with pytest.raises(Unreachable, match="does not answer"):
        run(RestController(SlurmConfig("c1", rest="unix:/nonexistent/s.sock")).nodes)


# -- the real slurmrestd


@pytest.fixture(scope="module")
def restd(slurm_cluster: Cluster) -> Iterator[str]:
    yield slurm_cluster.start_restd()
    slurm_cluster.stop_restd()


@pytest.mark.real
@pytest.mark.needs("slurmdbd", "root")
def test_the_real_slurmrestd_of_22_05(slurm_cluster: Cluster, restd: str, tmp_path: Path) -> None:
    config = SlurmConfig("c1", rest=restd, token=slurm_cluster.token("root"))
    who = Path("/tmp") / f"penstock-rest-{tmp_path.name}"

    async def story() -> None:
        rest = RestController(config)
        assert await rest.version() == 38
        site = await rest.site()
        assert site.version == "22.05.8" and {one.name for one in site.partitions} >= {"all", "pair"}
        assert "slurmdbd" in site.accounting and site.gres_types == ("gpu",)
        assert {node.name for node in await rest.nodes()} == set(slurm_cluster.nodes)
        name = "it's $(touch canary) #SBATCH.01RST.1"
        options: dict[str, str | int | bool] = {
            "job-name": name,
            "nodes": 2,
            "gres": "gpu:h100:2",
            "mem": "200M",
            "time": 5,
            "output": "/dev/null",
        }
        script = f"#!/bin/sh\nid -un > {who}\nexec sleep 600\n".encode()
        who.touch()
        who.chmod(0o666)
        number = await rest.submit(Submission(script, options | {"no-requeue": True}, "nobody"))
        await asyncio.to_thread(until, lambda: who.read_text() == "nobody\n", "the job runs", timeout=30)
        (job,) = await rest.named((".01RST.1",))
        assert job.id == number and job.state == "RUNNING" and len(job.nodes) == 2 and job.user == "nobody"
        assert set(job.gpus) == set(job.nodes) and all(len(held) == 2 for held in job.gpus.values())
        assert await rest.jobs([str(number)]) == [job]
        await rest.cancel(str(number))
        await rest.cancel(str(number))
        await asyncio.to_thread(until, lambda: slurm_cluster.state(str(number)) == "CANCELLED", "cancelled", timeout=30)
        (ended,) = await rest.jobs([str(number)])
        assert ended.state == "CANCELLED" and ended.ended_at is not None
        for _ in range(200):
            known = await rest.finished([str(number)])
            if known and known[0].ended_at and known[0].name == name:  # slurmdbd hears of it piece by piece
                break
            await asyncio.sleep(0.1)
        assert known[0].state == "CANCELLED" and known[0].name == job.name
        with pytest.raises(Refused, match="nvalid account"):
            await rest.submit(Submission(script, options | {"account": "nosuch"}, "nobody"))
        with pytest.raises(Refused, match="--exclude"):
            await rest.submit(Submission(script, options | {"exclude": "node-1"}, "nobody"))
        with pytest.raises(Refused, match="cannot change nodes"):
            await rest.set_node("node-7", "DRAIN", "x")
        slurm_cluster.run("scontrol", "update", "nodename=node-7", "state=drain", "reason=bad DIMM")
        (node,) = [node for node in await rest.nodes() if node.name == "node-7"]
        slurm_cluster.run("scontrol", "update", "nodename=node-7", "state=resume")
        assert drained.closed(node).startswith("drained in Slurm by root at 20") and drained.closed(node).endswith(
            ": bad DIMM"
        )
        assert await rest.jobs(["999999"]) == [] and await rest.finished(["999999"]) == []

    try:
        run(story)
    finally:
        who.unlink(missing_ok=True)
        slurm_cluster.clear()


@pytest.mark.real
@pytest.mark.needs("slurmdbd", "root")
def test_an_array_over_the_real_slurmrestd(slurm_cluster: Cluster, restd: str) -> None:
    async def story() -> None:
        rest = RestController(SlurmConfig("c1", rest=restd, token=slurm_cluster.token("root")))
        options: dict[str, str | int | bool] = {
            "job-name": "sweep.01RSA",
            "nodes": 8,
            "gres": "gpu:2",
            "output": "/dev/null",
            "time": 5,
        }
        number = await rest.submit(Submission(b"#!/bin/sh\nsleep 600\n", options, "nobody", array="0-3"))
        keys = [f"{number}_{index}" for index in range(4)]
        for _ in range(100):
            found = {job.key: job.state for job in await rest.jobs(keys)}
            if [found.get(key) for key in keys] == ["RUNNING", "RUNNING", "PENDING", "PENDING"]:
                break
            await asyncio.sleep(0.1)
        assert found == dict(zip(keys, ["RUNNING", "RUNNING", "PENDING", "PENDING"], strict=True))
        for key in (keys[3], keys[0]):
            await rest.cancel(key)
        for _ in range(100):
            found = {job.key: job.state for job in await rest.jobs(keys)}
            if found.get(keys[0]) == "CANCELLED":
                break
            await asyncio.sleep(0.1)
        assert found[keys[0]] == "CANCELLED" and found[keys[1]] == "RUNNING"
        assert found.get(keys[3]) != "PENDING"  # of a task that never was a job of its own slurmctld keeps nothing

    try:
        run(story)
    finally:
        slurm_cluster.clear()


@pytest.mark.real
@pytest.mark.needs("slurmdbd", "root")
def test_a_token_that_is_none(slurm_cluster: Cluster, restd: str) -> None:
    async def story() -> None:
        for bad, words in (
            (token(sun="root"), "token that has ended"),
            ("nonsense", "token that has ended"),
            (None, "does not let"),
        ):
            with pytest.raises(Refused, match=words):
                await RestController(SlurmConfig("c1", rest=restd, token=bad)).nodes()

    run(story)
