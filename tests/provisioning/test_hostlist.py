from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.provisioning.hostlist import expand, fold

NAMES = st.lists(
    st.builds(
        lambda prefix, number, width: f"{prefix}{str(number).zfill(width)}",
        st.sampled_from(["gpu", "node-", "a1b", "x"]),
        st.integers(0, 120),
        st.integers(1, 4),
    )
    | st.sampled_from(["login", "a", "10.1.0.7"]),
    max_size=40,
)


@given(NAMES)
def test_folded_names_are_the_same_names_in_the_same_order(names: list[str]) -> None:
    assert list(expand(fold(names))) == names if names else fold(names) == ""


@given(st.lists(st.integers(0, 300), unique=True, min_size=1))
def test_what_is_in_order_folds_to_ranges(numbers: list[int]) -> None:
    names = [f"gpu{number:03}" for number in sorted(numbers)]
    runs = sum(a + 1 != b for a, b in zip(sorted(numbers), sorted(numbers)[1:], strict=False)) + 1
    assert fold(names).count(",") == runs - 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu[001-003,10]", "gpu001 gpu002 gpu003 gpu10"),
        ("gpu[098-101]", "gpu098 gpu099 gpu100 gpu101"),
        ("a,b[1-2]", "a b1 b2"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("10.0.[1-2].7", "10.0.1.7 10.0.2.7"),
    ],
)
def test_expand(text: str, names: str) -> None:
    assert expand(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text", ["", "a,", "a[", "a]", "a[1-", "a[1-2", "a[2-1]", "a[x]", "a[[1]]", "a[1-999999999]", "a b,"]
)
def test_what_is_no_name_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        expand(text) if text != "a b," else expand("a, b")


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("text", ["gpu[001-003,10]", "gpu[098-101]", "a1b[08-11]", "n[1-2],m7", "r[1-2]n[08-10]"])
def test_slurm_reads_them_alike(text: str, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=c\nSlurmctldHost=h\nNodeName=n1\n")
    told = subprocess.run(
        ["scontrol", "show", "hostnames", text],
        env={**os.environ, "SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tuple(told.stdout.split()) == expand(text), told.stderr
