"""Links, by their own counters: down, flapping, slow, with errors, or held up by others' traffic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from penstock.diagnosis.causes.readings import Reading, readings, rose
from penstock.diagnosis.causes.rule import Found, Proof, nodes, said
from penstock.diagnosis.features import Features, middle
from penstock.diagnosis.state import Culprit

_ACTIVE = 4.0  # an InfiniBand port's state
_ERRORS = 10.0
_PAIR = 0.5  # of the median pair's bandwidth


def _link(reading: Reading) -> tuple[Culprit, ...]:
    return (Culprit("link", f"{reading.node}/{reading.device}"), Culprit("node", reading.node))


def down(features: Features) -> Iterator[Found]:
    """A port that is down now, or that was down and up again more than once."""
    for what, up in (("link_state", _ACTIVE), ("link_up", 1.0)):
        for reading in readings(features, what):
            values = [value for _, value in reading.series.samples]
            falls = sum(old >= up > new for old, new in itertools.pairwise(values))
            words = f"{reading.device} on {reading.node}"
            if falls >= 2 and values[-1] >= up:
                yield Found(
                    "link_flap", Proof.COUNTER, 0.8, _link(reading), (f"{words} went down {falls} times and is up",)
                )
            elif values[-1] < up <= max(values):
                yield Found("ib_link_down", Proof.COUNTER, 0.9, _link(reading), (f"{words} is down, it was up",))
    for reading in readings(features, "link_downs"):
        count = rose(reading)
        if count >= 2:
            words = f"{reading.device} on {reading.node} counted {count:.0f} losses of its link"
            yield Found("link_flap", Proof.COUNTER, 0.7, _link(reading), (words,))


def slow(features: Features) -> Iterator[Found]:
    """A port that was trained at a lower rate than its peers."""
    found = list(readings(features, "link_rate"))
    usual = middle(reading.value for reading in found)
    for reading in found:
        most = max((value for _, value in reading.series.samples), default=0.0)
        full = max(most, usual or 0.0)
        if 0 < reading.value < 0.9 * full:
            words = f"{reading.device} on {reading.node} runs at {reading.value * 8e-9:.0f} Gbit/s, others at {full * 8e-9:.0f}"
            yield Found("ib_rate_degraded", Proof.COUNTER, 0.8, _link(reading), (words,))


def errors(features: Features) -> Iterator[Found]:
    """Symbol errors on one link; waiting to send on many; loss without notice of congestion."""
    symbols = {reading: rose(reading) for reading in _once(features, "symbol_errors")}
    usual = middle(symbols.values()) or 0.0
    for reading, count in symbols.items():
        if count >= _ERRORS and (len(symbols) == 1 or count > 10 * usual):
            words = f"{reading.device} on {reading.node} counted {count:.0f} symbol errors, the median link {usual:.0f}"
            yield Found("bad_cable", Proof.COUNTER, 0.7, _link(reading), (words,))
    waits = [reading for reading in readings(features, "transmit_wait") if rose(reading) > 1e5]
    clean = not any(count >= _ERRORS for count in symbols.values())
    if waits and clean:
        names = sorted({reading.node for reading in waits})
        words = f"{len(waits)} ports on {len(names)} nodes had to wait before they could send, none has symbol errors"
        yield Found("congestion_pfc", Proof.COUNTER, 0.5 + 0.1 * min(4, len(waits) - 1), nodes(names), (words,))
    drops = [reading for reading in readings(features, "out_of_sequence") if rose(reading) > 100]
    notices = [rose(reading) for reading in readings(features, "cnp_sent")]
    if drops and notices and max(notices) == 0 and clean:
        words = (
            f"{rose(drops[0]):.0f} packets came out of order on {drops[0].node}, and no port gave notice of congestion"
        )
        yield Found("ecn_misconfig", Proof.COUNTER, 0.8, _link(drops[0]), (words,))


def _once(features: Features, what: str) -> list[Reading]:
    return list({(reading.node, reading.device): reading for reading in readings(features, what)}.values())


def packets(features: Features) -> Iterator[Found]:
    """Nodes that do not agree on how long a packet may be."""
    sizes = {(r.node, r.device): r.value for r in readings(features, "mtu") if r.device != "lo"}
    if len({node for node, _ in sizes}) < 2 or len(set(sizes.values())) < 2:
        return
    usual = max(set(sizes.values()), key=lambda size: (list(sizes.values()).count(size), size))
    odd = sorted(key for key, size in sizes.items() if size != usual and _same_name_elsewhere(key, sizes, usual))
    if odd:
        node, name = odd[0]
        words = f"{name} on {node} takes packets of {sizes[odd[0]]:.0f} bytes, elsewhere it is {usual:.0f}"
        yield Found("mtu_mismatch", Proof.COUNTER, 0.6, (Culprit("node", node),), (words,))


def _same_name_elsewhere(key: tuple[str, str], sizes: dict[tuple[str, str], float], usual: float) -> bool:
    return any(name == key[1] and node != key[0] and size == usual for (node, name), size in sizes.items())


def pairs(features: Features) -> Iterator[Found]:
    """Two nodes that are slow with each other only."""
    found = {r.device: r.value for r in readings(features, "pair_bandwidth") if "->" in r.device}
    usual = middle(found.values())
    slow_ones = sorted(name for name, value in found.items() if usual and value < _PAIR * usual)
    if not slow_ones or len(found) < 3 or len(slow_ones) > 2:
        return
    ends = [set(name.split("->")) for name in slow_ones]
    if all(pair == ends[0] for pair in ends):
        words = f"{slow_ones[0]} carries {found[slow_ones[0]] / 1e6:.0f} MB/s, the median pair {(usual or 0) / 1e6:.0f} MB/s"
        also = "both ends are as fast as others with everybody else"
        yield Found("slow_link_pair", Proof.COUNTER, 0.9, (Culprit("link", slow_ones[0]),), said(words, also))


RULES = (down, slow, errors, packets, pairs)
