"""The network: what the transfer itself takes has grown, or packets are lost.

The shortest exposed communication over the ranks is the transfer; what is more than that is waiting for a slow rank.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes import links as ways
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, ranks, said, whose
from penstock.diagnosis.features import Features, View, Window, gauge, quantile
from penstock.diagnosis.state import Culprit

_MANY = (
    0.01  # of the segments sent again, whenever it began: 0.0003 is healthy, 2% lost both ways show as 0.011 and more
)
_FEW_STEPS = 6
_LOOK_ALIKE = 0.4  # of a hint's strength: after every hint that has a sign of its own
_FEW_SEGMENTS = 40  # a second, below which a ratio of lost ones tells nothing
_SMALL = 256 * 1024  # bytes a step: what so little takes longer for is the way's length, not its width
_FOREIGN = 1.4  # bytes a step to those before: somebody else uses the link
_OTHERS = 0.12  # of what a node sends, more than before
_STILL = 0.7  # of the bytes a second before
_FLAT = 1.6  # ninth decile of the transfers to the first: a cap makes them all alike
_QUEUED = 3.0  # bytes that wait to be sent, to the peers'


@dataclass(frozen=True, slots=True)
class Transfer:
    """How much longer the transfer takes than it did or should, a step."""

    now: float
    usual: float | None
    extra: float
    starved: float  # what of it waiting for a core may account for, on the ranks together


def lost_packets(features: Features) -> Iterator[Found]:
    """Segments are sent again: the counter says so before any timing does."""
    ratios = {view.rank: _ratio(view.now) for view in features.ranks}
    losing = [view for view in features.ranks if _loses(view)]
    if not losing:
        return
    most = max(ratios[view.rank] for view in losing)
    losing = [view for view in losing if ratios[view.rank] >= most / 4]
    rest = [ratios[view.rank] for view in features.ranks if view not in losing]
    grown = transfer(features)
    known = ways.links(features)
    lost = ways.losing(known)
    full = bool(grown and lost and set(lost) <= set(ways.longer(known)))
    yield Found(
        "packet_loss_tcp",
        Proof.HINT if full else Proof.COUNTER,
        0.35 + min(0.45, 10 * most) + by_lost(features.lost(grown.extra) / 2 if grown else 0.0),
        _whose_loss(features, losing, lost, known),
        said(
            f"{named(v.rank for v in losing)} had to send {pct(most)} of the segments again",
            f"the other ranks {pct(max(rest))}" if rest else "",
            _ratio_before(losing),
            f"the transfer takes {ms(grown.now)} a step" + (f", it was {ms(grown.usual)}" if grown.usual else "")
            if grown
            else "",
        ),
        said(
            "what is lost waits in a queue that is full: a link that is too narrow drops what it has no room for"
            if full
            else ""
        ),
    )


def _ratio(window: Window) -> float:
    sent = window.rate.get("segments_out", 0.0)
    return window.rate.get("retransmits", 0.0) / sent if sent >= _FEW_SEGMENTS else 0.0


def _loses(view: View) -> bool:
    """More than there were before, or so many that it is a finding whenever it began."""
    now, before = _ratio(view.now), _ratio(view.before) if view.before is not None else 0.0
    return now >= t.RETRANSMITS and (now >= 3 * before or now >= _MANY or _ratio(view.whole) >= _MANY)


def _ratio_before(losing: Sequence[View]) -> str:
    old = [v.before.rate for v in losing if v.before is not None and v.before.rate.get("segments_out")]
    return f"before it was {pct(max(r.get('retransmits', 0.0) / r['segments_out'] for r in old))}" if old else ""


def _whose_loss(
    features: Features, losing: Sequence[View], lost: Sequence[ways.Link], known: Sequence[ways.Link]
) -> tuple[Culprit, ...]:
    """The one that all links which lose packets lead to; or the only such link."""
    if len(lost) == 1 < len(known):
        return (Culprit("link", ways.nodes_of(features, lost[0].ends)),)
    return ways.shared(lost) or _ends(features, losing)


def _ends(features: Features, views: Sequence[View]) -> tuple[Culprit, ...]:
    """A link that loses both ways shows on the rank that it is of, and on the one that sends to it: in gloo's ring the next one."""
    lost = {view.rank for view in views}
    world = len(features.ranks)
    if len(lost) == 2 < world and features.ranks[0].source.config.get("backend", "gloo") == "gloo":
        first = [rank for rank in lost if (rank + 1) % world in lost]
        if len(first) == 1:
            return ranks(first)
    return ranks(lost) if len(lost) < world else whose(features, views)


def transfer(features: Features) -> Transfer | None:
    """None where no exposed communication was measured, or it is not longer than it was."""
    if not _enough(features) or features.transfer is None or len(features.ranks) < 2:
        return None
    usual = features.transfer_before
    if usual is None:
        extra = features.transfer if features.lost(features.transfer) >= t.TRANSFER else 0.0
    else:
        extra = features.transfer - usual if features.transfer >= t.TRANSFER_GREW * usual else 0.0
    delay = max((max(0.0, view.grew("run_delay_s"), view.grew("throttled_s")) for view in features.ranks), default=0.0)
    return Transfer(features.transfer, usual, extra, delay * features.step) if extra > 0 else None


def _enough(features: Features) -> bool:
    """Fewer steps are enough where TCP itself says that the way has become long."""
    fewest = min((len(view.now.steps) for view in features.ranks), default=0)
    return features.timed() or (features.step > 0 and fewest >= _FEW_STEPS and bool(ways.longer(ways.links(features))))


def slow_transfer(features: Features) -> Iterator[Found]:
    """Bandwidth, latency, one pair or somebody else's traffic: told apart by where it is slow, how much is sent and how it varies."""
    grown = transfer(features)
    if grown is None or features.lost(grown.extra) < t.LOST:
        return
    known = ways.links(features)
    cause, culprits, own = _where(features, grown, known)
    strength = by_lost(features.lost(grown.extra))
    evidence = said(
        f"the transfer itself takes {ms(grown.now)} of a step of {ms(features.step)}"
        + (f", it was {ms(grown.usual)}" if grown.usual is not None else ", on the rank that waits least"),
        *own,
        _clean(features),
    )
    against = said(
        f"waiting for a core or a quota accounts for up to {ms(grown.starved)} of it"
        if grown.starved >= t.EXPLAINED * grown.extra
        else "",
        "segments are lost, which makes a transfer longer too" if any(_loses(v) for v in features.ranks) else "",
        "there is no earlier time of this run to compare with" if grown.usual is None else "",
        "on no connection does a segment take longer than it did" if ways.steady(known) else "",
    )
    yield Found(cause, Proof.TIMING, strength, culprits, evidence, against)
    for other in ("net_bandwidth_low", "ib_rate_degraded", "net_latency"):
        if other != cause:
            yield Found(other, Proof.HINT, strength * _LOOK_ALIKE, culprits, evidence[:1], against)


def _where(
    features: Features, grown: Transfer, known: Sequence[ways.Link]
) -> tuple[str, tuple[Culprit, ...], tuple[str, ...]]:
    """The cause, whose it is, and what tells so."""
    far = ways.slow(known)
    pair = ways.alone(far, known)
    if pair is not None:
        words = (
            ways.told(pair, [link for link in known if link is not pair]),
            "both of its ends are as fast with others",
        )
        return "slow_link_pair", (Culprit("link", ways.nodes_of(features, pair.ends)),), words
    cause, own = _which(features, grown)
    whose_it_is = ways.shared(far)
    if whose_it_is:
        rest = [link for link in known if link not in far]
        return cause, whose_it_is, (*own, *(ways.told(link, rest) for link in far))
    return cause, _at(features), (*own, *said(_queued(features)))


def _which(features: Features, grown: Transfer) -> tuple[str, tuple[str, ...]]:
    sent, before = _bytes(features, now=True), _bytes(features, now=False)
    others, earlier = ways.foreign(features, now=True), ways.foreign(features, now=False)
    if others is not None and others - (earlier or 0.0) >= _OTHERS:
        return "congestion_pfc", (
            f"{pct(others)} of what its node sends is not the training's: somebody else's traffic",
        )
    if others is None and sent and before and sent >= _FOREIGN * before and _busy(features):
        return "congestion_pfc", (
            f"the links carried {sent / 1e6:.1f} MB a step, before {before / 1e6:.1f} MB: somebody else's traffic",
        )
    if sent is not None and 0 < sent < _SMALL:
        return "net_latency", (
            f"only {sent / 1e3:.0f} kB are sent a step: what takes longer is the way, not the amount",
        )
    low, high = quantile(features.transfers, 0.1), quantile(features.transfers, 0.9)
    words = []
    if sent:
        words.append(f"{sent / 1e6:.1f} MB a step are sent, {sent / max(grown.now, 1e-9) / 1e6:.0f} MB/s")
    if low > 0 and high <= _FLAT * low:
        words.append(f"nine of ten transfers take {ms(low)} to {ms(high)}: the rate is capped")
    return "net_bandwidth_low", tuple(words)


def _busy(features: Features) -> bool:
    """Whether a link carries about what it did: where steps are longer and bytes a second fell, nobody else used it."""
    pairs = [
        (v.now.rate.get("net_tx_bytes", 0.0), v.before.rate.get("net_tx_bytes", 0.0))
        for v in features.ranks
        if v.before
    ]
    return any(now >= _STILL * before for now, before in pairs)


def _bytes(features: Features, *, now: bool) -> float | None:
    """Sent a step, by the rank that sends most."""
    windows = [w for view in features.ranks if (w := view.now if now else view.before) is not None]
    sent = [w.rate["net_tx_bytes"] * w.mean["total"] for w in windows if "net_tx_bytes" in w.rate and "total" in w.mean]
    return max(sent) if sent else None


def _clean(features: Features) -> str:
    known = [view for view in features.ranks if "retransmits" in view.now.rate]
    worst = max((_ratio(view.now) for view in known), default=0.0)
    return f"hardly a segment is sent again ({pct(worst)})" if known and worst < t.RETRANSMITS else ""


def _at(features: Features) -> tuple[Culprit, ...]:
    """The rank whose data wait to be sent, where its sockets say so."""
    queues = {view.rank: _queue(features, view) for view in features.ranks}
    known = {rank: value for rank, value in queues.items() if value is not None}
    if len(known) == len(features.ranks) > 1:
        longest = max(known, key=lambda rank: (known[rank], -rank))
        others = max(value for rank, value in known.items() if rank != longest)
        if known[longest] > _QUEUED * max(others, 4096):
            return ranks([longest])
    return whose(features, list(features.ranks))


def _queue(features: Features, view: View) -> float | None:
    """Bytes that waited to be sent, on average."""
    since = features.change.at if features.change is not None else -math.inf
    values = [value for at, value in gauge(view.source.counters, "send_queue_bytes") if at >= since]
    return statistics.fmean(values) if values else None


def _queued(features: Features) -> str:
    at = _at(features)
    view = features.view(int(at[0].name)) if at and at[0].kind == "rank" else None
    waiting = _queue(features, view) if view is not None else None
    if view is None or waiting is None:
        return ""
    return f"what rank {view.rank} has to send waits: {waiting / 1e3:,.0f} kB on average, its peers' does not"


RULES = (lost_packets, slow_transfer)
