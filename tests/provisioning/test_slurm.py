"""Fleet files and what is rendered of them."""

from __future__ import annotations

import copy
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.provisioning import keys
from penstock.provisioning.lint import lint
from penstock.provisioning.plan import parse
from penstock.provisioning.slurm import render, slurm_time
from penstock.provisioning.spec import Form
from tests.provisioning import slurm_parser
from tests.provisioning.fleets import FULL, full, text
from tests.provisioning.test_conf import HOSTILE

GOLDEN = Path(__file__).parent / "golden"
TREE = {
    "kind": "tree",
    "switches": [
        {"name": "leaf1", "nodes": "gpu[001-008]"},
        {"name": "leaf2", "nodes": "gpu[009-016]"},
        {"name": "spine", "switches": "leaf[1-2]"},
    ],
}
BLOCKS = {
    "kind": "block",
    "blocks": [{"name": "nvl1", "nodes": "gpu[001-008]"}, {"name": "nvl2", "nodes": "gpu[009-016]"}],
    "block_sizes": [8, 16],
}


def rendered(document: dict[str, Any]) -> dict[str, str]:
    return {file.name: str(file) for file in render(parse(text(document)))}


def problems(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse(text(document))
    assert all(problem.line for problem in caught.value.details)
    found: dict[str, str] = {}
    for problem in caught.value.details:
        found[problem.path] = f"{found.get(problem.path, '')} {problem.message}"
    return found


def newer(version: str, **changes: Any) -> dict[str, Any]:
    """One pool of 16 nodes, for a newer Slurm."""
    document = full(racks=None, pools=FULL["pools"][:1], partitions=[{"name": "gpu"}], accounting=None, **changes)
    document["slurm"]["version"] = version
    return document


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("full", full()),
        ("tree-25.05", newer("25.05", topology=TREE)),
        ("block-25.05", newer("25.05", topology=BLOCKS)),
        ("block-24.05", newer("24.05", topology=BLOCKS)),
    ],
)  # fmt: skip
def test_golden(name: str, document: dict[str, Any]) -> None:
    found = "".join(f"### {file}\n{body}" for file, body in rendered(document).items())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_what_is_rendered_has_nothing_wrong_with_it() -> None:
    fleet = parse(text(full()))
    assert lint({file.name: str(file) for file in render(fleet)}, fleet) == []


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        if isinstance(each, str):
            yield (*path, key)
        yield from _leaves(each, (*path, key))


LEAVES = list(_leaves(FULL))


def _keys(files: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (name, tuple(word for word, _ in line))
        for name, body in files.items()
        for line in slurm_parser.lines(body)
    ]  # fmt: skip


@given(
    st.sampled_from(LEAVES),
    HOSTILE | st.builds(lambda a, b: f"{a}{b}", st.sampled_from(["x", "gpu001", "/a"]), HOSTILE),
)
def test_no_text_of_a_fleet_file_becomes_another_option(leaf: tuple[str | int, ...], hostile: str) -> None:
    document: Any = full()
    at = document
    for key in leaf[:-1]:
        at = at[key]
    before = at[leaf[-1]]
    at[leaf[-1]] = f"{before}{hostile}" if len(hostile) % 2 else hostile
    try:
        found = rendered(document)
    except InvalidInput:
        return
    usual = {(name, words) for name, words in _keys(rendered(full()))}
    assert set(_keys(found)) <= usual | _variants(usual)


def _variants(lines: set[tuple[str, tuple[str, ...]]]) -> set[tuple[str, tuple[str, ...]]]:
    """Lines of nodes with other words of theirs left out or added, as a fleet may say."""
    return {(name, (*words, *more)) for name, words in lines for more in ((), ("Feature",))}


@given(st.dictionaries(HOSTILE, HOSTILE, max_size=3), st.sampled_from(["slurm", "partition", "pool", "dbd"]))
def test_extra_words_are_words_of_that_file(extra: dict[str, str], where: str) -> None:
    document: Any = full()
    part = {
        "slurm": document["slurm"],
        "partition": document["partitions"][1],
        "pool": document["pools"][0],
        "dbd": document["accounting"],
    }[where]
    part["extra"] = extra
    try:
        found = rendered(document)
    except InvalidInput:
        return
    said = [pair for body in found.values() for line in slurm_parser.lines(body) for pair in line]
    assert all(pair in said for pair in extra.items())


def accepted(conf: Path) -> str:
    """What Slurm's own parser says against a slurm.conf: nothing, when it takes it."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    done = subprocess.run(
        ["scontrol", "show", "hostnames", "n1"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode or "error" in done.stderr else ""


FREE = ("Prolog", "MailDomain", "SrunProlog", "HealthCheckProgram", "SlurmctldPlugstack")


@pytest.mark.needs("slurm")
@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(FREE), HOSTILE, min_size=1), HOSTILE)
def test_slurms_own_parser_takes_what_is_rendered(extra: dict[str, str], reason: str) -> None:
    document: Any = full()
    document["slurm"]["extra"] = extra
    document["pools"][0]["extra"] = {"Reason": reason}
    try:
        found = rendered(document)
    except InvalidInput:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, body in found.items():
            (Path(folder) / name).write_text(body)
        assert accepted(Path(folder) / "slurm.conf") == ""


@pytest.mark.needs("slurm")
def test_slurm_knows_the_words_that_are_said_to_be_its(tmp_path: Path) -> None:
    """Each word of slurm.conf, alone, in front of the parser of the Slurm that is here."""
    heads = {"": "", "nodename": "NodeName=n2 ", "partitionname": "PartitionName=p "}
    unknown = set()
    for first, words in keys.WORDS["slurm.conf"].items():
        for word in words - {"Include", "NodeName", "PartitionName"} if first in heads else ():
            (tmp_path / "slurm.conf").write_text(
                f"ClusterName=c\nSlurmctldHost=h\nNodeName=n1\n{heads[first]}{word}=1\n"
            )
            if "unrecognized key" in accepted(tmp_path / "slurm.conf"):
                unknown.add(word.lower())
    assert unknown <= keys.NEWER
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    assert unknown == keys.NEWER or not version.startswith("slurm-wlm 22.05")


@pytest.mark.parametrize(
    ("part", "change", "path", "message"),
    [
        ("name", "C 1", "name", "small letters"),
        ("pools", [{**FULL["pools"][0], "nodes": "gpu[1-"}], "pools[0].nodes", "brackets"),
        ("pools", [{**FULL["pools"][0], "addresses": "10.1.0.[1-3]"}], "pools[0]", "addresses has 3 for 16 nodes"),
        ("pools", [{**FULL["pools"][0], "cpus": 100}], "pools[0]", "96 cores and 192 threads"),
        ("pools", [*FULL["pools"], {**FULL["pools"][2], "name": "b"}], "pools[3].nodes", "in the pool cpu too"),
        ("partitions", [{"name": "a", "nodes": "gpu[1-4]"}], "partitions[0].nodes", "is in no pool"),
        ("partitions", [{"name": "default"}], "partitions[0].name", "something else"),
        ("partitions", [{"name": "a", "default": True}, {"name": "b", "default": True}], "partitions", "more than one"),
        ("accounting", None, "partitions[1].allow_accounts", "needs `accounting`"),
        ("slurm", {"extra": {"NodeName": "x"}}, "slurm.extra", "rendered from other fields"),
        ("slurm", {"extra": {"MinJobAgee": "1"}}, "slurm.extra", "did you mean MinJobAge"),
        ("slurm", {"extra": {"Prolog": ""}}, "slurm.extra.Prolog", "must not be empty"),
        ("slurm", {"extra": {"Prolog": "/a # b"}}, "slurm.extra.Prolog", "begins a comment"),
        ("slurm", {"version": "22.05", "extra": {"TLSType": "x"}}, "slurm.extra.TLSType", "newer than Slurm 22.05"),
        ("slurm", {"state_dir": "/a\nNodeName=x"}, "slurm.state_dir", "absolute path"),
        ("slurm", {"ports": {"controller": 6818}}, "slurm.ports", "are the same"),
        ("topology", BLOCKS, "topology.kind", "needs Slurm 24.05"),
        ("scheduler", {"parameters": {"bf_interval": "1,defer"}}, "scheduler.parameters.bf_interval", "letters"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(part: str, change: Any, path: str, message: str) -> None:
    document = full(**{part: change})
    if part == "pools":
        document = full(topology=None, racks=None, **{part: change})
    found = problems(document)
    assert any(where.startswith(path) and message in words for where, words in found.items()), found


def _gpus(**changes: Any) -> dict[str, Any]:
    document = full()
    document["pools"][0]["gpus"] = {"model": "h100", "count": 8, **changes}
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": "/dev/nvidia[0-6]"}, "7 device files for a count of 8"),
        ({"autodetect": "nvml", "files": "/dev/nvidia[0-7]"}, "leave files and affinity out"),
        ({"affinity": [{"gpus": "0-6", "cores": "0-47"}]}, "each GPU from 0 to 7 once"),
        ({"affinity": [{"gpus": "0-7", "cores": "0-191"}]}, "Slurm counts cores, not threads"),
        ({"autodetect": "nvidia"}, "needs Slurm 24.11"),
    ],
)
def test_gpus_that_cannot_be(change: dict[str, Any], message: str) -> None:
    assert any(message in words for words in problems(_gpus(**change)).values())


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([{"name": "a", "nodes": "gpu[001-016]"}], "old1 and 3 more are in no leaf"),
        ([{"name": "a", "nodes": "gpu[001-016]"}, {"name": "b", "nodes": "gpu001"}], "gpu001 is in the leaf a too"),
        ([{"name": "a", "nodes": "gpu001"}, {"name": "b", "nodes": "gpu002"}], "one switch must be above all others"),
        ([{"name": "a", "switches": "b"}, {"name": "b", "switches": "a"}], "in a ring"),
        ([{"name": "a", "switches": "c"}, {"name": "b", "nodes": "gpu001"}], "no switch is called so"),
        ([{"name": "a", "nodes": "gpu001", "switches": "b"}], "write one of the two"),
    ],
)
def test_trees_that_are_none(switches: list[dict[str, Any]], message: str) -> None:
    found = problems(full(topology={"kind": "tree", "switches": switches}))
    assert any(message in words for words in found.values()), found


def test_parameters_are_bare_or_have_their_value() -> None:
    """1 is no truth, though Python has it equal to one."""
    told = {"a": 1, "b": True, "c": 0, "d": "x", "e": 2.5}
    conf = rendered(full(scheduler={"parameters": told}))["slurm.conf"]
    assert "SchedulerParameters=a=1,b,c=0,d=x,e=2.5\n" in conf
    assert "leave it out" in str(problems(full(scheduler={"parameters": {"a": False}})))


def test_a_job_that_asks_for_no_memory_has_its_cpus_share() -> None:
    pool = {"name": "a", "nodes": "n1", "cpus": 8, "memory": "10000Mi", "extra": {"MemSpecLimit": 2000}}
    document = full(pools=[pool], topology=None, racks=None, partitions=[{"name": "a"}])
    del document["slurm"]["default_memory_per_cpu"]
    assert "DefMemPerCPU=1000\n" in rendered(document)["slurm.conf"]


def test_two_slurmd_of_one_host_need_two_ports() -> None:
    pool = {"name": "a", "nodes": "n[1-2]", "hostnames": "box", "addresses": "127.0.0.1", "cpus": 4, "memory": "8Gi"}
    document = full(pools=[pool], topology=None, racks=None, partitions=[{"name": "a"}])
    found = problems(document)
    assert "n2 and n1 are both on box port 6818" in found["pools[0]"]
    document["pools"][0]["port"] = "[7001-7002]"
    conf = rendered(document)["slurm.conf"]
    assert "NodeName=n[1-2] NodeAddr=127.0.0.1 NodeHostname=box Port=[7001-7002]" in conf
    assert "SlurmdSpoolDir=/var/spool/slurmd.%n" in conf


def test_everything_wrong_is_told_at_once() -> None:
    document = full(name="C 1")
    document["pools"][0]["memory"] = "much"
    document["partitions"][0]["color"] = "red"
    assert set(problems(document)) == {"name", "pools[0].memory", "partitions[0].color"}


def test_the_documents_example_has_nothing_wrong_with_it() -> None:
    page = (Path(__file__).parents[2] / "docs/provisioning.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    fleet = parse(example)
    assert lint({file.name: str(file) for file in render(fleet)}, fleet) == []
    for model in Form.__subclasses__():
        for name in model.model_fields:
            assert f"`{name}`" in page or f"{name}:" in example, f"{model.__name__}.{name}"


def test_topology_yaml_is_what_it_says() -> None:
    (told,) = yaml.safe_load(rendered(newer("25.11", topology=BLOCKS))["topology.yaml"])
    assert told["block"]["blocks"][1] == {"block": "nvl2", "nodes": "gpu[009-016]"}


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "INFINITE"), (60, "0-00:01:00"), (90061, "1-01:01:01"), (86400 * 7, "7-00:00:00")]
)
def test_times(seconds: float | None, words: str) -> None:
    assert slurm_time(seconds) == words


def test_a_fleet_is_one_document() -> None:
    body = text(full())
    with pytest.raises(InvalidInput) as caught:
        parse(f"{body}\n---\n{body}")
    assert "2 documents" in caught.value.details[0].message
    assert copy.deepcopy(FULL) == FULL
