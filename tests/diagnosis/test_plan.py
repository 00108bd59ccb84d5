"""What the diagnosis says of trainings that are made up: each cause named with its rank, two at once, and the healthy ones left alone."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.diagnosis.plan import HEALTHY, UNKNOWN, diagnose
from penstock.diagnosis.state import Counters, Diagnosis, Evidence, Rank, Step
from tests.diagnosis.scenes import Fault, Scene, Work, adds, everywhere, from_step, on

RANK_1 = {
    "data_loader_one_rank": on(1, adds(data=0.03)),
    "cpu_contention": on(1, adds(compute=0.05, run_delay_s=0.045)),
    "cgroup_throttle": on(1, adds(compute=0.06, run_delay_s=0.03, throttled_s=0.055)),
    "slow_compute_rank": on(1, adds(compute=0.03, cpu_s=0.03)),
    "seq_imbalance": on(1, adds(compute=0.06, tokens=8192)),
    "gc_pause": on(1, adds(gc=0.02, cpu_s=0.02)),
    "memory_leak": on(1, adds(rss_bytes=3e6)),
}
ALL_RANKS = {
    "data_loader_bound": everywhere(adds(data=0.03)),
    "storage_slow": everywhere(adds(data=0.03, io_pressure_s=0.028)),
}


def said(diagnosis: Diagnosis) -> tuple[str, list[str]]:
    return diagnosis.verdict, [culprit.name for culprit in diagnosis.culprits]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("start", [0, 60])
@pytest.mark.parametrize("cause", RANK_1)
def test_the_rank_that_others_wait_for_is_named(cause: str, start: int, world: int) -> None:
    found = diagnose(Scene(world=world).evidence(from_step(start, RANK_1[cause])))
    assert said(found) == (cause, ["1"])
    assert found.causes[0].evidence


@pytest.mark.parametrize("start", [0, 60])
@pytest.mark.parametrize("cause", ALL_RANKS)
def test_what_all_ranks_meet_blames_none_of_them(cause: str, start: int) -> None:
    found = diagnose(Scene(world=3).evidence(from_step(start, ALL_RANKS[cause])))
    assert found.verdict == cause
    assert not [culprit for culprit in found.culprits if culprit.kind == "rank"]


@pytest.mark.parametrize("start", [0, 60])
def test_a_narrow_link_is_what_the_shortest_transfer_tells(start: int) -> None:
    found = diagnose(Scene(slower=lambda step, _: 5.0 if step >= start else 1.0).evidence())
    assert found.verdict == "net_bandwidth_low"


def test_lost_packets_come_before_a_narrow_link() -> None:
    loss = on(1, adds(retransmits=2))
    found = diagnose(Scene(slower=lambda step, _: 2.5 if step >= 60 else 1.0).evidence(from_step(60, loss)))
    assert said(found) == ("packet_loss_tcp", ["1"])
    narrow = next(cause for cause in found.causes if cause.cause == "net_bandwidth_low")
    assert "packet_loss_tcp brings the same about, and is better founded" in narrow.against


def test_somebody_elses_traffic_is_told_from_a_narrow_link() -> None:
    other = on(0, adds(net_tx_bytes=4e6))
    found = diagnose(Scene(slower=lambda step, _: 4.0 if step >= 60 else 1.0).evidence(from_step(60, other)))
    assert found.verdict == "congestion_pfc"


def test_a_save_that_holds_everybody_up() -> None:
    def save(step: int, work: Work) -> None:
        work.checkpoint += 0.5 if step % 20 == 0 else 0.0

    found = diagnose(Scene().evidence(on(0, save)))
    assert said(found) == ("ckpt_stall", ["0"])
    assert any("every 20 steps exactly" in words for words in found.causes[0].evidence)


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_that_stood_still_once(world: int) -> None:
    def stop(step: int, work: Work) -> None:
        work.frozen += 2.0 if step == 100 else 0.0

    found = diagnose(Scene(world=world, steps=240).evidence(on(1, stop)))
    assert said(found) == ("process_frozen", ["1"])


@pytest.mark.parametrize("stopped", [True, False])
def test_a_rank_that_stood_still_in_the_midst_of_a_save(stopped: bool) -> None:
    def stop(step: int, work: Work) -> None:
        work.checkpoint += 0.005 if step % 20 == 0 else 0.0
        if step == 100:
            work.frozen, work.checkpoint = (2.0, 0.0) if stopped else (0.0, 2.0)

    told = Scene(steps=160).evidence(on(0, stop))
    saving = dataclasses.replace(
        told.ranks[0],
        steps=tuple(
            dataclasses.replace(s, checkpoint=2.0, compute=0.03) if s.step == 100 else s for s in told.ranks[0].steps
        ),
    )
    found = diagnose(dataclasses.replace(told, ranks=(saving, told.ranks[1])))
    assert said(found) == ("process_frozen" if stopped else "ckpt_stall", ["0"])
    assert ("ckpt_stall" in {cause.cause for cause in found.causes}) != stopped


def test_state_t_needs_no_steps() -> None:
    ranks = (Rank(0, "a", state="S"), Rank(1, "b", state="T"))
    found = diagnose(Evidence("train", "default", "Running", 0.0, ranks))
    assert said(found) == ("process_frozen", ["1"])


def test_a_cache_that_gets_warm() -> None:
    def cold(step: int, work: Work) -> None:
        work.data += max(0.0, 0.04 - 0.0005 * step)

    assert diagnose(Scene(steps=200).evidence(everywhere(cold))).verdict == "cold_cache"


def test_tokens_that_vary_make_another_rank_slow_each_step() -> None:
    chance = random.Random(3)
    tokens = {(step, rank): 4096 * chance.choice((1, 1, 3)) for step in range(160) for rank in range(3)}

    def vary(rank: int, step: int, work: Work) -> None:
        work.tokens = tokens[step, rank]
        work.compute *= work.tokens / 4096

    found = diagnose(Scene(world=3).evidence(vary))
    assert (found.verdict, [culprit.kind for culprit in found.culprits]) == ("seq_imbalance", ["job"])


PAIRS = [
    ("data_loader_one_rank", "gc_pause"),
    ("cgroup_throttle", "ckpt_stall"),
    ("slow_compute_rank", "data_loader_bound"),
]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_faults_at_once_both_stand_at_the_top(pair: tuple[str, str]) -> None:
    def save(step: int, work: Work) -> None:
        work.checkpoint += 0.6 if step % 20 == 0 else 0.0

    faults: dict[str, Fault] = {**RANK_1, **ALL_RANKS, "gc_pause": on(0, adds(gc=0.03)), "ckpt_stall": on(0, save)}
    found = diagnose(Scene(world=3).evidence(*(from_step(60, faults[cause]) for cause in pair)))
    assert {cause.cause for cause in found.causes[:2]} == set(pair)


def test_starving_is_not_a_slow_device() -> None:
    found = diagnose(Scene().evidence(from_step(60, RANK_1["cpu_contention"])))
    assert all(cause.cause != "slow_compute_rank" or cause.score < found.causes[0].score / 2 for cause in found.causes)


def test_what_nothing_explains_is_unknown() -> None:
    found = diagnose(Scene(world=3).evidence(from_step(60, everywhere(adds(compute=0.08)))))
    assert found.verdict == UNKNOWN
    assert found.slowdown is not None
    assert found.slowdown > 2


def test_nothing_known_is_unknown() -> None:
    assert diagnose(Evidence("train", "default", "Running", 0.0)).verdict == UNKNOWN


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]), st.sampled_from([40, 120]), st.floats(0.02, 0.3))
@settings(max_examples=100)
def test_healthy_noise_stays_healthy(seed: int, world: int, steps: int, noise: float) -> None:
    found = diagnose(Scene(world=world, steps=steps, noise=noise, seed=seed).evidence())
    assert found.verdict == HEALTHY


@given(st.permutations(range(4)), st.sampled_from([*RANK_1]))
@settings(max_examples=40)
def test_the_order_of_the_ranks_does_not_matter(order: list[int], cause: str) -> None:
    evidence = Scene(world=4).evidence(from_step(60, RANK_1[cause]))
    other = dataclasses.replace(evidence, ranks=tuple(evidence.ranks[n] for n in order))
    assert diagnose(other) == diagnose(evidence) == diagnose(evidence)


SECONDS = ("at", "total", "data", "compute", "comm", "optimizer", "checkpoint", "gc")


def scaled(evidence: Evidence, by: float) -> Evidence:
    def step(one: Step) -> Step:
        return dataclasses.replace(one, **{name: getattr(one, name) * by for name in SECONDS})

    def counters(one: Counters) -> Counters:
        return Counters(
            one.at * by, {n: v * by if n.endswith("_s") or n == "segments_out" else v for n, v in one.values.items()}
        )

    ranks = (
        dataclasses.replace(r, steps=tuple(map(step, r.steps)), counters=tuple(map(counters, r.counters)))
        for r in evidence.ranks
    )
    return dataclasses.replace(evidence, ranks=tuple(ranks))


@given(st.floats(0.05, 50), st.sampled_from([*RANK_1, *ALL_RANKS]))
@settings(max_examples=40)
def test_a_machine_that_is_slower_in_all_gives_the_same_verdict(by: float, cause: str) -> None:
    evidence = Scene().evidence(from_step(60, (RANK_1 | ALL_RANKS)[cause]))
    assert said(diagnose(scaled(evidence, by))) == said(diagnose(evidence))


NUMBERS = st.one_of(st.none(), st.floats(0, 1e6), st.just(float("nan")), st.just(float("inf")))
STEPS = st.builds(Step, st.integers(0, 50), st.floats(0, 1e9), st.floats(0, 1e4), *[NUMBERS] * 9)
NAMES = st.sampled_from(
    ["cpu_s", "run_delay_s", "throttled_s", "rss_bytes", "segments_out", "retransmits", "open_files", "checksum"]
)
COUNTERS = st.builds(Counters, st.floats(0, 1e9), st.dictionaries(NAMES, st.floats(0, 1e12)))
RANKS = st.builds(
    Rank, st.integers(0, 5), st.sampled_from(["a", "b", ""]), st.lists(STEPS, max_size=40).map(tuple),
    st.lists(COUNTERS, max_size=8).map(tuple), st.dictionaries(st.sampled_from(["cpus", "stage"]), st.integers(0, 4)),
)  # fmt: skip


@given(st.lists(RANKS, max_size=4), st.one_of(st.none(), st.floats(0, 1e9)))
@settings(max_examples=150)
def test_it_is_total(ranks: list[Rank], since: float | None) -> None:
    found = diagnose(Evidence("train", "default", "Failed", 1e9, tuple(ranks)), since)
    assert 0 <= found.confidence <= 1
    assert all(0 <= cause.score <= 1 for cause in found.causes)


def test_more_tokens_and_garbage_on_one_rank_are_two_causes() -> None:
    def both(step: int, work: Work) -> None:
        work.gc += 0.07
        work.tokens, work.compute = 4 * work.tokens, 3 * work.compute

    found = diagnose(Scene(world=3).evidence(from_step(60, on(1, both))))
    causes = {cause.cause: [culprit.name for culprit in cause.culprits] for cause in found.causes[:2]}
    assert causes == {"gc_pause": ["1"], "seq_imbalance": ["1"]}


@pytest.mark.parametrize(("longer", "slow"), [(2.0, True), (1.0, False)])
def test_a_rank_with_more_tokens_that_needs_longer_for_each_too(longer: float, slow: bool) -> None:
    def more(step: int, work: Work) -> None:
        work.tokens, work.compute = 3 * work.tokens, 3 * longer * work.compute

    found = diagnose(Scene(world=3).evidence(from_step(60, on(1, more))))
    causes = {cause.cause for cause in found.causes[:3] if cause.score > 0.2}
    assert causes == {"seq_imbalance"} | ({"slow_compute_rank"} if slow else set())
    assert {culprit.name for culprit in found.culprits} == {"1"}


def test_a_slow_loader_is_seen_beside_a_rank_whose_quota_stretches_all_that_it_does() -> None:
    def slow(step: int, work: Work) -> None:
        work.data += 0.05

    def throttled(step: int, work: Work) -> None:
        work.data, work.compute = work.data + 0.03, 4 * work.compute
        work.counts["throttled_s"] = 0.14

    found = diagnose(Scene().evidence(from_step(60, on(0, slow)), from_step(60, on(1, throttled))))
    causes = {cause.cause: [culprit.name for culprit in cause.culprits] for cause in found.causes[:3]}
    assert causes["cgroup_throttle"] == ["1"]
    assert causes["data_loader_one_rank"] == ["0"]


def test_a_job_that_failed_or_stands_still_is_never_called_healthy() -> None:
    told = Scene().evidence()
    assert diagnose(told).verdict == "healthy"
    failed = diagnose(dataclasses.replace(told, phase="Failed"))
    assert (failed.verdict, failed.missing[0]) == (
        "unknown",
        "it failed; what it said last is in its log: `penstock logs`",
    )
    still = diagnose(dataclasses.replace(told, at=told.at + 90))
    assert (still.verdict, still.missing[0]) == ("unknown", "no step has ended for 90 s, and why is not known")
    assert diagnose(dataclasses.replace(told, at=told.at + 90, phase="Succeeded")).verdict == "healthy"
