"""A ticket's words to the time that they are about: "training is slow since this morning". Pure.

Of the many ways to say it those are read that people use. What names no time is about now; nothing is guessed beyond that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from penstock.base.text import one_line
from penstock.diagnosis.state import Evidence

LONGEST: Final = 2000  # characters of a ticket that are read
_PARTS: Final = {"morning": 6, "noon": 12, "lunch": 12, "afternoon": 12, "evening": 18, "tonight": 18, "night": 22}
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS: Final = {
    "minute": 60.0,
    "min": 60.0,
    "hour": 3600.0,
    "hr": 3600.0,
    "h": 3600.0,
    "day": 86400.0,
    "week": 604800.0,
}
_NUMBERS: Final = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "half an": 0.5,
    "couple of": 2,
    "few": 3,
}
_CLOCK: Final = re.compile(
    r"\b(?:at|since|from|around|about|after)?\s*(\d{1,2})(?::(\d{2}))?\s*(am|pm|h\b|o'?clock)?", re.IGNORECASE
)
_AGO: Final = re.compile(
    r"\b(?:(?:for|in|over|during) (?:the )?(?:last|past) |since |for |about |the last |the past )?"
    r"(\d+(?:\.\d+)?|half an|couple of|few|an?|one|two|three|four|five|six)?\s*(minute|min|hour|hr|h|day|week)s?( ago)?\b",
    re.IGNORECASE,
)
_STEP: Final = re.compile(r"\b(?:since|from|at|after|around)\s+(?:step|iteration)\s+(\d{1,12})\b", re.IGNORECASE)
_STAMP: Final = re.compile(r"\b(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::\d{2})?)?\b")


@dataclass(frozen=True, slots=True)
class Window:
    """``since``: epoch seconds; None: the ticket names no time. ``words``: what was understood, for the report."""

    since: float | None = None
    step: int | None = None
    words: str = ""

    def at(self, evidence: Evidence) -> float | None:
        """The time that it names, by itself or by a step's number."""
        if self.step is None:
            return self.since
        return next((step.at for rank in evidence.ranks for step in rank.steps if step.step >= self.step), None)


def window(text: str, now: float, offset_s: float = 0.0) -> Window:
    """``offset_s``: how far the writer's clock is ahead of UTC."""
    text = one_line(text, LONGEST).lower()
    step = _STEP.search(text)
    if step:
        return Window(step=int(step[1]), words=f"since step {step[1]}")
    zone = timezone(timedelta(seconds=max(-50_000, min(50_000, offset_s))))
    local = datetime.fromtimestamp(now, zone)
    for read in (_stamp, _day, _ago, _hour):
        found = read(text, local)
        if found is not None:
            at = found.timestamp()
            return (
                Window(at, words=f"since {found:%Y-%m-%d %H:%M}{'' if offset_s else ' UTC'}") if at <= now else Window()
            )
    return Window()


def _stamp(text: str, now: datetime) -> datetime | None:
    match = _STAMP.search(text)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2] or '00'}:{match[3] or '00'}").replace(tzinfo=now.tzinfo)
    except ValueError:
        return None


def _day(text: str, now: datetime) -> datetime | None:
    """Yesterday, this morning, last night, Monday; with an hour where one stands beside it."""
    day: datetime | None = None
    if "yesterday" in text:
        day = now - timedelta(days=1)
    elif "last night" in text:
        return _at(now - timedelta(days=1), _PARTS["night"])
    elif re.search(r"\b(today|this|tonight)\b", text):
        day = now
    for number, name in enumerate(_DAYS):
        if re.search(rf"\b{name}\b", text):
            day = now - timedelta(days=(now.weekday() - number) % 7 or (0 if now.weekday() == number else 7))
    if day is None:
        return None
    part = next((hour for name, hour in _PARTS.items() if re.search(rf"\b{name}\b", text)), None)
    clock = _hour(text, day)
    if clock is not None:
        return clock
    return _at(day, part if part is not None else 0)


def _at(day: datetime, hour: int, minute: int = 0) -> datetime:
    return day.replace(hour=hour, minute=minute, second=0, microsecond=0)


def _ago(text: str, now: datetime) -> datetime | None:
    for match in _AGO.finditer(text):
        words = match[0]
        if match[1] is None and not re.search(r"\b(last|past)\b", words):
            continue
        if match[3] is None and not re.search(r"\b(last|past|for|since)\b", words):
            continue
        amount = _NUMBERS.get(match[1] or "one") or float(match[1])
        seconds = amount * _UNITS[match[2]]
        return now - timedelta(seconds=min(seconds, 400 * 86400.0))
    return None


def _hour(text: str, day: datetime) -> datetime | None:
    """An hour of the clock, where a word says that it is one: "10:30", "at 9", "3pm"."""
    for match in _CLOCK.finditer(text):
        said = re.match(r"\s*(at|since|from|around|about|after)\b", match[0])
        if match[2] is None and match[3] is None and said is None:
            continue
        hour, minute = int(match[1]), int(match[2] or 0)
        if match[3] == "pm" and hour < 12:
            hour += 12
        if match[3] == "am" and hour == 12:
            hour = 0
        if hour < 24 and minute < 60 and not _counts(text, match.end()):
            return _at(day, hour, minute)
    return None


def _counts(text: str, end: int) -> bool:
    """Whether the number counts something else: "after 2 hours", "at 90%"."""
    return bool(
        re.match(r"\s*(%|\w*(?:steps?|hours?|minutes?|days?|epochs?|gpus?|nodes?|ranks?|ms|times|x)\b)", text[end:])
    )
