"""Policies of a replay, each as its own documentation says it: Penstock's planner, Knative's KPA, Kubernetes' HPA, none.

All are asked each second and look as often as they do in the field. All get the same target, the concurrency at which one
replica just holds the objective by the service curve; KPA and HPA take 70% of it, Knative's default, so that they too have
room above what they aim at.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from penstock.serving.autoscaling import TUNING, Memory, Seen, Tuning, plan, working_point
from penstock.serving.profile import Curve
from penstock.serving.spec import Autoscaling

SHARE = 0.7  # Knative's container-concurrency-target-percentage


class Policy(Protocol):
    name: str

    def wanted(self, seen: Seen, now: float) -> int: ...


class Fixed:
    def __init__(self, replicas: int) -> None:
        self.name = f"fixed={replicas}"
        self._replicas = replicas

    def wanted(self, seen: Seen, now: float) -> int:
        return self._replicas


class Penstock:
    """The planner that runs live, with its memory."""

    def __init__(self, config: Autoscaling, curve: Curve, tuning: Tuning = TUNING) -> None:
        self.name = "penstock"
        self._config, self._curve, self._tuning = config, curve, tuning
        self._memory = Memory()

    def wanted(self, seen: Seen, now: float) -> int:
        decision, self._memory = plan(self._config, self._curve, seen, self._memory, now, self._tuning)
        return decision.replicas


class _Window:
    """Means over the last ``seconds``, of one value a second."""

    def __init__(self, seconds: int) -> None:
        self._values: deque[float] = deque(maxlen=seconds)

    def add(self, value: float) -> float:
        self._values.append(value)
        return sum(self._values) / len(self._values)


class Kpa:
    """Knative's pod autoscaler: concurrency over 60 s and over 6 s, looked at every 2 s. When the short one asks for twice
    what is ready it panics: it takes the larger, and goes down no more until 60 s have passed without such a look.
    """

    def __init__(self, config: Autoscaling, curve: Curve) -> None:
        self.name = "kpa"
        self._low, self._high = config.min, config.max
        self._target = SHARE * working_point(config, curve).concurrency
        self._stable, self._short = _Window(60), _Window(6)
        self._panic: float | None = None
        self._most = 0
        self._wanted: int | None = None

    def wanted(self, seen: Seen, now: float) -> int:
        stable, short = self._stable.add(seen.active), self._short.add(seen.active)
        if self._wanted is not None and round(now) % 2:
            return self._wanted
        ready = max(1, seen.ready)
        steady, panic = math.ceil(stable / self._target), math.ceil(short / self._target)
        steady = max(steady, ready // 2)  # max-scale-down-rate 2; max-scale-up-rate 1000 never binds here
        if panic / ready >= 2:
            self._panic = now
        elif self._panic is not None and now - self._panic > 60:
            self._panic, self._most = None, 0
        if self._panic is not None:
            self._most = max(self._most, steady, panic)
            steady = self._most
        self._wanted = max(self._low, min(self._high, steady))
        return self._wanted


class Hpa:
    """Kubernetes' HPA on the mean concurrency of replicas: every 15 s, the ratio of what is to what shall be, nothing within
    10% of it; up by 4 replicas or by 100% in 15 s, whichever is more; down to the most that it wanted in 5 minutes.
    """

    def __init__(self, config: Autoscaling, curve: Curve) -> None:
        self.name = "hpa"
        self._low, self._high = max(1, config.min), config.max
        self._target = SHARE * working_point(config, curve).concurrency
        self._mean = _Window(15)
        self._asked: deque[tuple[float, int]] = deque()

    def wanted(self, seen: Seen, now: float) -> int:
        active, current = self._mean.add(seen.active), max(1, seen.replicas)
        if round(now) % 15:
            return current
        ratio = active / (self._target * current)
        asked = current if abs(ratio - 1) <= 0.1 else math.ceil(active / self._target)
        asked = max(self._low, min(self._high, asked))
        self._asked.append((now, asked))
        while self._asked[0][0] <= now - 300:
            self._asked.popleft()
        if asked > current:
            return min(asked, max(current + 4, current * 2))
        return min(current, max(one for _, one in self._asked))


def policy_of(words: str, config: Autoscaling, curve: Curve, tuning: Tuning = TUNING) -> Policy:
    """``penstock``, ``kpa``, ``hpa`` or ``fixed=N``. Raises ValueError."""
    name, _, number = words.partition("=")
    if name == "fixed":
        if not number.isdecimal() or int(number) > config.max:
            raise ValueError(f"{words!r}: write fixed=N with N of at most --max {config.max}")
        return Fixed(int(number))
    if number or name not in ("penstock", "kpa", "hpa"):
        raise ValueError(f"{words!r} is none of penstock, kpa, hpa, fixed=N")
    if name == "penstock":
        return Penstock(config, curve, tuning)
    return Kpa(config, curve) if name == "kpa" else Hpa(config, curve)
