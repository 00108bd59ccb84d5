"""Budgets of projects, a calendar month (UTC) each: kept, watched, and where asked a refusal of new work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.engine import Row

from penstock.base.errors import InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.cost import queries
from penstock.cost.focus import month_of
from penstock.cost.plan import NANOS, price
from penstock.cost.queries import Window
from penstock.cost.spec import Prices
from penstock.cost.tables import budgets
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts

FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Budget:
    """``amount`` in the price file's currency; ``thresholds`` in percent; ``contact``: whom to ask."""

    project: str
    amount: Decimal
    thresholds: tuple[int, ...] = (80, 100)
    refuse: bool = False
    contact: str = ""


def parse(project: str, amount: str, thresholds: Sequence[int], *, refuse: bool, contact: str) -> Budget:
    """Raises InvalidInput."""
    problems = []
    try:
        value = Decimal(amount)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not 0 < value <= 10**12:
        problems.append(Problem("amount", "must be a number above 0, in the price file's currency"))
    if not thresholds or any(not 0 < each <= 1000 for each in thresholds):
        problems.append(Problem("thresholds", "must be percentages from 1 to 1000"))
    if problems:
        raise InvalidInput("the budget cannot be set", details=problems)
    return Budget(project, value, tuple(sorted(set(thresholds))), refuse, contact)


def put(tx: Tx, budget: Budget, *, actor: str) -> None:
    """Raises NotFound for a project that there is not."""
    accounts.require_project(tx.conn, budget.project)
    tx.conn.execute(budgets.delete().where(budgets.c.project == budget.project))
    tx.conn.execute(
        budgets.insert().values(
            project=budget.project,
            amount=str(budget.amount),
            thresholds=json.dumps(budget.thresholds),
            refuse=budget.refuse,
            contact=budget.contact,
            told="",
        )
    )
    tx.emit(_ref(budget.project), Reason.BudgetSet, f"{budget.amount} a month", actor=actor)


def delete(tx: Tx, project: str, *, actor: str) -> None:
    """Raises NotFound."""
    if tx.conn.execute(budgets.delete().where(budgets.c.project == project)).rowcount == 0:
        raise NotFound(f"project {project!r} has no budget")
    tx.emit(_ref(project), Reason.BudgetDeleted, "", actor=actor)


def listed(conn: Connection) -> list[Budget]:
    return [_budget(row) for row in conn.execute(select(budgets).order_by(budgets.c.project))]


def spent(conn: Connection, project: str, prices: Prices, now: float) -> Decimal:
    """What the project's jobs have used this month, at the price file's prices on demand."""
    window = Window(month_of(now)[0], now)
    return Decimal(price(queries.usages(conn, "project", window, projects={project}), prices).nanos) / NANOS


@dataclass(slots=True)
class Purse:
    """What projects have spent, ``FRESH_S`` old at most: a burst of submissions costs one sum, not one each."""

    prices: Prices
    _known: dict[str, tuple[float, Decimal]] = field(default_factory=dict)

    def refusal(self, conn: Connection, project: str, now: float) -> str | None:
        """As the function below."""
        return refusal(conn, project, self.prices, now, self._spent)

    def _spent(self, conn: Connection, project: str, prices: Prices, now: float) -> Decimal:
        at, amount = self._known.get(project, (float("-inf"), Decimal(0)))
        if not 0 <= now - at < FRESH_S or month_of(at) != month_of(now):
            amount = spent(conn, project, prices, now)
            self._known[project] = (now, amount)
        return amount


def refusal(
    conn: Connection,
    project: str,
    prices: Prices,
    now: float,
    spent_by: Callable[[Connection, str, Prices, float], Decimal] = spent,
) -> str | None:
    """Why a project may submit nothing more this month; None where it may."""
    row = conn.execute(select(budgets).where(budgets.c.project == project, budgets.c.refuse)).first()
    if row is None:
        return None
    budget, used = _budget(row), spent_by(conn, project, prices, now)
    if used < budget.amount:
        return None
    whom = budget.contact or "an administrator"
    return f"{used:.2f} of {budget.amount} {prices.currency} are spent this month: ask {whom} for more"


@dataclass(frozen=True, slots=True)
class Reached:
    """A threshold, in percent, that a project's spending has passed and that nobody was told of yet."""

    project: str
    threshold: int
    used: Decimal
    amount: Decimal


def reached(conn: Connection, prices: Prices, now: float) -> list[Reached]:
    """Thresholds that were passed since they were last announced, once a month each."""
    month, found = _month(now), []
    for row in conn.execute(select(budgets)).all():
        budget, used = _budget(row), spent(conn, row.project, prices, now)
        passed = max((each for each in budget.thresholds if used / budget.amount * 100 >= each), default=0)
        if passed > (int(row.told.split()[1]) if row.told.startswith(month) else 0):
            found.append(Reached(row.project, passed, used, budget.amount))
    return found


async def look(store: Store, prices: Prices) -> None:
    """Sums are made beside the writer, which is asked only where there is something to tell."""
    if await store.read_long(lambda conn: reached(conn, prices, store.clock())):
        await store.write(lambda tx: watch(tx, prices))


def _month(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def watch(tx: Tx, prices: Prices) -> None:
    """Announce what was reached."""
    for each in reached(tx.conn, prices, tx.now):
        share = each.used / each.amount * 100
        told = f"{_month(tx.now)} {each.threshold}"
        tx.conn.execute(budgets.update().where(budgets.c.project == each.project).values(told=told))
        reason = Reason.BudgetExceeded if share >= 100 else Reason.BudgetWarning
        message = f"{each.used:.2f} of {each.amount} {prices.currency} are spent ({share:.0f}%)"
        tx.emit(_ref(each.project), reason, message, actor="system", data={"threshold": each.threshold})


def to_json(budget: Budget, used: Decimal, currency: str) -> dict[str, Any]:
    """``reached``: the highest threshold that is passed, in percent; ``refusing``: new work is refused now."""
    share = used / budget.amount * 100
    return {
        "project": budget.project,
        "amount": str(budget.amount),
        "spent": f"{used:.2f}",
        "thresholds": list(budget.thresholds),
        "refuse": budget.refuse,
        "contact": budget.contact,
        "currency": currency,
        "share": round(float(share), 2),
        "reached": max((each for each in budget.thresholds if share >= each), default=None),
        "refusing": budget.refuse and used >= budget.amount,
    }


def _budget(row: Row[Any]) -> Budget:
    thresholds = tuple(json.loads(row.thresholds))
    return Budget(row.project, Decimal(row.amount), thresholds, bool(row.refuse), row.contact)


def _ref(project: str) -> Ref:
    return Ref("Project", project, project, project)
