"""Which limit holds a job, with its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.slurm.limits import find, read
from penstock.engines.slurm.reasons import Limit
from penstock.engines.slurm.spec import SlurmJob

TEXT = (Path(__file__).parent / "recorded" / "assoc_mgr.txt").read_text()


def job(reason: str, account: str = "vision", user: str = "ann") -> SlurmJob:
    return SlurmJob(7, "train", "PENDING", reason, user=user, account=account)


@pytest.mark.parametrize(
    ("reason", "asked", "limit"),
    [
        ("AssocGrpGRES", {"gres/gpu": 24.0}, Limit("account vision", 16, 8, 24)),
        ("AssocGrpGRES", {"gres/gpu": 6.0}, Limit("account all-teams", 24, 20, 6)),
        ("AssocGrpGRES", {"gres/gpu": 1.0}, None),
        ("AssocGrpMemLimit", {"mem": 2.0**20}, Limit("account all-teams", 2**40, 200 * 2**20, 2**40)),
        ("AssocGrpJobsLimit", {}, Limit("account vision", 5, 5)),
        ("AssocMaxJobsLimit", {}, Limit("ann in account vision", 2, 2)),
        ("Priority", {}, None),
    ],
)
def test_the_first_limit_upward_that_it_would_pass(reason: str, asked: dict[str, float], limit: Limit | None) -> None:
    assert find(read(TEXT), job(reason), asked) == limit


def test_an_account_that_is_not_known_has_no_limit() -> None:
    assert find(read(TEXT), job("AssocGrpGRES", "elsewhere"), {"gres/gpu": 99.0}) is None
    assert find({}, job("AssocGrpGRES"), {}) is None


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    find(read(text + "\n" + TEXT.replace("ParentAccount=root(1)", "ParentAccount=vision(13)")), job("AssocGrpGRES"), {})
