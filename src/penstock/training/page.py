"""View models: goodput and checkpoints of a job, and the fleet's goodput. Pure functions from the API's JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.training.commands import length, percent, policy, seconds, size, state

ORDER = ("steps", "checkpoint", "lost", "hang", "restart", "startup", "waiting", "other", "unmeasured")
_LEAST = 0.4  # per cent of a bar's width: what is there is seen
SAVES = 12  # rows shown
JOBS = 30


@dataclass(frozen=True, slots=True)
class Slice:
    part: str
    x: float
    width: float
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    part: str
    words: str
    time: str
    share: str


@dataclass(frozen=True, slots=True)
class Loss:
    part: str
    time: str
    share: str
    help: str


@dataclass(frozen=True, slots=True)
class Panel:
    measured: bool
    goodput: str
    running: str
    wall: str
    bar: tuple[Slice, ...]
    picture: tuple[Slice, ...]
    rows: tuple[Row, ...]
    losses: tuple[Loss, ...]


def panel(answer: Mapping[str, Any]) -> Panel:
    rows = [row for row in answer["parts"] if row["ms"]]
    running = answer["goodput_running"]
    return Panel(
        bool(answer["measured"]),
        percent(answer["goodput"]),
        percent(running) if running is not None and running - (answer["goodput"] or 0.0) > 0.0005 else "",
        length(answer["wall_ms"]),
        slices(
            (row["part"], row["share"], f"{row['part']}: {length(row['ms'])}, {percent(row['share'])}") for row in rows
        ),
        _picture(answer["picture"]),
        tuple(Row(r["part"], r["words"], length(r["ms"]), percent(r["share"])) for r in rows),
        tuple(Loss(o["part"], length(o["ms"]), percent(o["share"]), o["help"]) for o in answer["losses"]),
    )


def slices(shares: Iterable[tuple[str, float, str]]) -> tuple[Slice, ...]:
    """Side by side, 100 wide together; what is there at all is wide enough to be seen."""
    given = [each for each in shares if each[1] > 0]
    sizes = [max(_LEAST, 100 * share) for _, share, _ in given]
    scale = 100 / sum(sizes) if given else 1.0
    found, x = [], 0.0
    for (part, _, title), wide in zip(given, sizes, strict=True):
        found.append(Slice(part, round(x, 3), round(wide * scale, 3), title))
        x += wide * scale
    return tuple(found)


def _picture(columns: Sequence[Sequence[Any]]) -> tuple[Slice, ...]:
    total = sum(int(width) for _, width in columns) or 1
    found, at = [], 0
    for part, width in columns:
        found.append(Slice(part, round(100 * at / total, 3), round(100 * width / total, 3), part))
        at += int(width)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Save:
    step: int | None
    at: str | None
    state: str
    tone: str
    icon: str
    size: str
    stall: str
    durable: str
    copies: tuple[tuple[str, str, bool], ...]  # place, words, whether it is there
    note: str


@dataclass(frozen=True, slots=True)
class Checkpoints:
    policy: str
    directory: str
    keep: int | None
    saves: tuple[Save, ...]
    more: int
    loads: tuple[tuple[str | None, str], ...]  # when, words


_TONES = {
    "verified": ("ok", "check"),
    "committed": ("run", "check"),
    "writing": ("wait", "arrow"),
    "removed": ("off", "slash"),
    "failed": ("bad", "cross"),
    "damaged": ("bad", "cross"),
    "cut short": ("bad", "slash"),
}
_WHY = {"asked": "asked for", "stopping": "asked to stop", "script": "by the script"}


def checkpoints(answer: Mapping[str, Any]) -> Checkpoints | None:
    """None where nothing was reported."""
    chosen = answer["policy"]
    if chosen is None and not answer["saves"]:
        return None
    said = policy(answer)
    return Checkpoints(
        said[0].upper() + said[1:],
        str((chosen or {}).get("directory") or ""),
        (chosen or {}).get("keep"),
        tuple(map(_save, answer["saves"][:SAVES])),
        max(0, int(answer["count"]) - SAVES),
        tuple((load["at"], _load(load, (chosen or {}).get("directory"))) for load in answer["loads"][:4]),
    )


def _save(row: Mapping[str, Any]) -> Save:
    word = state(row)
    tone, icon = _TONES.get(word, ("note", "dot"))
    copies = tuple(
        (
            str(t["place"]),
            f"in {t['took_s']:.2g}s" if t["there"] and t["took_s"] is not None else str(t["reason"] or ""),
            bool(t["there"]),
        )
        for t in row["tiers"]
    )
    return Save(
        row["step"],
        row["at"],
        word,
        tone,
        icon,
        size(row["bytes"]),
        seconds(row["stall_s"]),
        seconds(row["durable_s"]),
        copies,
        row["reason"] or _WHY.get(row["why"], ""),
    )


def _load(load: Mapping[str, Any], own: str | None) -> str:
    if load["state"] == "fresh":
        return "began afresh: there was no checkpoint"
    if load["state"] == "unusable":
        return f"step {load['step']} was not used: {load['reason']}"
    took = f" in {load['took_s']:.2g}s" if load["took_s"] is not None else ""
    return f"step {load['step']}, every byte verified,{took} from " + (
        "its folder" if load["place"] == own else str(load["place"])
    )


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    href: str
    device: str
    goodput: str
    hours: float
    most: str
    bar: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    totals: tuple[Line, ...]
    projects: tuple[Line, ...]
    jobs: tuple[Line, ...]
    rest: str
    left_out: int


def fleet(answer: Mapping[str, Any]) -> Fleet:
    unmeasured = answer["unmeasured"]
    hours = [f"{unmeasured[f'{d}_hours']:,.2f} {d.upper()}-hours" for d in ("gpu", "cpu") if unmeasured[f"{d}_hours"]]
    return Fleet(
        tuple(_line(row, row["device"].upper(), "") for row in answer["totals"]),
        tuple(
            _line(row, row["project"], f"/goodput?project={quote(row['project'], safe='')}") for row in answer["items"]
        ),
        tuple(
            _line(
                row,
                f"{row['project']}/{row['name']}",
                f"/jobs/{quote(row['project'], safe='')}/{quote(row['name'], safe='')}",
            )
            for row in answer["jobs"][:JOBS]
        ),
        f"{unmeasured['attempts']:,} attempts reported no steps: {' and '.join(hours)}" if hours else "",
        int(answer["left_out"]),
    )


def _line(row: Mapping[str, Any], name: str, href: str) -> Line:
    held = row["hours"] or 1.0
    shares = [(part, row["parts"].get(part, 0.0) / held) for part in ORDER if part != "waiting"]
    lost = [each for each in shares if each[0] != "steps" and each[1] > 0]
    most = max(lost, key=lambda each: each[1], default=None)
    return Line(
        name,
        href,
        row["device"].upper(),
        percent(row["goodput"]),
        row["hours"],
        f"{most[0]} {percent(most[1])}" if most is not None else "",
        slices((part, share, f"{part}: {percent(share)}") for part, share in shares),
    )
