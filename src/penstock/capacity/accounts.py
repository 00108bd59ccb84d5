"""Whose quota was used, by whom, and whose lay idle: GPU-seconds by queue, kept up to date in constant time a change.

Of what a cohort's queues borrow at an instant, each lender is booked a share in proportion to what it leaves idle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.scheduling.spec import Setup


@dataclass(slots=True)
class Account:
    """GPU-seconds so far. ``idle`` is quota that its own queue did not use, ``lent`` the part of it that others did."""

    nominal: float | None = None
    now_used: float = 0
    waiting: int = 0  # jobs in line now
    since: float = 0.0
    lent_since: float = 0.0  # the pot's integral then
    used: float = 0.0
    borrowed: float = 0.0
    idle: float = 0.0
    lent: float = 0.0
    pot: Pot | None = None

    def gap(self) -> tuple[float, float]:
        """What it borrows and what it leaves idle at this moment."""
        if self.nominal is None:
            return 0.0, 0.0
        over = self.now_used - self.nominal
        return (over, 0.0) if over > 0 else (0.0, -over)


@dataclass(slots=True)
class Pot:
    """A tree of cohorts: how much is borrowed and idle in it now, and the integral of their ratio (at most 1)."""

    borrowed: float = 0.0
    idle: float = 0.0
    since: float = 0.0
    lent_share: float = 0.0

    def settle(self, now: float) -> None:
        if self.idle > 0 and self.borrowed > 0:
            self.lent_share += (now - self.since) * min(1.0, self.borrowed / self.idle)
        self.since = now


@dataclass(slots=True)
class Accounts:
    setup: Setup
    by_queue: dict[str, Account] = field(default_factory=dict)
    _pots: dict[str, Pot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.setup.queues:
            if self.setup.queues[name].limited:
                self._open(name)

    def _open(self, name: str) -> Account:
        account = self.by_queue[name] = Account()
        queue = self.setup.queues.get(name)
        if queue is None or not queue.limited:
            return account
        gpus = [quota.nominal for flavor in queue.quotas.values() for r, quota in flavor.items() if r == "gpus"]
        account.nominal = sum(gpus) if gpus else None
        if queue.cohort is not None and account.nominal is not None:
            account.pot = self._pots.setdefault(self._root(queue.cohort), Pot())
            account.pot.idle += account.nominal
        return account

    def _root(self, name: str) -> str:
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            cohort = self.setup.cohorts.get(name)
            if cohort is None or cohort.parent is None:
                break
            name = cohort.parent
        return name

    def change(self, queue: str, gpus: float, now: float) -> None:
        """``gpus`` more (or fewer) of them are in use by this queue from ``now`` on."""
        account = self.by_queue.get(queue) or self._open(queue)
        self._settle(account, now)
        if account.pot is None:
            account.now_used += gpus
            return
        borrowed, idle = account.gap()
        account.now_used += gpus
        after = account.gap()
        account.pot.borrowed += after[0] - borrowed
        account.pot.idle += after[1] - idle

    def wait(self, queue: str) -> None:
        """One more of this queue's jobs is in line."""
        account = self.by_queue.get(queue) or self._open(queue)
        account.waiting += 1

    def start(self, queue: str, gpus: float, now: float) -> None:
        """One of them is not any more: it runs."""
        self.by_queue[queue].waiting -= 1
        self.change(queue, gpus, now)

    @staticmethod
    def _settle(account: Account, now: float) -> None:
        lasted = now - account.since
        account.since = now
        account.used += account.now_used * lasted
        if account.nominal is None:
            return
        borrowed, idle = account.gap()
        account.borrowed += borrowed * lasted
        account.idle += idle * lasted
        if account.pot is not None:
            account.pot.settle(now)
            account.lent += idle * (account.pot.lent_share - account.lent_since)
            account.lent_since = account.pot.lent_share

    def close(self, now: float) -> None:
        for account in self.by_queue.values():
            self._settle(account, now)
