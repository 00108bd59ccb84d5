"""Faults of the network, in a rank's own namespace: rate, loss, other traffic, a link that goes down, a smaller packet size.

What ``netem`` would do is put together from what every kernel has: ``tbf`` and ``htb`` for rates, iptables' ``statistic`` for loss.
"""

from __future__ import annotations

import json
import re
import time

from penstock.base.errors import Conflict
from penstock.diagnosis.injecting import delay, programs
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import NETWORK, ROOT, Fault, Order, Strength, Target

_NEEDS = frozenset({ROOT, NETWORK})
_MBIT = Strength(150, 80, 250, "Mbit/s")
_FLOOD = """
import socket, sys, time
size, rate, until = 1400, float(sys.argv[3]) * 1e6 / 8, time.time() + 3600
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent, began = 0, time.time()
while time.time() < until:
    if sent < (time.time() - began) * rate:
        try:
            sender.sendto(b"x" * size, (sys.argv[1], int(sys.argv[2])))
        except OSError:
            pass
        sent += size
    else:
        time.sleep(0.001)
"""

BANDWIDTH = Fault("bandwidth", "net_bandwidth_low", "network", "the rank's link carries only so much", _MBIT, _NEEDS)
LOSS = Fault(
    "packet-loss", "packet_loss_tcp", "network", "packets are lost", Strength(0.04, 0.02, 0.06, "share"), _NEEDS
)
CABLE = Fault(
    "bad-cable",
    "bad_cable",
    "network",
    "packets are lost as by a bad cable",
    Strength(0.01, 0.005, 0.02, "share"),
    _NEEDS,
)
LATENCY = Fault(
    "latency",
    "net_latency",
    "network",
    "what the rank sends arrives later",
    Strength(0.01, 0.006, 0.02, "s"),
    _NEEDS,
)
RATE = Fault(
    "link-rate", "ib_rate_degraded", "network", "the rank's link is trained at a lower rate, both ways", _MBIT, _NEEDS
)
PAIR = Fault("slow-pair", "slow_link_pair", "network", "the way between two ranks carries only so much", _MBIT, _NEEDS)
CONGESTION = Fault(
    "congestion",
    "congestion_pfc",
    "network",
    "somebody's bulk traffic shares the rank's link",
    Strength(300, 200, 400, "Mbit/s"),
    _NEEDS,
)
DOWN = Fault(
    "link-down",
    "ib_link_down",
    "network",
    "the rank's link is down",
    Strength(1, 1, 1, ""),
    _NEEDS,
    ends_job=True,
)
FLAP = Fault(
    "link-flap", "link_flap", "network", "the rank's link goes down so often", Strength(3, 3, 5, "times"), _NEEDS
)
MTU = Fault(
    "mtu",
    "mtu_mismatch",
    "network",
    "the rank's link takes only packets of so many bytes, silently",
    Strength(1000, 600, 1200, "bytes"),
    _NEEDS,
    ends_job=True,
)
BLOCKED = Fault(
    "rendezvous-blocked",
    "master_unreachable",
    "network",
    "nobody reaches the rank's port of rendezvous (strength: the port)",
    Strength(29500, 29500, 29500, "port"),
    _NEEDS,
    ends_job=True,
)


def interface(target: Target) -> tuple[str, str]:
    """The name and address of the rank's link."""
    shown = json.loads(programs.run(*programs.in_network(target.pid, "ip", "-j", "-4", "addr", "show", "up")))
    for link in shown:
        if link["ifname"] != "lo" and link.get("addr_info"):
            return str(link["ifname"]), str(link["addr_info"][0]["local"])
    raise Conflict(f"rank {target.rank} has no link of its own")


def _root(note: Note, target: Target) -> str:
    name, _ = interface(target)
    note.will("command", *programs.in_network(target.pid, "tc", "qdisc", "del", "dev", name, "root"))
    return name


def _tc(target: Target, *words: str) -> None:
    programs.run(*programs.in_network(target.pid, "tc", *words))


def bandwidth(order: Order, note: Note) -> None:
    for target in order.targets:
        name = _root(note, target)
        _tc(target, "qdisc", "replace", "dev", name, "root", *_bucket(order.strength))


def _bucket(mbit: float) -> tuple[str, ...]:
    return ("tbf", "rate", f"{mbit:g}mbit", "burst", "64kb", "latency", "400ms")


def link_rate(order: Order, note: Note) -> None:
    """Both ways: what the rank sends, and what its peers send to it."""
    bandwidth(order, note)
    for target in order.targets:
        _, address = interface(target)
        for peer in order.peers:
            if peer.rank != target.rank:
                _toward(note, peer, address, order.strength)


def slow_pair(order: Order, note: Note) -> None:
    """Between the first of the chosen ranks and the second (or its next), both ways."""
    one = order.targets[0]
    others = [target for target in (*order.targets[1:], *order.peers) if target.rank != one.rank]
    if len(order.peers) < 3:
        raise Conflict("with fewer than three ranks a slow pair is a slow link: take `bandwidth`")
    other = min(others, key=lambda target: (target not in order.targets, (target.rank - one.rank) % 1000))
    _toward(note, one, interface(other)[1], order.strength)
    _toward(note, other, interface(one)[1], order.strength)


def _toward(note: Note, sender: Target, address: str, mbit: float) -> None:
    """Slow only what goes to one address: a class of its own, the rest at the link's rate."""
    name = _root(note, sender)
    _tc(sender, "qdisc", "replace", "dev", name, "root", "handle", "1:", "htb", "default", "10")
    _tc(sender, "class", "add", "dev", name, "parent", "1:", "classid", "1:10", "htb", "rate", "10gbit")
    _tc(sender, "class", "add", "dev", name, "parent", "1:", "classid", "1:20", "htb", "rate", f"{mbit:g}mbit")
    rule = ("-t", "mangle", "OUTPUT", "-d", address, "-j", "CLASSIFY", "--set-class", "1:20")
    _rule(note, sender, *rule)


def _rule(note: Note, target: Target, *rule: str) -> None:
    """Add an iptables rule in the rank's namespace; ``-t TABLE`` first where it is not ``filter``."""
    table, rest = (rule[:2], rule[2:]) if rule[0] == "-t" else ((), rule)
    tool = programs.in_network(target.pid, "iptables-legacy", "-w", *table)
    note.will("command", *tool, "-D", *rest)
    programs.run(*tool, "-A", *rest)


def loss(order: Order, note: Note) -> None:
    """Of what comes in to the rank, and of what its peers get from it: as on the wire, so that senders see it by their retransmits."""
    share = ("-m", "statistic", "--mode", "random", "--probability", f"{order.strength:.4f}", "-j", "DROP")
    for target in order.targets:
        name, address = interface(target)
        _rule(note, target, "INPUT", "-i", name, *share)
        for peer in order.peers:
            if peer.rank != target.rank:
                _rule(note, peer, "INPUT", "-s", address, *share)


def latency(order: Order, note: Note) -> None:
    """Routes to the peers lead through a program that waits; with it the device goes, and with that the routes."""
    for target in order.targets:
        name, _ = interface(target)
        peers = [interface(peer)[1] for peer in order.peers if peer.rank != target.rank]
        words = programs.file_words(delay.__file__, f"{order.strength:.4f}", name, *peers)
        programs.start(note, list(programs.in_network(target.pid, *words)), ready=True)


def congestion(order: Order, note: Note) -> None:
    """The link is given a rate, and a stream that nobody of the job asked for takes most of it."""
    if len(order.peers) < 2:
        raise Conflict("a job of one rank has no peer that the traffic could go to")
    bandwidth(order, note)
    for target in order.targets:
        peer = next(peer for peer in order.peers if peer.rank != target.rank)
        _, address = interface(peer)
        rate = f"{order.strength * 0.8:g}"
        words = programs.in_network(target.pid, *programs.python_words(_FLOOD, address, "9", rate))
        programs.start(note, list(words))


def link_down(order: Order, note: Note) -> None:
    for target in order.targets:
        name, _ = interface(target)
        note.will("command", *programs.in_network(target.pid, "ip", "link", "set", name, "up"))
        programs.run(*programs.in_network(target.pid, "ip", "link", "set", name, "down"))


def flap(order: Order, note: Note) -> None:
    for target in order.targets:
        name, _ = interface(target)
        note.will("command", *programs.in_network(target.pid, "ip", "link", "set", name, "up"))
        for _ in range(round(order.strength)):
            for state, seconds in (("down", 0.15), ("up", 0.3)):
                programs.run(*programs.in_network(target.pid, "ip", "link", "set", name, state))
                time.sleep(seconds)


def mtu(order: Order, note: Note) -> None:
    """Longer packets vanish without a word, as behind a switch that is set for shorter ones."""
    for target in order.targets:
        name, _ = interface(target)
        for chain, side in (("OUTPUT", "-o"), ("INPUT", "-i")):
            longer = f"{round(order.strength)}:65535"
            _rule(note, target, chain, side, name, "-m", "length", "--length", longer, "-j", "DROP")


def blocked(order: Order, note: Note) -> None:
    for target in order.targets:
        _rule(note, target, "INPUT", "-p", "tcp", "--dport", str(round(order.strength)), "-j", "DROP")


def leftovers(pid: int) -> list[str]:
    """What is still set in a process's namespace: rules, and queueing that a fault put in. For tests."""
    rules = programs.run(*programs.in_network(pid, "iptables-legacy", "-w", "-S")).splitlines()
    mangled = programs.run(*programs.in_network(pid, "iptables-legacy", "-w", "-t", "mangle", "-S")).splitlines()
    queues = programs.run(*programs.in_network(pid, "tc", "qdisc", "show")).splitlines()
    return [line for line in (*rules, *mangled) if line.startswith("-A")] + [
        line for line in queues if re.match(r"qdisc (tbf|htb|ingress|clsact)", line)
    ]


ACTS = {
    BANDWIDTH: bandwidth,
    LOSS: loss,
    CABLE: loss,
    LATENCY: latency,
    RATE: link_rate,
    PAIR: slow_pair,
    CONGESTION: congestion,
    DOWN: link_down,
    FLAP: flap,
    MTU: mtu,
    BLOCKED: blocked,
}
