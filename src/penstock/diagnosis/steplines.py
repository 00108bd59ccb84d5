"""Lines of logs that tell of a step, in the forms that common trainers write. Pure; the forms are data."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    step: int
    seconds: float | None = None  # of one step
    loss: float | None = None


_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
# Who writes it, and how. Groups: step; of the time one of s, ms, rate (steps a second), pace (of it/s or s/it); loss.
FORMS = (
    ("Megatron-LM", r"iteration +(?P<step>\d+)/ *\d+.*?elapsed time per iteration \(ms\): *(?P<ms>{n})"),
    ("nanoGPT", r"\biter (?P<step>\d+): loss (?P<loss>{n}|nan|inf), time (?P<ms>{n})ms"),
    ("torchtitan", r"\bstep: *(?P<step>\d+) +loss: *(?P<loss>{n}|nan|inf)"),
    ("DeepSpeed", r"\bstep=(?P<step>\d+), .*?time \(ms\)? ?[:=] ?(?P<ms>{n})"),
    ("build-nanogpt", r"\bstep +(?P<step>\d+)(?:/\d+)? ?\|.*?\bdt: ?(?P<ms>{n}) ?ms"),
    ("tqdm, s/it", r"\| *(?P<step>\d+)/\d+ \[[^\]]*?,\s*(?P<s>{n})s/it"),
    ("tqdm, it/s", r"\| *(?P<step>\d+)/\d+ \[[^\]]*?,\s*(?P<rate>{n})it/s"),
    ("timm, torchvision", r"\[ *(?P<step>\d+)/ *\d+.*?\b[Tt]ime:? *(?P<s>{n})s?\b"),
    ("with seconds", r"\b(?:step|iter(?:ation)?)[ :=#]+(?P<step>\d+)\b.*?\b(?:time|dt|took|step_time)[ :=]+(?P<s>{n}) ?s(?:ec|econds)?\b"),
    ("with milliseconds", r"\b(?:step|iter(?:ation)?)[ :=#]+(?P<step>\d+)\b.*?\b(?:time|dt|took|step_time)[ :=]+(?P<ms>{n}) ?ms\b"),
    ("plain", r"\b(?:[Ss]tep|[Ii]ter(?:ation)?|global_step)[\"']?[ :=#]+(?P<step>\d+)\b"),
)  # fmt: skip
_PATTERNS = tuple(re.compile(form.replace("{n}", _NUMBER)) for _, form in FORMS)
_LOSS = re.compile(rf"\b(?:lm )?loss[\"']?[ :=]+(?P<loss>{_NUMBER}|nan|inf)\b", re.IGNORECASE)
_LONGEST = 1000


def read(text: str) -> Said | None:
    """None of a line that tells of no step."""
    text = text[:_LONGEST]
    for pattern in _PATTERNS:
        match = pattern.search(text)
        if match is not None:
            return _said(match.groupdict(), text)
    return None


def _said(found: dict[str, str | None], text: str) -> Said:
    loss = found.get("loss")
    if loss is None and (match := _LOSS.search(text)) is not None:
        loss = match["loss"]
    return Said(int(found["step"] or 0), _seconds(found), None if loss is None else float(loss))


def _seconds(found: dict[str, str | None]) -> float | None:
    if (ms := found.get("ms")) is not None:
        return float(ms) / 1e3
    if (rate := found.get("rate")) is not None:
        return 1 / float(rate) if float(rate) > 0 else None
    return None if found.get("s") is None else float(found["s"] or 0)
