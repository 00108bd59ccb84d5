"""The ways between ranks, as their own TCP connections tell of them: how long a segment is under way, and how many are lost. Pure.

What leaves a slow link waits in its queue, acknowledgements too. So where one rank's link is slow, the ways to all of its peers
take longer, in whatever direction the data go; where the way between two is slow, it is that one alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import ms
from penstock.diagnosis.features import Features, View, Window, gauge
from penstock.diagnosis.state import Culprit

ALIKE = 3.0  # times that ways differ at the most which are slow, or well, together; 1.5 and 27 were seen
GREW = 2.5  # times longer than before the change, or than the other ways
LEAST_S = 0.001  # of a way that is called slow: TCP lets a millisecond's data wait at a full link, and more
_SEGMENTS = 20  # in the time looked at, without which nothing was measured anew
_READINGS = 2
_TOLD = 4  # peers that a rank tells of at the most (worker/sockets.py): there may then be more
_HEADERS = 1.06  # bytes on a link to those that were to be sent


@dataclass(frozen=True, slots=True)
class Link:
    """Between two ranks, or nodes where ranks share one. How long there and back is said by who sends more on it."""

    ends: frozenset[Culprit]
    rtt_s: float
    rtt_before: float | None
    segments: float
    resent: float

    @property
    def lost(self) -> float:
        """As a part of the segments."""
        return self.resent / self.segments


def links(features: Features) -> tuple[Link, ...]:
    """Those on which something was sent in the time looked at; none where ranks do not tell of their connections."""
    places = _places(features)
    found: dict[frozenset[Culprit], list[Link]] = {}
    for view in features.ranks:
        own = _place(features, view)
        for name in view.now.rate:
            kind, _, address = name.partition(":")
            other = places.get(address)
            if kind != "rtt_s" or other is None or other == own:
                continue
            way = _way(features, view, address, frozenset((own, other)))
            if way is not None:
                found.setdefault(way.ends, []).append(way)
    return tuple(_both(found[ends]) for ends in sorted(found, key=names))


def _both(ways: Sequence[Link]) -> Link:
    most = max(ways, key=lambda way: (way.segments, way.rtt_s))
    return replace(most, segments=sum(way.segments for way in ways), resent=sum(way.resent for way in ways))


def _way(features: Features, view: View, address: str, ends: frozenset[Culprit]) -> Link | None:
    since = features.change.at if features.change is not None else -math.inf
    rtts = gauge(view.source.counters, f"rtt_s:{address}")
    now = [value for at, value in rtts if at >= since]
    before = [value for at, value in rtts if at < since]
    segments, resent = (_counted(view, f"{kind}:{address}", since) for kind in ("segments", "resent"))
    if len(now) < _READINGS or segments < _SEGMENTS:
        return None
    return Link(ends, statistics.median(now), statistics.median(before) if before else None, segments, resent)


def _counted(view: View, name: str, since: float) -> float:
    """A connection that began anew begins at nothing."""
    values = [value for at, value in gauge(view.source.counters, name) if at >= since]
    return sum(max(0.0, new - old) for old, new in itertools.pairwise(values))


def _places(features: Features) -> dict[str, Culprit]:
    """Who has an address; none who shares it with another place, as all do of 127.0.0.1."""
    found: dict[str, set[Culprit]] = {}
    for view in features.ranks:
        told = view.source.config.get("addresses")
        for address in told if isinstance(told, list | tuple) else ():
            found.setdefault(str(address), set()).add(_place(features, view))
    return {address: next(iter(places)) for address, places in found.items() if len(places) == 1}


def _place(features: Features, view: View) -> Culprit:
    shared = view.node and any(other.node == view.node for other in features.ranks if other is not view)
    return Culprit("node", view.node) if shared else Culprit("rank", str(view.rank))


def foreign(features: Features, *, now: bool) -> float | None:
    """The part of what a node sends that is nobody's of the job, of the node where that is most; None where ranks do not tell."""
    by_node: dict[str, list[Window]] = {}
    for view in features.ranks:
        window = view.now if now else view.before
        if window is not None:
            by_node.setdefault(view.node or str(view.rank), []).append(window)
    shares = [share for windows in by_node.values() if (share := _foreign(windows)) is not None]
    return max(shares, default=None)


def _foreign(windows: Sequence[Window]) -> float | None:
    sent = [[rate for name, rate in window.rate.items() if name.startswith("sent_bytes:")] for window in windows]
    links = max(window.rate.get("net_tx_bytes", 0.0) for window in windows)
    if links <= 0 or not all(0 < len(peers) < _TOLD for peers in sent):
        return None
    return max(0.0, 1 - _HEADERS * sum(map(sum, sent)) / links)


# -- which of them --------------------------------------------------------------------------------------------------


def slow(known: Sequence[Link]) -> list[Link]:
    """The slowest, and those that are about as slow; none where all are, or the slowest is as it was."""
    if len(known) < 2:
        return []
    longest = max(known, key=lambda link: link.rtt_s)
    found = [link for link in known if link.rtt_s * ALIKE >= longest.rtt_s]
    rest = [link.rtt_s for link in known if link not in found]
    usual = longest.rtt_before if longest.rtt_before is not None else max(rest, default=math.inf)
    return found if rest and longest.rtt_s >= max(LEAST_S, GREW * usual) else []


def longer(known: Sequence[Link]) -> list[Link]:
    """Those that take longer than they did."""
    return [
        link for link in known if link.rtt_before is not None and link.rtt_s >= max(LEAST_S, GREW * link.rtt_before)
    ]


def steady(known: Sequence[Link]) -> bool:
    """Whether it is known that none takes longer: then no link is narrower than it was."""
    return bool(known) and all(link.rtt_before is not None for link in known) and not longer(known)


def losing(known: Sequence[Link]) -> list[Link]:
    """Those that lose packets, by their own counts."""
    most = max((link.lost for link in known), default=0.0)
    return [link for link in known if link.lost >= most / 4] if most >= t.RETRANSMITS else []


def shared(found: Sequence[Link]) -> tuple[Culprit, ...]:
    """The one end that several links have in common."""
    common = frozenset.intersection(*(link.ends for link in found)) if len(found) > 1 else frozenset()
    return tuple(common) if len(common) == 1 else ()


def alone(found: Sequence[Link], known: Sequence[Link]) -> Link | None:
    """The only one, if both of its ends have other links, which are not among the found."""
    if len(found) != 1:
        return None
    others = frozenset().union(*(link.ends for link in known if link is not found[0]))
    return found[0] if found[0].ends <= others else None


# -- words ------------------------------------------------------------------------------------------------------------


def names(ends: frozenset[Culprit]) -> list[str]:
    return sorted(end.name if end.kind == "node" else f"rank {end.name}" for end in ends)


def nodes_of(features: Features, ends: frozenset[Culprit]) -> str:
    """By their nodes' names, where each has one."""
    nodes: Mapping[str, str] = {str(view.rank): view.node for view in features.ranks}
    found = {end.name if end.kind == "node" else nodes.get(end.name, "") for end in ends}
    return "->".join(sorted(found) if len(found) == len(ends) and "" not in found else names(ends))


def told(link: Link, rest: Sequence[Link]) -> str:
    """How long a link is, and the others."""
    return (
        f"between {' and '.join(names(link.ends))} a segment and its answer take {ms(link.rtt_s)}"
        + (f", it was {ms(link.rtt_before)}" if link.rtt_before is not None else "")
        + (f"; on the other links {ms(statistics.median(other.rtt_s for other in rest))}" if rest else "")
    )
