from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.provisioning.conf import ConfFile, Line, read, unfit
from tests.provisioning import slurm_parser

HOSTILE = st.text(
    alphabet=st.sampled_from(list("aZ0 =#\"'\\\n\r\t,;$()[]%-./\x00\x0b\x85\u2028é")), max_size=12
) | st.text(max_size=12)
KEYS = st.text(alphabet="abcXYZ09_", min_size=1, max_size=8).filter(lambda key: key[0].isalpha())
LINES = st.lists(st.lists(st.tuples(KEYS, HOSTILE), min_size=1, max_size=4), max_size=4)


@given(LINES)
def test_what_is_written_is_read_back_exactly_or_refused(lines: list[list[tuple[str, str]]]) -> None:
    file = ConfFile("slurm.conf", tuple(Line(tuple(line)) for line in lines))
    if any(unfit(value) for line in lines for _, value in line):
        with pytest.raises(ValueError, match="must"):
            str(file)
        return
    assert slurm_parser.lines(str(file)) == lines
    assert [list(line.pairs) for line in read(str(file))] == lines
    assert not any(line.empty or line.rest for line in read(str(file)))


@pytest.mark.parametrize("key", ["", "A B", "A=", "1a", "A\nB", "#A"])
def test_a_key_is_a_word(key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        str(ConfFile("slurm.conf", (Line(((key, "x"),)),)))


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for line in read(text):
        assert line.pairs or line.empty or line.rest


def test_reading_follows_comments_and_joined_lines() -> None:
    one, two = read('# Key=1\nA=1 B = two # C=3\nD=\\\n4 E="a b"\n\nF=\\#x#y')[0:2]
    assert (one.number, one.pairs) == (2, (("A", "1"), ("B", "two")))
    assert (two.number, two.pairs) == (3, (("D", "4"), ("E", "a b")))


def test_an_empty_value_is_seen_where_slurm_takes_the_next_word() -> None:
    (line,) = read("PartitionName=a Topology= Default=YES Alternate=")
    assert line.empty == ("Topology", "Alternate")
    assert line.pairs == (("PartitionName", "a"), ("Default", "YES"))
    (usual,) = read("SchedulerParameters=bf_interval=1,bf_continue")
    assert usual.pairs == (("SchedulerParameters", "bf_interval=1,bf_continue"),)
