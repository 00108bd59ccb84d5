"""A reader of Slurm's files that shares nothing with ours, after what Slurm's own does with a line.

A comment begins at a ``#`` that no odd number of backslashes stands before, between quotes as well; a line that then ends
in a backslash goes on in the next; what is left is taken from the left: a word, ``=``, then all up to the next quote, or up
to the next blank.
"""

from __future__ import annotations

BLANKS = " \t\v\f\r"


def lines(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    carried = ""
    for raw in text.split("\n"):
        kept, slashes = "", 0
        for letter in raw:
            if letter == "#" and slashes % 2 == 0:
                break
            slashes = slashes + 1 if letter == "\\" else 0
            kept += letter
        carried += kept
        if carried.endswith("\\"):
            carried = carried[:-1]
            continue
        if carried.strip(BLANKS):
            found.append(_pairs(carried))
        carried = ""
    return found


def _pairs(line: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    at = 0
    while True:
        while at < len(line) and line[at] in BLANKS:
            at += 1
        if at == len(line):
            return pairs
        begin = at
        while at < len(line) and (line[at].isalnum() or line[at] in "_."):
            at += 1
        word = line[begin:at]
        while at < len(line) and line[at] in BLANKS:
            at += 1
        assert word, line
        assert line[at : at + 1] == "=", line
        at += 1
        while at < len(line) and line[at] in BLANKS:
            at += 1
        if line[at : at + 1] == '"':
            end = line.index('"', at + 1)
            pairs.append((word, line[at + 1 : end]))
            at = end + 1
        else:
            begin = at
            while at < len(line) and line[at] not in BLANKS:
                at += 1
            assert at > begin, f"{word} has no value"
            pairs.append((word, line[begin:at]))
