"""What a trial is: which faults, how strong, where and when. Pure; drawn from a seed, so that a corpus can be made again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.diagnosis.injecting.catalogue import FAULTS
from penstock.diagnosis.injecting.spec import Fault

STEPS = 56
TUNING, HELD_OUT = 1_000_000, 2_000_000  # first seeds: rules are set by the one range, and judged by the other
# The classes of the corpus, by fault. Those that start with the job are in `FROM_START`.
CLASSES: tuple[str, ...] = (
    "slow-loader", "slow-loaders", "slow-compute", "imbalance", "garbage", "leak", "bit-flip", "desync", "poisoned-batch",
    "float64", "hang", "cpu-contention", "cpu-quota", "freeze", "bandwidth", "packet-loss", "slow-writes",
    "slow-reads", "memory-limit", "slow-pair",
)  # fmt: skip
# More that the runner knows: asked for by --classes.
FURTHER = (
    "anomaly",
    "illegal-access",
    "infinite-gradient",
    "held-lock",
    "wrong-collective",
    "descriptors",
    "node-down",
    "latency",
    "congestion",
)
LAUNCHED = frozenset({"float64"})  # the training is started so: its parameters are in double precision
FROM_START = frozenset({"float64", "anomaly", "desync", "slow-writes"})
# Two at once: a second cause that leaves the first one's signals as they are.
SECOND = ("slow-loader", "packet-loss", "garbage", "imbalance", "cpu-quota", "leak", "slow-compute", "slow-writes")
TWO_SHARE = 0.1
# A cap on what is read binds no more once each step takes longer: such a pair is one fault.
_HIDDEN = {"slow-reads": frozenset({"slow-loader", "garbage", "imbalance", "cpu-quota", "slow-compute", "slow-writes"})}
_NOT_WITH_ANOTHER = frozenset({"slow-pair", "hang", "wrong-collective", "held-lock", "slow-loaders"})


@dataclass(frozen=True, slots=True)
class Injection:
    fault: Fault
    strength: float
    ranks: tuple[int, ...]
    at_step: int


@dataclass(frozen=True, slots=True)
class Trial:
    number: int
    seed: int
    world: int
    steps: int
    injections: tuple[Injection, ...]


def draw(number: int, seed: int, name: str | None) -> Trial:
    """``name``: the class; None: a healthy run."""
    chance = random.Random(seed)
    world = chance.choice((2, 2, 2, 3, 3, 4))
    if name is None:
        return Trial(number, seed, world, STEPS, ())
    if name == "slow-pair":
        world = max(3, world)
    first = _one(chance, name, world)
    found = [first]
    if chance.random() < TWO_SHARE and not first.fault.ends_job and name not in _NOT_WITH_ANOTHER:
        hidden = _HIDDEN.get(name, frozenset())
        others = [one for one in SECOND if FAULTS[one].cause != first.fault.cause and one not in hidden]
        found.append(_one(chance, chance.choice(others), world))
    return Trial(number, seed, world, STEPS, tuple(found))


def _one(chance: random.Random, name: str, world: int) -> Injection:
    fault = FAULTS[name]
    strength = round(chance.uniform(fault.strength.low, fault.strength.high), 4)
    at = 0 if name in FROM_START else chance.randint(16, 22)
    rank = 0 if name == "slow-writes" else chance.randrange(world)  # rank 0 saves
    ranks = (rank, (rank + 1) % world) if name == "slow-pair" else (rank,)
    return Injection(fault, strength, ranks, at)


def plan(first_seed: int, each: int, healthy: int, classes: Sequence[str] = CLASSES) -> list[Trial]:
    """``each`` trials of every class and the healthy runs, in an order that is drawn too: the machine's moods strike all alike."""
    names: list[str | None] = [name for name in classes for _ in range(each)] + [None] * healthy
    random.Random(first_seed).shuffle(names)
    return [draw(number, first_seed + number, name) for number, name in enumerate(names)]
