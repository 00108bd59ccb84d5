"""What the batch script left in an attempt's run folder, asked for several attempts at once. Pure: the command and its reader.

The files are the job's user's, who may write anything into them: they are read as that user, and believed of that job alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.engines.spec import RankExit

# One command a user, and two processes for many folders: `tail -v` heads each file's last line with its name, and `stat` tells
# when it was written likewise. What a file holds is one line there, so no text of a job's heads another's.
_SCRIPT = """\
files() {
  for folder do
    for file in "$folder/claim" "$folder/started" "$folder/ended" "$folder/restarts" "$folder"/ranks/*; do printf '%s\\0' "$file"; done
  done
}
exec 2>/dev/null
files "$@" | xargs -0 tail -v -n 1 --
files "$@" | xargs -0 stat -c '==> %n <==
@%.9Y' --
exit 0
"""
_HEAD = re.compile(r"==> (claim|started|ended|restarts|ranks/(\d{1,7})) <==")
_PATH = re.compile(r"==> (.+)/((?:claim|started|ended|restarts|ranks/\d{1,7}) <==)")
_LONGEST = 4000


@dataclass(frozen=True, slots=True)
class End:
    at: float
    exit_code: int | None
    signal: int | None
    reason: str  # Completed, Failed, Stopped (it was told to end), TimeLimit, or why it could not start
    message: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one run folder; all empty of one that is not there."""

    claim: str = ""
    started_at: float | None = None
    requeues: int = 0
    in_place: int = 0  # restarts, in all of its runs
    end: End | None = None
    ranks: tuple[RankExit, ...] = ()


def command(folders: Sequence[str]) -> tuple[str, ...]:
    return ("sh", "-c", _SCRIPT, "sh", *folders)


def read(text: str, folders: Sequence[str]) -> dict[str, Facts]:
    """By folder; of those that are there."""
    parts: dict[str, list[str]] = {folder: [] for folder in folders}
    part: list[str] = []
    for line in text.split("\n"):
        head = _PATH.fullmatch(line)
        if head is not None and head[1] in parts:
            part = parts[head[1]]
            part.append(f"==> {head[2]}")
        else:
            part.append(line)
    return {folder: facts("\n".join(part)) for folder, part in parts.items() if part}


def facts(text: str) -> Facts:
    """Of one folder, from the last lines of its files."""
    lines = dict[str, str]()
    times = dict[str, float | None]()
    for name, line in _files(text):
        if line.startswith("@"):
            times[name] = _number(line[1:])
        else:
            lines[name] = line[:_LONGEST]
    claim, _, requeues = lines.get("claim", "").partition(" ")
    started_at = times.get("claim")
    if "started" in lines:
        began, _, requeues = lines["started"].partition(" ")
        started_at = _number(began)
    ranks = [
        exit_
        for name, line in lines.items()
        if name.startswith("ranks/")
        and (exit_ := _rank(int(name.partition("/")[2]), line.split(" "), times.get(name))) is not None
    ]
    end = _end(lines["ended"].split(" ", 4), times.get("ended")) if "ended" in lines else None
    in_place = int(_number(lines.get("restarts", "").partition(" ")[0]) or 0)
    found = tuple(sorted(ranks, key=lambda one: one.rank))
    return Facts(claim, started_at, int(_number(requeues) or 0), in_place, end, found)


def _files(text: str) -> Iterator[tuple[str, str]]:
    name = ""
    for line in text.split("\n"):
        head = _HEAD.fullmatch(line)
        if head:
            name = head[1]
        elif name and line:
            yield name, line
            name = ""


def _end(words: Sequence[str], written_at: float | None) -> End | None:
    if len(words) < 4 or (at := _at(words[0], written_at)) is None or not words[3].isalnum():
        return None
    return End(at, *_status(words[1], words[2]), words[3], words[4] if len(words) > 4 else "")


def _rank(rank: int, words: Sequence[str], written_at: float | None) -> RankExit | None:
    if len(words) < 4:
        return None
    restarts = int(_number(words[4]) or 0) if len(words) > 4 else 0
    return RankExit(rank, words[0], *_status(words[1], words[2]), restarts, _at(words[3], written_at))


def _at(text: str, written_at: float | None) -> float | None:
    """A batch script that did not ask for the time leaves it to the file's."""
    return written_at if text == "-" else _number(text)


def _status(code: str, signal: str) -> tuple[int | None, int | None]:
    number = int(signal) if signal.isdecimal() and len(signal) < 4 else 0
    return (int(code) if code.isdecimal() and len(code) < 4 and not number else None), number or None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text) else None
