"""One pair, one rank's link, or somebody else's: by what TCP tells of each connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from penstock.diagnosis.causes import links
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Counters, Diagnosis, Evidence, Rank
from penstock.worker import sockets
from tests.diagnosis.scenes import Scene, adds, from_step, on

BEGAN = 60
WELL = 0.0002
Rtts = Mapping[tuple[int, int], float]  # seconds after it began, by (from, to); of others WELL


def address(rank: int) -> str:
    return f"10.0.0.{rank + 1}"


def connected(evidence: Evidence, rtts: Rtts, lost: Rtts | None = None) -> Evidence:
    """Each rank sends to the one before it and hears from the next, as in gloo's ring; some more is said to rank 0."""
    world = len(evidence.ranks)
    links = {(rank, (rank - 1) % world) for rank in range(world)} | {(rank, 0) for rank in range(1, world)}

    def told(rank: Rank) -> Rank:
        began = rank.steps[BEGAN].at if len(rank.steps) > BEGAN else 0.0
        counters = []
        for n, reading in enumerate(rank.counters):
            values = dict(reading.values)
            for a, b in links:
                if a == rank.rank:
                    segments = 4000.0 * n
                    values |= {
                        f"rtt_s:{address(b)}": rtts.get((a, b), WELL) if reading.at >= began else WELL,
                        f"segments:{address(b)}": segments,
                        f"sent_bytes:{address(b)}": segments * 1448,
                        f"resent:{address(b)}": segments * (lost or {}).get((a, b), 0.0),
                    }
            counters.append(Counters(reading.at, values))
        config = {**rank.config, "addresses": [address(rank.rank)]}
        return replace(rank, node=f"node-{rank.rank}", counters=tuple(counters), config=config)

    return replace(evidence, ranks=tuple(map(told, evidence.ranks)))


def slower(world: int, times: float = 5.0) -> Evidence:
    return Scene(world=world, slower=lambda step, _: times if step >= BEGAN else 1.0).evidence()


def said(found: Diagnosis) -> tuple[str, list[tuple[str, str]]]:
    return found.verdict, [(culprit.kind, culprit.name) for culprit in found.culprits]


@pytest.mark.parametrize("world", [3, 4])
def test_one_link_that_is_slow_is_a_pair(world: int) -> None:
    found = diagnose(connected(slower(world), {(2, 1): 0.012}))
    assert said(found) == ("slow_link_pair", [("link", "node-1->node-2")])
    words = " ".join(found.causes[0].evidence)
    assert (
        "between rank 1 and rank 2 a segment and its answer take 12 ms, it was 0.2 ms; on the other links 0.2 ms"
        in words
    )
    assert "net_bandwidth_low" in [cause.cause for cause in found.causes[1:]]


@pytest.mark.parametrize("world", [3, 4])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_links_that_are_slow_and_meet_blame_where_they_meet(rank: int, world: int) -> None:
    rtts = {(rank, (rank - 1) % world): 0.012, ((rank + 1) % world, rank): 0.006}
    assert said(diagnose(connected(slower(world), rtts))) == ("net_bandwidth_low", [("rank", str(rank))])


def test_between_two_ranks_a_pair_is_not_told_from_a_link() -> None:
    assert diagnose(connected(slower(2), {(0, 1): 0.012, (1, 0): 0.012})).verdict == "net_bandwidth_low"


def test_all_links_that_are_slow_blame_no_rank() -> None:
    rtts = {(a, b): 0.012 for a in range(4) for b in range(4)}
    found = diagnose(connected(slower(4), rtts))
    assert found.verdict == "net_bandwidth_low"
    assert not [culprit for culprit in found.culprits if culprit.kind in {"rank", "link"}]


def test_a_connection_that_nothing_was_sent_on_tells_nothing() -> None:
    evidence = connected(slower(3), {(2, 1): 0.012, (1, 0): 0.012})
    stale = tuple(
        replace(
            rank,
            counters=tuple(
                Counters(c.at, {n: 0.0 if n.startswith("segments:") else v for n, v in c.values.items()})
                for c in rank.counters
            ),
        )
        for rank in evidence.ranks
    )
    assert diagnose(replace(evidence, ranks=stale)).verdict == "net_bandwidth_low"


def test_a_transfer_that_grew_on_links_that_are_as_they_were_is_doubted() -> None:
    plain = diagnose(slower(3, 2.5)).causes[0]
    doubted = next(c for c in diagnose(connected(slower(3, 2.5), {})).causes if c.cause == plain.cause)
    assert doubted.score < plain.score
    assert any("on no connection" in words for words in doubted.against)


def test_few_steps_are_enough_where_tcp_says_that_the_way_is_long() -> None:
    evidence = connected(slower(3, 9.0), {(2, 1): 0.03})
    few = tuple(
        replace(
            rank,
            steps=rank.steps[: BEGAN + 9],
            counters=tuple(c for c in rank.counters if c.at <= rank.steps[BEGAN + 30].at),
        )
        for rank in evidence.ranks
    )
    assert diagnose(replace(evidence, ranks=few)).verdict == "slow_link_pair"


@pytest.mark.parametrize("told", ["10.0.0.1", None, 7, [["10.0.0.1"]], ["10.0.0.1", "10.0.0.2", "10.0.0.3"]])
def test_addresses_that_are_no_list_or_everybodys_are_nobodys(told: object) -> None:
    evidence = connected(slower(3), {(2, 1): 0.012})
    odd = tuple(replace(rank, config={**rank.config, "addresses": told}) for rank in evidence.ranks)
    assert diagnose(replace(evidence, ranks=odd)).verdict == "net_bandwidth_low"


@pytest.mark.parametrize(("more", "cause"), [(0.0, "net_bandwidth_low"), (0.5, "congestion_pfc")])
def test_what_a_node_sends_that_is_not_the_jobs_is_somebody_elses(more: float, cause: str) -> None:
    evidence = connected(slower(3), {(1, 0): 0.012, (2, 1): 0.012})

    def sends(rank: Rank) -> Rank:
        began = rank.steps[BEGAN].at
        counters = []
        for reading in rank.counters:
            own = sum(value for name, value in reading.values.items() if name.startswith("sent_bytes:"))
            others = own * more if rank.rank == 1 and reading.at >= began else 0.0
            counters.append(Counters(reading.at, {**reading.values, "net_tx_bytes": 1.05 * own + others}))
        return replace(rank, counters=tuple(counters))

    found = diagnose(replace(evidence, ranks=tuple(map(sends, evidence.ranks))))
    assert said(found) == (cause, [("rank", "1")])


# -- loss -------------------------------------------------------------------------------------------------------------


def losing(world: int, *ranks: int, start: int, times: float = 1.0) -> Evidence:
    loss = adds(retransmits=2)
    faults = [from_step(start, on(rank, loss)) for rank in ranks]
    return Scene(world=world, slower=lambda step, _: times if step >= BEGAN else 1.0).evidence(*faults)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_packets_are_lost_where_the_links_that_lose_them_meet(rank: int) -> None:
    others = {(rank, (rank - 1) % 4): 0.04, ((rank + 1) % 4, rank): 0.03}
    evidence = losing(4, rank, (rank + 1) % 4, start=BEGAN, times=2.5)
    assert said(diagnose(connected(evidence, {}, others))) == ("packet_loss_tcp", [("rank", str(rank))])


def test_one_link_that_loses_packets_is_named_itself() -> None:
    evidence = losing(4, 2, start=BEGAN, times=2.5)
    found = diagnose(connected(evidence, {}, {(2, 1): 0.04}))
    assert said(found) == ("packet_loss_tcp", [("link", "node-1->node-2")])


@pytest.mark.parametrize("start", [8, 40])
def test_so_many_lost_packets_are_a_finding_whenever_it_began(start: int) -> None:
    """Steps became longer later, or not at all."""
    for times in (1.0, 1.6):
        assert diagnose(losing(3, 1, start=start, times=times)).verdict == "packet_loss_tcp"


def test_what_a_full_queue_drops_is_no_loss() -> None:
    evidence = losing(3, 1, start=BEGAN, times=5.0)
    full = {(1, 0): 0.012, (2, 1): 0.008}
    found = diagnose(connected(evidence, full, dict.fromkeys(full, 0.02)))
    assert said(found) == ("net_bandwidth_low", [("rank", "1")])
    assert "packet_loss_tcp" in [cause.cause for cause in found.causes[:3]]


@pytest.mark.parametrize("share", [lambda _: "", lambda rank: "node-0" if rank < 2 else "node-1"])
def test_ranks_that_share_a_node_are_one_end(share: Callable[[int], str]) -> None:
    evidence = connected(slower(4), {(2, 1): 0.012})
    placed = tuple(
        replace(rank, node=share(rank.rank), config={"addresses": [address(2 * (rank.rank // 2))]})
        for rank in evidence.ranks
    )
    assert diagnose(replace(evidence, ranks=placed)).verdict == "net_bandwidth_low"


def test_so_many_peers_are_told_of_as_a_rank_tells_of() -> None:
    assert links._TOLD == sockets.PEERS
