"""Text from strangers (logs, names, messages) made harmless for terminals and browsers."""

from __future__ import annotations

import re

# CSI and other escape sequences, OSC / DCS / APC / PM strings with their terminators (ECMA-48), 8-bit C1 forms included.
_SEQUENCES = re.compile(
    r"\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)|[\x9d\x90\x98\x9e\x9f].*?(?:\x07|\x1b\\|\x9c|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?",
    re.MULTILINE,
)
# What is left of C0 / C1, and the marks that reorder text ("Trojan Source", CVE-2021-42574).
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SUSPECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def sanitize(text: bytes | str) -> str:
    """Escape sequences are dropped, other controls become U+FFFD; of a line redrawn with CR the last drawing stays.

    Newlines and tabs are kept. Bytes are read as UTF-8 with replacement. Linear in the input's length.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not _SUSPECT.search(text):
        return text
    text = _SEQUENCES.sub("", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        text = "\n".join(_last_drawing(line) for line in text.split("\n"))
    return _CONTROLS.sub("\ufffd", text)


def _last_drawing(line: str) -> str:
    drawings = [part for part in line.split("\r") if part]
    return drawings[-1] if drawings else ""


def one_line(text: str, limit: int = 200) -> str:
    """Sanitized, newlines folded, cut at ``limit`` characters: for tables and messages."""
    flat = " ".join(sanitize(text).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
