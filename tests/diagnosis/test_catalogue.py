"""The causes as data: whole, in plain words, and pointing at each other rightly."""

from __future__ import annotations

import re

import pytest

from penstock.diagnosis.knowledge.catalogue import CAUSES, LAYERS, Cause

EVERY = pytest.mark.parametrize("cause", CAUSES.values(), ids=list(CAUSES))


def test_there_are_78_of_13_layers() -> None:
    assert len(CAUSES) == 78
    assert {cause.layer for cause in CAUSES.values()} == set(LAYERS)


@EVERY
def test_an_entry_is_whole(cause: Cause) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]+", cause.id)
    assert len(cause.name) <= 80
    for words in (cause.signals, cause.what_to_do, cause.sources):
        assert words
        assert all(isinstance(word, str) and word.strip() for word in words)
    assert len(cause.what_to_do) >= 2, "one thing to do is seldom all"
    assert any("`" in what for what in (*cause.what_to_do, *cause.signals)), "no command, setting or metric"


@EVERY
def test_what_it_is_takes_two_or_three_sentences(cause: Cause) -> None:
    assert 2 <= len(re.findall(r"[.!?](?:\s|$)", cause.what_it_is)) <= 3
    assert 60 <= len(cause.what_it_is) <= 400


@EVERY
def test_look_alikes_are_causes_or_words(cause: Cause) -> None:
    assert cause.look_alikes
    for other in cause.look_alikes:
        assert other.cause in CAUSES or other.cause == "healthy" or " " in other.cause
        assert other.cause != cause.id
        assert other.how.strip()


@EVERY
def test_backticks_are_in_pairs(cause: Cause) -> None:
    told = (cause.name, cause.what_it_is, cause.evidence, *cause.signals, *cause.what_to_do, cause.injection.how)
    for text in (*told, *(other.how for other in cause.look_alikes)):
        assert text.count("`") % 2 == 0, text


def test_an_unknown_cause_is_a_key_error() -> None:
    assert "no_such" not in CAUSES
    with pytest.raises(KeyError):
        CAUSES["no_such"]
