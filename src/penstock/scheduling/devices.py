"""Parts of one GPU: shares in thousandths, and MIG instances.

A GPU may be cut into MIG instances only as the hardware lays them out: each profile takes so many of the device's
memory slices, from certain slices on, and two instances never overlap. The tables are those of NVIDIA's MIG user guide
("Supported MIG Profiles", A30, A100, H100, H200; what ``nvidia-smi mig -lgipp`` lists). Instances of several GPUs
never add up to a larger one, and a GPU is cut anew only while nothing runs on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from penstock.scheduling.models import any_means

WHOLE = 1000  # thousandths of a GPU


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of MIG instance: ``compute`` slices of the multiprocessors, ``size`` slices of the memory."""

    name: str
    compute: int
    size: int
    starts: tuple[int, ...]


def _eighths(unit: int, double: int, half: int, whole: int) -> tuple[Profile, ...]:
    """The layout that A100, H100 and H200 share: seven compute slices over eight of memory, in GB as NVIDIA rounds."""
    return (
        Profile(f"7g.{whole}gb", 7, 8, (0,)),
        Profile(f"4g.{half}gb", 4, 4, (0,)),
        Profile(f"3g.{half}gb", 3, 4, (0, 4)),
        Profile(f"2g.{double}gb", 2, 2, (0, 2, 4)),
        Profile(f"1g.{double}gb", 1, 2, (0, 2, 4, 6)),
        Profile(f"1g.{unit}gb", 1, 1, (0, 1, 2, 3, 4, 5, 6)),
    )


_A30 = (
    Profile("4g.24gb", 4, 4, (0,)),
    Profile("2g.12gb", 2, 2, (0, 2)),
    Profile("1g.6gb", 1, 1, (0, 1, 2, 3)),
)
# Words that must all be in the model's name, the most telling first.
_LAYOUTS: tuple[tuple[tuple[str, ...], tuple[Profile, ...]], ...] = (
    (("A100", "80GB"), _eighths(10, 20, 40, 80)),
    (("A100",), _eighths(5, 10, 20, 40)),
    (("H100",), _eighths(10, 20, 40, 80)),
    (("H200",), _eighths(18, 35, 71, 141)),
    (("A30",), _A30),
)


def profiles(model: str) -> tuple[Profile, ...]:
    """The MIG profiles of a GPU model as NVML names it (``NVIDIA A100-SXM4-80GB``), the largest first; none: no MIG."""
    words = model.upper().replace("-", " ").split()
    for wanted, found in _LAYOUTS:
        if all(word in words for word in wanted):
            return found
    return ()


@cache
def geometries(model: str) -> frozenset[tuple[str, ...]]:
    """Every way to cut one such GPU, the empty one included; names of the largest profiles first."""
    kinds = profiles(model)
    found: set[tuple[str, ...]] = set()

    def extend(names: tuple[str, ...], taken: int, first: int) -> None:
        found.add(names)
        for at in range(first, len(kinds)):
            kind = kinds[at]
            for start in kind.starts:
                place = (1 << kind.size) - 1 << start
                if not taken & place:
                    extend((*names, kind.name), taken | place, at)

    extend((), 0, 0)
    return frozenset(found)


def is_valid(model: str, geometry: Sequence[str]) -> bool:
    """Whether one GPU of this model can be cut so, in whatever order the instances are named."""
    order = {kind.name: at for at, kind in enumerate(profiles(model))}
    if any(name not in order for name in geometry):
        return False
    return tuple(sorted(geometry, key=order.__getitem__)) in geometries(model)


def compute_slices(profile: str) -> int:
    """Of the device's compute slices, how many an instance has: what its cost is counted by."""
    return int(profile.partition("g.")[0].rpartition("c.")[2])  # 1c.3g.40gb: one of three, which it is given whole


def free_instances(profile: str, geometry: Sequence[str], used: Collection[int]) -> list[int]:
    """Positions in one GPU's geometry of the instances of exactly this profile that nobody uses."""
    return [at for at, name in enumerate(geometry) if name == profile and at not in used]


def can_place(profile: str, geometry: Sequence[str], used: Collection[int]) -> bool:
    """Whether one GPU so cut has such an instance free. A larger instance is not taken for a smaller one."""
    return bool(free_instances(profile, geometry, used))


def recut(model: str, geometry: Sequence[str], used: Collection[int], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """The geometry after cutting one GPU as wanted; None where instances are in use or the hardware cannot do it."""
    if tuple(sorted(geometry)) == tuple(sorted(wanted)):
        return tuple(geometry)
    return tuple(wanted) if not used and is_valid(model, wanted) else None


def share_gpus(
    free: Sequence[int], milli: int, models: Sequence[str] = (), allowed: tuple[str, ...] = ()
) -> list[tuple[int, int]]:
    """(thousandths free, position) of the GPUs that hold such a share, the fullest first."""
    return sorted(
        (left, at) for at, left in enumerate(free) if left >= milli and (not allowed or any_means(allowed, models[at]))
    )


def pick_share_gpu(free: Sequence[int], milli: int) -> int | None:
    """The fullest GPU that still holds such a share, the first among equals. Thousandths never add up across GPUs."""
    found = share_gpus(free, milli)
    return found[0][1] if found else None


def part(model: str, milli: int = 0, mig: str = "") -> float:
    """How much of a GPU a share or an instance is, in cost and quota: its thousandths, or its compute slices of the device's.

    Memory decides how many instances fit; compute slices never add up to more than the device, so neither does the cost.
    """
    if milli:
        return milli / WHOLE
    if mig:
        return compute_slices(mig) / max((profile.compute for profile in profiles(model)), default=7)
    return 1.0
