"""Every verb has a help with an example that works, and docs/cli.md says what the verbs say."""

from __future__ import annotations

import shlex
from importlib import import_module
from itertools import takewhile

import pytest

from penstock.cli.catalogue import ENTRIES, Entry
from penstock.cli.main import parser_of
from penstock.client.verb import Verb
from tests.cli.conftest import Cli
from tools import cli_reference

VERBS = list(ENTRIES)


def verb_of(name: str) -> tuple[Entry, Verb]:
    entry = ENTRIES[name]
    return entry, import_module(entry.module).VERBS[name]


def example_calls(text: str) -> list[list[str]]:
    """The argument lists of ``penstock`` in an example's lines, pipes cut off."""
    calls = []
    for line in text.splitlines():
        words = shlex.split(line)
        assert "penstock" in words, line
        call = words[words.index("penstock") + 1 :]
        calls.append(list(takewhile(lambda word: word != "|", call)))
    return calls


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_help_shows_its_example(cli: Cli, name: str) -> None:
    ran = cli(name, "--help")
    assert ran.code == 0
    assert not ran.err
    example = ran.out.partition("Example:\n")[2].strip()
    assert example
    assert f"penstock {name}" in example
    assert ran.out.startswith(f"usage: penstock {name}")


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_examples_are_accepted(name: str) -> None:
    entry, verb = verb_of(name)
    for call in example_calls(verb.example):
        assert call[0] == name
        assert verb.takes_command or "--" not in call
        parser_of(entry, verb).parse_args(list(takewhile(lambda word: word != "--", call[1:])))


@pytest.mark.parametrize("name", VERBS)
def test_every_argument_says_what_it_is(name: str) -> None:
    for action in parser_of(*verb_of(name))._actions:
        assert action.help or (not action.option_strings and action.metavar), action


def test_the_first_help_names_every_verb(cli: Cli) -> None:
    for argv in (["--help"], ["-h"], ["help"], []):
        ran = cli(*argv)
        assert ran.code == 0
        assert all(f"  {name} " in ran.out for name in VERBS)
    assert max(map(len, ran.out.splitlines())) <= 90
    assert cli("help", "run").out == cli("run", "--help").out


def test_every_verb_of_every_module_is_in_the_catalogue() -> None:
    found = {name for entry in ENTRIES.values() for name in import_module(entry.module).VERBS}
    assert found == set(VERBS)


def test_the_page_says_what_the_verbs_say() -> None:
    assert cli_reference.PATH.read_text() == cli_reference.reference(), "run: python -m tools.cli_reference"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gett"], "did you mean 'get'?"),
        (["--flag"], "is no verb"),
        (["get", "--flag"], "unrecognized arguments: --flag"),
        (["run", "--nodes", "many", "--", "x"], "invalid int value"),
        (["run", "--node", "2", "--", "x"], "unrecognized arguments"),
        (["logs"], "required: JOB"),
        (["run"], "no command was given"),
        (["run", "python", "x.py"], "penstock run ... -- python x.py"),
        (["exec", "digits"], "no command was given"),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(cli: Cli, argv: list[str], words: str) -> None:
    ran = cli(*argv)
    assert ran.code == 2
    assert not ran.out
    assert ran.err.startswith("error: ")
    assert words in ran.err
    assert "\nhint: " in ran.err


def test_a_value_that_begins_with_a_dash_is_told_how_to_be_written(cli: Cli) -> None:
    ran = cli("capacity", "replay", "t.csv", "--nodes", "1", "--gpus-per-node", "1", "--mtbf", "-5h")
    assert ran.code == 2
    assert "--mtbf has no value; one that begins with a dash is written --mtbf=-VALUE" in ran.err


def test_subcommands_are_in_the_reference() -> None:
    page = cli_reference.reference()
    for text in ("--backfill", "--target", "--per-day", "--tune"):
        assert text in page
