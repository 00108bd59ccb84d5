"""Leases: who of several servers leads, fenced by an epoch that grows at every change of holder."""

from __future__ import annotations

from sqlalchemy import Connection, Row, insert, select, text, update

from penstock.base.errors import Conflict
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store.store import Store, Tx
from penstock.store.tables import leases


class Lease:
    """``holder`` names this process and start (unique); ``ttl_s`` is how long a lease outlives its last renewal.

    Time is the database server's own on PostgreSQL, so that servers need not agree; the store's clock on SQLite.
    A clock that is stepped can end a lease early, never give one epoch to two holders: ``check`` is what protects.
    """

    def __init__(self, store: Store, name: str, holder: str, ttl_s: float) -> None:
        self._store = store
        self.name = name
        self.holder = holder
        self.ttl_s = ttl_s
        self.epoch: int | None = None

    async def acquire(self, *, sole: bool = False) -> int | None:
        """The epoch if the lease was free, expired or already ours, else None.

        ``sole``: the caller holds the data folder's lock, so nobody else can be alive: take it from a dead holder now.
        """
        self.epoch = await self._store.write(lambda tx: self._acquire(tx, sole=sole))
        return self.epoch

    async def renew(self) -> bool:
        """Whether the lease is still ours; if so it runs for another ``ttl_s``."""
        kept = await self._store.write(self._renew)
        if not kept:
            self.epoch = None
        return kept

    async def release(self) -> None:
        """Let the next one have it at once."""
        epoch, self.epoch = self.epoch, None
        if epoch is not None:
            mine = (leases.c.name == self.name) & (leases.c.holder == self.holder) & (leases.c.epoch == epoch)
            await self._store.write(lambda tx: tx.conn.execute(update(leases).where(mine).values(expires_at=0.0)))

    def check(self, tx: Tx, epoch: int) -> None:
        """Raise Conflict, and so undo the transaction, unless ``epoch`` is still the one in force and ours."""
        row = _load(tx.conn, self.name)
        if row is None or row.epoch != epoch or row.holder != self.holder:
            by = f"{row.holder} (epoch {row.epoch})" if row else "nobody"
            raise Conflict(
                f"lease {self.name!r} of epoch {epoch} is over: it is held by {by}",
                hint="Another server leads now; this one takes over again if that one ends.",
            )

    def _acquire(self, tx: Tx, *, sole: bool) -> int | None:
        now = _now(tx)
        row = _load(tx.conn, self.name)
        values = {"holder": self.holder, "ttl_s": self.ttl_s, "expires_at": now + self.ttl_s}
        if row is not None and row.holder == self.holder and row.epoch == self.epoch:
            tx.conn.execute(update(leases).where(leases.c.name == self.name).values(**values))
            return int(row.epoch)
        if row is not None and not sole and _runs(row, now):
            return None
        epoch = 1 if row is None else int(row.epoch) + 1
        if row is None:
            tx.conn.execute(insert(leases).values(name=self.name, epoch=epoch, **values))
        else:
            tx.conn.execute(update(leases).where(leases.c.name == self.name).values(epoch=epoch, **values))
        message = f"{self.holder} leads, epoch {epoch}" + (f" (before: {row.holder})" if row else "")
        tx.emit(Ref("Lease", self.name), Reason.LeaseTaken, message, actor="system", data={"epoch": epoch})
        return epoch

    def _renew(self, tx: Tx) -> bool:
        mine = (leases.c.name == self.name) & (leases.c.holder == self.holder) & (leases.c.epoch == self.epoch)
        done = tx.conn.execute(update(leases).where(mine).values(expires_at=_now(tx) + self.ttl_s))
        return bool(done.rowcount == 1)


def _load(conn: Connection, name: str) -> Row[tuple[str, str, int, float, float]] | None:
    return conn.execute(select(leases).where(leases.c.name == name)).first()


def _runs(row: Row[tuple[str, str, int, float, float]], now: float) -> bool:
    """An expiry further away than the lease is long was written before the clock went back: it counts for nothing."""
    return bool(now < row.expires_at <= now + row.ttl_s)


def _now(tx: Tx) -> float:
    if tx.conn.dialect.name == "sqlite":
        return tx.now
    return float(tx.conn.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
