"""Which checkpoints may go: pure, so that its promise can be tested against every order of events.

The promise: the last ``keep`` checkpoints known to be whole stay, and so does every one newer than the oldest of them;
a damaged one counts for nothing, and never pushes out a whole one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from penstock.worker.checkpoint.folder import Entry


def to_remove(entries: Sequence[Entry], verified: Collection[str], keep: int, every: int | None = None) -> list[Entry]:
    """Of ``entries`` (oldest first), what is older than the last ``keep`` whose ids are ``verified``.

    Every ``every``-th step is kept for good. Fewer than ``keep`` verified ones: nothing goes.
    """
    whole = [entry for entry in entries if entry.id in verified]
    if keep < 1 or len(whole) <= keep:
        oldest_kept = whole[0].id if whole else None
    else:
        oldest_kept = whole[-keep].id
    if oldest_kept is None or len(whole) < keep:
        return []
    return [entry for entry in entries if entry.id < oldest_kept and not (every and entry.step % every == 0)]


def undecided(entries: Sequence[Entry], verified: Collection[str], damaged: Collection[str], keep: int) -> Entry | None:
    """The newest checkpoint that must be read before anything can go; None when enough is known, or nothing would go."""
    known = 0
    for entry in reversed(entries):
        if known >= keep:
            return None
        if entry.id in verified:
            known += 1
        elif entry.id not in damaged and entries[0].id != entry.id:
            return entry
    return None
