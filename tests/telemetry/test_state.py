"""The rule of idle GPUs: sample by sample it says what a look at all samples would; silence proves nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.telemetry.state import RULE, Rule, Track, advance, idle_gpus, idle_since

MINUTELY = Rule(below_pct=5, gap_s=120)


def tracked(*levels: float) -> Track | None:
    track = None
    for minute, level in enumerate(levels):
        track = advance(track, 60.0 * minute, level, MINUTELY)
    return track


def test_idle_counts_from_the_first_idle_sample() -> None:
    assert idle_since(tracked(90, 0, 0), 120.0, MINUTELY) == 60.0
    assert idle_since(tracked(0, 90), 60.0, MINUTELY) is None
    assert idle_since(None, 60.0, MINUTELY) is None


def test_silence_is_not_idleness() -> None:
    silent = tracked(0, 0)
    assert idle_since(silent, 180.0, MINUTELY) == 0.0
    assert idle_since(silent, 181.0, MINUTELY) is None
    assert advance(silent, 200.0, 0.0, MINUTELY) == Track(200.0, 200.0)
    assert advance(silent, 30.0, 99.0, MINUTELY) is silent


samples = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0.0, 4.9, 5.0, 100.0])), max_size=40)


@given(samples, st.integers(0, 600))
def test_a_track_says_what_all_samples_say(steps: list[tuple[int, float]], later: int) -> None:
    at, track, taken = 0.0, None, []
    for step, level in steps:
        at += step
        taken.append((at, level))
        track = advance(track, at, level)
    now, expected = at + later, None
    after = now
    for when, level in reversed(taken):
        if level >= RULE.below_pct or after - when > RULE.gap_s:
            break
        expected = after = when
    assert idle_since(track, now) == expected


def test_what_was_idle_before_the_job_held_it_does_not_count() -> None:
    tracks = {("n0", "0"): Track(1000.0, 0.0), ("n0", "1"): Track(1000.0, None)}
    found = idle_gpus(tracks, tracks, {}, held_since=400.0, after_s=600.0, now=1000.0)
    assert found == {("n0", "0"): 400.0}
    assert idle_gpus(tracks, tracks, {}, held_since=401.0, after_s=600.0, now=1000.0) == {}
    assert idle_gpus(tracks, tracks, {("n0", "0"): 7.0}, held_since=401.0, after_s=600.0, now=1000.0) == {
        ("n0", "0"): 7.0
    }
    assert idle_gpus(tracks, tracks, {("n0", "1"): 7.0}, held_since=0.0, after_s=0.0, now=1000.0) == {("n0", "0"): 0.0}
