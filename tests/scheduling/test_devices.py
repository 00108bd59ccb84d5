"""GPU shares and MIG: only what the hardware can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling import devices

MODELS = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A30")


@pytest.mark.parametrize(
    ("model", "geometry", "valid"),
    [
        ("A100", ("1g.5gb",) * 7, True),
        ("A100", ("1g.5gb",) * 8, False),
        ("A100", ("1g.10gb",) * 4, True),
        ("A100", ("4g.20gb", "3g.20gb"), True),
        ("A100", ("3g.20gb", "4g.20gb"), True),
        ("A100", ("4g.20gb", "4g.20gb"), False),
        ("A100", ("3g.20gb", "3g.20gb", "1g.5gb"), False),  # seven slices would do; eight of memory are taken
        ("A100", ("2g.10gb",) * 3 + ("1g.5gb",), True),
        ("A100", ("2g.10gb",) * 4, False),
        ("A100-SXM4-80GB", ("1g.5gb",), False),
        ("NVIDIA A100-SXM4-80GB", ("3g.40gb", "2g.20gb", "1g.10gb"), True),
        ("NVIDIA H100 80GB HBM3", ("7g.80gb",), True),
        ("NVIDIA H100 80GB HBM3", ("7g.80gb", "1g.10gb"), False),
        ("NVIDIA H200", ("4g.71gb", "2g.35gb", "1g.18gb"), True),
        ("NVIDIA A30", ("2g.12gb", "1g.6gb", "1g.6gb"), True),
        ("NVIDIA A30", ("4g.24gb", "1g.6gb"), False),
        ("NVIDIA A30", ("1g.6gb",) * 4, True),
        ("Tesla T4", ("1g.5gb",), False),
        ("Tesla T4", (), True),
    ],
)
def test_geometries_are_those_of_the_hardware(model: str, geometry: tuple[str, ...], valid: bool) -> None:
    assert devices.is_valid(model, geometry) is valid


@given(st.sampled_from(MODELS), st.data())
def test_slices_never_exceed_the_device_and_parts_of_a_geometry_are_one(model: str, data: st.DataObject) -> None:
    geometry = data.draw(st.sampled_from(sorted(devices.geometries(model))))
    of = {profile.name: profile for profile in devices.profiles(model)}
    whole = devices.profiles(model)[0]
    assert sum(of[name].compute for name in geometry) <= whole.compute
    assert sum(of[name].size for name in geometry) <= whole.size
    assert all(devices.compute_slices(name) == of[name].compute for name in geometry)
    for at in range(len(geometry)):
        assert devices.is_valid(model, geometry[:at] + geometry[at + 1 :])


@given(st.sampled_from(MODELS), st.data())
def test_an_instance_is_placed_on_its_own_profile_and_a_gpu_is_cut_anew_only_when_idle(
    model: str, data: st.DataObject
) -> None:
    cuts = sorted(devices.geometries(model))
    geometry, wanted = data.draw(st.sampled_from(cuts)), data.draw(st.sampled_from(cuts))
    used = data.draw(st.sets(st.integers(0, max(len(geometry) - 1, 0)))) if geometry else set()
    for profile in devices.profiles(model):
        free = devices.free_instances(profile.name, geometry, used)
        assert devices.can_place(profile.name, geometry, used) is bool(free)
        assert all(geometry[at] == profile.name and at not in used for at in free)
    cut = devices.recut(model, geometry, used, wanted)
    if used and sorted(wanted) != sorted(geometry):
        assert cut is None
    else:
        assert cut is not None
        assert sorted(cut) == sorted(wanted)


def test_slices_of_two_gpus_never_add_up() -> None:
    halves = ("3g.20gb", "3g.20gb")
    assert not devices.can_place("7g.40gb", halves, ())
    assert devices.pick_share_gpu([400, 400], 500) is None


@given(st.lists(st.integers(0, 1000), max_size=8), st.integers(1, 999))
def test_a_share_goes_on_the_fullest_gpu_that_holds_it(free: list[int], milli: int) -> None:
    at = devices.pick_share_gpu(free, milli)
    holding = [left for left in free if left >= milli]
    if at is None:
        assert not holding
    else:
        assert free[at] == min(holding)
        assert at == free.index(free[at])
