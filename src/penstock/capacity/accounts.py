"""Whose quota was used, by whom, and whose lay idle: GPU-seconds by queue, kept up to date in constant time a change.

Of what a cohort's queues borrow at an instant beyond the cohorts' own quota, each lender is booked a share in proportion to
what it could lend, as `penstock queues` shows it (scheduling/lending.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.scheduling import lending
from penstock.scheduling.spec import Quota, Quotas, Setup


@dataclass(slots=True)
class Account:
    """GPU-seconds so far. ``idle`` is quota that its own queue did not use, ``lent`` the part of it that others did."""

    nominal: float | None = None
    limit: float | None = None  # the most it lends
    now_used: float = 0
    waiting: int = 0  # jobs in line now
    since: float = 0.0
    lent_since: float = 0.0  # the pot's integral then
    used: float = 0.0
    borrowed: float = 0.0
    idle: float = 0.0
    lent: float = 0.0
    pot: Pot | None = None

    def stake(self) -> lending.Stake:
        """What it has and uses at this moment; without a quota it neither borrows nor lends."""
        return lending.Stake(self.now_used if self.nominal is None else self.nominal, self.now_used, self.limit)


@dataclass(slots=True)
class Pot:
    """A tree of cohorts: how much is borrowed and could be lent in it now, and the integral of the part that is lent."""

    common: float = 0.0  # the cohorts' own
    borrowed: float = 0.0
    lendable: float = 0.0
    since: float = 0.0
    lent_share: float = 0.0

    def settle(self, now: float) -> None:
        if self.borrowed > 0:
            self.lent_share += (now - self.since) * lending.ratio(self.borrowed, self.common, self.lendable)
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
        gpus = _gpus(queue.quotas)
        if not gpus:
            return account
        account.nominal = sum(quota.nominal for quota in gpus)
        if any(quota.lending_limit is not None for quota in gpus):
            account.limit = sum(q.nominal if q.lending_limit is None else q.lending_limit for q in gpus)
        if queue.cohort is not None:
            account.pot = self._pot(queue.cohort)
            account.pot.lendable += account.stake().lendable
        return account

    def _pot(self, cohort: str) -> Pot:
        root = self._root(cohort)
        if root not in self._pots:
            own = (
                quota
                for one in self.setup.cohorts.values()
                if self._root(one.name) == root
                for quota in _gpus(one.quotas)
            )
            self._pots[root] = Pot(sum(quota.nominal for quota in own))
        return self._pots[root]

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
        before = account.stake()
        account.now_used += gpus
        after = account.stake()
        account.pot.borrowed += after.borrowed - before.borrowed
        account.pot.lendable += after.lendable - before.lendable

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
        stake = account.stake()
        account.borrowed += stake.borrowed * lasted
        account.idle += max(0.0, account.nominal - account.now_used) * lasted
        if account.pot is not None:
            account.pot.settle(now)
            account.lent += stake.lendable * (account.pot.lent_share - account.lent_since)
            account.lent_since = account.pot.lent_share

    def close(self, now: float) -> None:
        for account in self.by_queue.values():
            self._settle(account, now)


def _gpus(quotas: Quotas) -> list[Quota]:
    return [quota for by in quotas.values() for resource, quota in by.items() if resource == "gpus"]
