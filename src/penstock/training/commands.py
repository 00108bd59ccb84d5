"""``penstock goodput``: where a training's wall time went, or the whole fleet's device-hours; and a job's saves for ``describe``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_duration
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

WIDTH = 60  # characters of a bar
# As on the pages: a part's letter, and its colour where there is one.
LETTERS = {
    "steps": ("#", "green"),
    "checkpoint": ("c", "blue"),
    "lost": ("x", "red"),
    "hang": ("!", "red"),
    "restart": ("r", "yellow"),
    "startup": ("s", "yellow"),
    "waiting": (".", "dim"),
    "other": ("-", "dim"),
    "unmeasured": ("?", "dim"),
}
_SHOWN = 20  # jobs of the fleet
_SAVES = 8  # in ``describe``


def bar(shares: Iterable[tuple[str, float]], width: int = WIDTH) -> str:
    """One line, ``width`` characters long where the shares add up to 1; what is there at all has one at least."""
    given = [(part, share) for part, share in shares if share > 0]
    sizes = [max(1, int(share * width)) for _, share in given]
    while given and sum(sizes) < width and sum(share for _, share in given) > 0.999:
        sizes[max(range(len(given)), key=lambda n: given[n][1] * width - sizes[n])] += 1
    while sum(sizes) > width:
        sizes[max(range(len(sizes)), key=lambda n: sizes[n])] -= 1
    return "".join(LETTERS.get(part, ("?", ""))[0] * size for (part, _), size in zip(given, sizes, strict=True))


def percent(share: float | None) -> str:
    """Two places where one would round to 0 or to 100."""
    if share is None:
        return "not measured"
    return f"{share * 100:.2f}%" if 0 < share < 0.001 or 0.999 < share < 1 else f"{share * 100:.1f}%"


def length(milliseconds: float) -> str:
    seconds = milliseconds / 1000
    return format_duration(
        round(seconds) if seconds >= 100 else round(seconds, 1) if seconds >= 1 else round(seconds, 3)
    )


PARTS = (
    Column("", lambda row, _: LETTERS[row["part"]][0], style=lambda cell: _style(cell)),
    Column("PART", lambda row, _: str(row["part"])),
    Column("TIME", lambda row, _: length(row["ms"]), right=True),
    Column("SHARE", lambda row, _: percent(row["share"]), right=True),
    Column("WHAT", lambda row, _: str(row["words"])),
)


def _style(letter: str) -> str:
    return next((colour for mark, colour in LETTERS.values() if mark == letter), "")


def _job(call: Invocation, name: str) -> int:
    found = call.client.jobs.goodput(name)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    out = call.output
    if found["measured"]:
        running = found["goodput_running"]
        apart = running is not None and running - (found["goodput"] or 0.0) > 0.0005
        beside = f", {percent(running)} of the time it held its nodes" if apart else ""
        out.line(
            f"{name}: goodput {percent(found['goodput'])} of {length(found['wall_ms'])} since it was submitted{beside}"
        )
    else:
        out.line(f"{name}: goodput is not measured: no steps were reported in {length(found['wall_ms'])}")
    out.line()
    out.line(f"[{bar((row['part'], row['share']) for row in found['parts'])}]")
    out.line()
    out.table(PARTS, [row for row in found["parts"] if row["ms"]], call.now)
    if found["losses"]:
        out.line()
        out.line("What was lost most, and what would help:")
        for n, loss in enumerate(found["losses"], 1):
            out.line(f"  {n}. {loss['part']}, {length(loss['ms'])} ({percent(loss['share'])}): {loss['help']}")
    return 0


def _hours(row: Mapping[str, Any]) -> str:
    return f"{row['hours']:.2f}" if row["hours"] >= 0.1 else f"{row['hours']:.4f}"


def _worst(row: Mapping[str, Any]) -> str:
    """The largest loss, in words."""
    held = {part: hours for part, hours in row["parts"].items() if part not in ("steps", "waiting")}
    if not held or not row["hours"]:
        return ""
    part = max(held, key=lambda each: held[each])
    return f"{part} {percent(held[part] / row['hours'])}"


def _shares(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    hours = row["hours"] or 1.0
    return [(part, row["parts"].get(part, 0.0) / hours) for part in LETTERS if part != "waiting"]


def _columns(first: Sequence[Column]) -> list[Column]:
    return [
        *first,
        Column("GOODPUT", lambda row, _: percent(row["goodput"]), right=True),
        Column("HOURS", lambda row, _: _hours(row), right=True),
        Column("OF", lambda row, _: "GPU" if row["device"] == "gpu" else "CPU"),
        Column("MOST LOST", lambda row, _: _worst(row)),
        Column("WHERE THEY WENT", lambda row, _: bar(_shares(row), 30)),
    ]


def _fleet(call: Invocation, arguments: Namespace) -> int:
    project = None if arguments.all_projects else call.settings.project
    found = call.client.goodput(project=project, since=arguments.since, until=arguments.until)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    out, measured = call.output, found["totals"]
    for row in measured:
        out.line(
            f"goodput {percent(row['goodput'])} of {_hours(row)} {row['device'].upper()}-hours since {found['since']}"
        )
        out.line(f"[{bar(_shares(row))}]")
    if not measured:
        out.line(f"no training reported steps since {found['since']}")
    if found["items"]:
        out.line()
        out.table(_columns([Column("PROJECT", lambda row, _: str(row["project"]))]), found["items"], call.now)
        out.line()
        where = [Column("JOB", lambda row, _: f"{row['project']}/{row['name']}")]
        out.table(_columns(where), found["jobs"][:_SHOWN], call.now)
        out.line()
        out.line("# steps  c checkpoint  x lost  ! hang  r restart  s startup  - other")
    rest = found["unmeasured"]
    if rest["attempts"]:
        hours = " and ".join(
            f"{rest[f'{d}_hours']:.2f} {d.upper()}-hours" for d in ("gpu", "cpu") if rest[f"{d}_hours"]
        )
        out.line(f"not measured: {rest['attempts']} attempts that reported no steps{', ' + hours if hours else ''}")
    if found["left_out"]:
        out.line(f"not read yet: {found['left_out']} jobs; ask again in a moment")
    return 0


def _run(call: Invocation, arguments: Namespace) -> int:
    if arguments.job is None:
        return _fleet(call, arguments)
    wrong = [name for name in ("since", "until", "all_projects") if getattr(arguments, name)]
    if wrong:
        raise InvalidInput(f"`goodput JOB` does not take --{wrong[0].replace('_', '-')}: it is of the job's whole life")
    return _job(call, arguments.job)


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("job", nargs="?", metavar="JOB", help="one job; none: the project's, weighted by GPU-hours")
    add("--since", metavar="WHEN", help="7d (ago; the default), or a time: 2026-01-31T12:00:00Z")
    add("--until", metavar="WHEN", help="likewise; default: now")
    add("-A", "--all-projects", action="store_true", help="all projects that you may see")


# -- saves, for ``describe`` ---------------------------------------------------------------------


def size(count: float | None) -> str:
    """Powers of 1024, three digits."""
    if count is None:
        return ""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def seconds(value: float | None) -> str:
    """Three digits; a thousandth where a second has none."""
    if value is None:
        return ""
    return f"{value:.3g}s" if value >= 0.1 else f"{value * 1000:.3g}ms"


SAVES = (
    Column("STEP", lambda row, _: str(row["step"]), right=True),
    Column("SAVED", lambda row, _: str(row["at"] or "")),
    Column("STATE", lambda row, _: state(row)),
    Column("SIZE", lambda row, _: size(row["bytes"]), right=True),
    Column("STALL", lambda row, _: seconds(row["stall_s"]), right=True),
    Column("DURABLE", lambda row, _: seconds(row["durable_s"]), right=True),
    Column("COPIES", lambda row, _: ", ".join(_copy(tier) for tier in row["tiers"])),
    Column("WHY", lambda row, _: str(row["reason"] or row["why"] or "")),
)


def state(row: Mapping[str, Any]) -> str:
    return "verified" if row["verified"] and row["state"] == "committed" else str(row["state"])


def _copy(tier: Mapping[str, Any]) -> str:
    return str(tier["place"]) if tier["there"] else f"not {tier['place']}: {tier['reason']}"


def describe(call: Invocation, found: Mapping[str, Any]) -> None:
    """The lines of ``penstock describe``: nothing where no checkpoint was reported."""
    if found["policy"] is None and not found["saves"]:
        return
    call.output.line()
    call.output.line(f"Checkpoints: {policy(found)}")
    call.output.table(SAVES, found["saves"][:_SAVES], call.now)
    if found["count"] > _SAVES:
        call.output.line(f"and {found['count'] - _SAVES} before them")


def policy(found: Mapping[str, Any]) -> str:
    """Which interval, why, and what the measured failures would make it."""
    chosen, measured = found["policy"], found["measured"]
    words = "saved by the script" if chosen is None else str(chosen["why"])
    if chosen is not None and chosen["auto"] and chosen["interval_s"]:
        words = f"every {format_duration(round(chosen['interval_s'], 1))}; {words}"
    if measured["best_interval_s"] is not None:
        best, apart = (format_duration(round(measured[k], 1)) for k in ("best_interval_s", "mtbf_s"))
        count = f"{measured['failures']} failure{'s' * (measured['failures'] != 1)}"
        words += f". By its {count}, one in {apart}, every {best} would lose least"
    return words


VERBS = {
    "goodput": Verb(
        "penstock goodput train\npenstock goodput --since 7d --all-projects",
        _arguments,
        _run,
        about="Goodput is the share of the wall time that went into steps which were kept. The parts sum to the wall time; "
        "docs/training.md says what each is. The fleet's are weighted by GPU-hours, or by core-hours where no GPU was held.",
    )
}
