"""Composition root, second half: builds every room of the server and runs it. The one place that makes real I/O."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import uvloop

from penstock.api import routes as api_routes
from penstock.api import serve as http
from penstock.api import snapshots as api_snapshots
from penstock.api.asgi import App, build
from penstock.api.gate import Gate
from penstock.base.errors import InvalidInput, PenstockError, Problem
from penstock.base.quantities import parse_time
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.base.routes import Endpoint, Sample
from penstock.base.settings import Settings
from penstock.base.version import VERSION
from penstock.console import asgi as console
from penstock.cost import budgets, capacity, idle, ledger, prices
from penstock.cost import routes as cost_routes
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.engines.local.engine import LocalConfig, LocalEngine
from penstock.engines.local.spawner import Spawner
from penstock.engines.several import Engines
from penstock.fleet import inventory
from penstock.fleet import routes as fleet_routes
from penstock.fleet.attached import Attached
from penstock.folder import SERVER_FILE, close_to_others, hold, prepare, write_server_file
from penstock.health import routes as health_routes
from penstock.health.room import Health
from penstock.jobs import gpus, lines, queries, running
from penstock.jobs import routes as job_routes
from penstock.jobs.launch import Site
from penstock.jobs.orphans import orphans
from penstock.jobs.reconcile import JobReconciler
from penstock.jobs.room import Room
from penstock.jobs.state import Phase
from penstock.jobs.view import Memory
from penstock.reconcile.clock import SystemClock
from penstock.reconcile.leadership import Leadership
from penstock.reconcile.loop import Loop
from penstock.scheduling import outlook as start_outlook
from penstock.scheduling import reservation_routes
from penstock.scheduling import routes as queue_routes
from penstock.serving.place import Place
from penstock.serving.room import Serving
from penstock.store import backup
from penstock.store.leases import Lease
from penstock.store.store import Store, Tx
from penstock.telemetry.room import Telemetry
from penstock.tenancy import accounts, snapshots
from penstock.tenancy import routes as tenancy_routes
from penstock.tenancy.access import Access
from penstock.tenancy.bootstrap import bootstrap, reset_token
from penstock.tenancy.plan import decide
from penstock.training import kept
from penstock.training import routes as training_routes
from penstock.training.room import Training
from penstock.training.watching import TrainingWatch

log = logging.getLogger("penstock")
FALLBACK_USER = "nobody"  # of a root server's jobs, where neither --job-user nor a mapping names another
SYNC_NODES_S = 15.0
SEE_OUTSIDE_S = 60.0
Priced = tuple[Prices, Terms]  # the price file
HEADS_SHOWN = 5  # of each queue, with why they wait
if TYPE_CHECKING:
    from penstock import later
    from penstock.engines.simulated.engine import SimulatedEngine
    from penstock.simulation import Simulation

    AnEngine = LocalEngine | SimulatedEngine


def main(settings: Settings, spawner: Spawner, environ: Mapping[str, str]) -> int:
    """Run until SIGTERM or SIGINT; ``environ`` is what jobs may be shown a little of. Raises PenstockError for what keeps it from starting; jobs outlive it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # an agent a node keeps its connection
    os.umask(0o077)  # root's data folder can be passed by others: what lies in it is nobody else's to read
    gc.freeze()  # what was imported stays: collections need not look at it again
    gc.enable()
    as_root = os.geteuid() == 0 and settings.simulate is None  # what never really runs needs no other user
    http.check_exposure(settings)
    priced = prices.load_both(settings.prices)  # what is wrong with it is told before anything is made
    if settings.health_policy is not None:
        from penstock.health import shipped  # noqa: PLC0415 - likewise; the shipped one is read when something is wrong

        shipped.load(settings.health_policy)
    prepare(settings, as_root=as_root)
    lock = hold(settings.data_dir)
    try:
        listening = http.bind(settings.host, settings.port)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(settings, spawner, listening, environ, priced, as_root=as_root))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(settings.data_dir, SERVER_FILE))
        lock.close()


def default_environment() -> dict[str, str]:
    """What jobs that name no environment run in: the server's own, so that ``python`` is the one Penstock runs on."""
    return {"venv": sys.prefix} if sys.prefix != sys.base_prefix else {}


def job_user(settings: Settings, *, as_root: bool) -> str | None:
    """The Unix user of jobs whose submitter is mapped to none. Raises InvalidInput for one that cannot be."""
    if not as_root:
        return None
    name = settings.job_user or FALLBACK_USER
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise InvalidInput(
            f"there is no Unix user {name!r} to run jobs as", details=[Problem("--job-user", name)]
        ) from error
    if entry.pw_uid == 0:
        raise InvalidInput("jobs never run as root", details=[Problem("--job-user", name)])
    return name


def own_user() -> str | None:
    """Whose jobs those of a server are that was not started by root; None where nobody knows the name."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return None


def simulated(settings: Settings, clock: Callable[[], float]) -> Simulation | None:
    """The made-up fleet, where one was asked for."""
    if settings.simulate is None:
        return None
    from penstock.simulation import Simulation  # noqa: PLC0415 - a fleet of this machine does without

    return Simulation(settings, settings.simulate, clock)


class Later:
    """Rooms that are loaded when they are first asked for, in the event loop: once, for some 40 ms."""

    def __init__(
        self, settings: Settings, store: Store, rates: Prices, terms: Terms, attached: Attached, user: str | None
    ) -> None:
        self._needs = settings, store, rates, terms, attached, user
        self._rooms: later.Rooms | None = None
        self.closing: list[Callable[[], Awaitable[None]]] = []  # of what is closed with them
        self.serving: Serving | None = None
        self.telemetry = Telemetry(store)
        self.health: Health | None = None
        self._silent: dict[str, str] = {}

    def endpoints(self) -> Sequence[Endpoint]:
        from penstock import later  # noqa: PLC0415 - the server is ready without them

        self._rooms = self._rooms or later.rooms(*self._needs, later.Early(self.telemetry, self.serving, self.health))
        return self._rooms.endpoints

    async def look_outside(self, fence: Callable[[Tx], object]) -> None:
        """Where no engine was added there is nothing outside, and nothing is loaded."""
        _, store, _, _, attached, _ = self._needs
        if attached.engines.added:
            from penstock import later  # noqa: PLC0415 - as above

            await later.look_outside(store, attached, fence, self._silent)

    async def close(self) -> None:
        for close in self.closing:
            await close()
        if self._rooms is not None:
            await self._rooms.close()


@dataclass(slots=True)
class House:
    """Every room, wired."""

    settings: Settings
    store: Store
    attached: Attached
    loop: Loop
    reconciler: JobReconciler
    room: Room
    leadership: Leadership
    access: Access
    app: App
    prices: Prices
    gpus: gpus.GpuWatch
    later: Later
    simulation: Simulation | None


def build_house(
    settings: Settings, store: Store, engine: AnEngine, simulation: Simulation | None, priced: Priced, *, as_root: bool
) -> House:
    """Wire the rooms; nothing runs yet."""
    clock = SystemClock()
    ledger.attach(store)
    capacity.attach(store)
    idle.attach(store)
    loop = Loop()
    engines = Engines(engine)
    sole = store.is_sqlite
    lease = Lease(store, "reconcile", f"{socket.gethostname()}:{os.getpid()}:{clock.now():.3f}", 4.0)
    jobs_dir = os.path.join(settings.data_dir, "jobs")
    leadership = Leadership(lease, _nothing, _nothing, sole)
    reconciler = JobReconciler(
        store,
        engines,
        loop,
        leadership.fence,
        jobs_dir,
        Site(
            os.path.join(settings.data_dir, "snapshots"),
            settings.log_first_bytes,
            settings.log_newest_bytes,
            default_environment(),
        ),
        speed=settings.simulate_speed,
    )
    leadership.lead, leadership.follow = reconciler.start, reconciler.pause
    room = Room(
        store,
        engines,
        reconciler.progress,
        snapshots.holds,
        accounts.require_project,
        job_user(settings, as_root=as_root),
        as_root,
        memory=Memory(settings.simulate_speed, engines.own.name),
    )
    if simulation is not None:
        simulation.engine.on_change = lambda: loop.enqueue("offers", "all")
    access = Access(store, now=clock.now, monotonic=clock.monotonic)
    rates, terms = priced
    purse = budgets.Purse(rates)
    room.refuses = lambda conn, project: purse.refusal(conn, project, store.clock())
    watch = gpus.GpuWatch(
        store, engines, leadership.fence, settings.gpu_idle_after, lambda: loop.enqueue("schedule", "all")
    )
    attached = Attached(store, engines, os.path.join(settings.data_dir, "engines"), queries.active_by_engine)
    late = Later(settings, store, rates, terms, attached, job_user(settings, as_root=as_root) or own_user())
    serving = late.serving = _serving(settings, room, reconciler, late)
    money = (*cost_routes.endpoints(store, rates), *idle.endpoints(store, rates))
    health = late.health = _health(settings, reconciler, late.telemetry)
    money = (*money, *gpus.endpoints(watch, lambda: leadership.leading), *_goodput(room, late))
    money = (*money, *health_routes.endpoints(health))
    above = (money, late.endpoints, (_training(reconciler, serving, health).samples, late.telemetry.samples))
    app = _application(settings, store, attached, reconciler, room, access, above)
    return House(
        settings, store, attached, loop, reconciler, room, leadership, access, app, rates, watch, late, simulation
    )


def _serving(settings: Settings, room: Room, reconciler: JobReconciler, late: Later) -> Serving:
    """Inference services: nothing of them runs, or is loaded, before the first one exists."""
    folder = os.path.join(settings.data_dir, "serving")
    where = (settings.gateway_host, settings.gateway_port, folder, reconciler.jobs_dir, sys.executable)
    place = Place(*where, settings.tls_cert, settings.tls_key, settings.otlp, api_snapshots.folder(settings.data_dir))
    serving = Serving(room, reconciler.loop, reconciler.fence, place)
    late.closing.append(serving.close)

    def progressed(job_id: str) -> None:
        room.wake(job_id)
        serving.progressed(job_id)

    reconciler.on_progress = progressed
    return serving


def _goodput(room: Room, late: Later) -> Sequence[Endpoint]:
    """From now on what attempts came to is kept."""
    training = Training(room)
    training.start()
    late.closing.append(training.close)
    return training_routes.endpoints(training)


def _health(settings: Settings, reconciler: JobReconciler, telemetry: Telemetry) -> Health:
    """What is wrong with nodes, and what is done about it: a part of the jobs' loop too."""
    store, loop = reconciler.store, reconciler.loop

    def restart(tx: Tx, attempt: str, since: float, words: str) -> bool:
        job_id = running.again(tx, attempt, Reason.NodeDrained, words, lambda job: _reported(reconciler, job) > since)
        if job_id is not None:
            loop.enqueue("job", job_id)
        return job_id is not None

    fence, file = reconciler.fence, settings.health_policy
    health = Health(
        store, reconciler.engines, fence, running.on_nodes, lambda: loop.enqueue("health", "all"), file, restart
    )
    loop.reconcilers["health"] = health.reconcile
    health.listen()
    telemetry.on_findings.append(health.push)
    telemetry.orders = health.asked.of
    return health


def _reported(reconciler: JobReconciler, job_id: str) -> float:
    """When a job reported last. One that never did is nothing to judge by: it counts as getting on."""
    at = (reconciler.progress.get(job_id) or {}).get("at")
    return math.inf if at is None else parse_time(at)


def _training(reconciler: JobReconciler, serving: Serving, health: Health) -> TrainingWatch:
    """A part of the jobs' loop, from its start on."""
    loop = reconciler.loop
    watch = TrainingWatch(
        reconciler.store,
        reconciler.engines,
        reconciler.fence,
        reconciler.progress,
        lambda job_id: loop.enqueue("job", job_id),
    )
    loop.reconcilers["training"] = watch.reconcile

    def begin() -> None:
        loop.enqueue("training", "all")
        health.wake()
        serving.begin()

    reconciler.on_start = begin
    return watch


async def _nothing() -> None:
    """Before the reconciler is there."""


def _application(
    settings: Settings,
    store: Store,
    attached: Attached,
    reconciler: JobReconciler,
    room: Room,
    access: Access,
    above: tuple[Sequence[Endpoint], Callable[[], Sequence[Endpoint]], Sequence[Callable[[], Any]]],
) -> App:
    """Every room's endpoints and the console, behind one door."""

    async def restore(file: IO[bytes], actor: str) -> dict[str, Any]:
        return await _restore(store, attached, reconciler, file, actor)

    own = attached.engines.own.name
    aside = [
        Memory(settings.simulate_speed, own) for _ in range(2)
    ]  # read in threads: the room's own is the event loop's
    house = api_routes.House(store, settings, VERSION, restore, (_job_samples(store), *above[2]))
    endpoints: list[Endpoint] = [
        *api_routes.endpoints(house),
        *tenancy_routes.endpoints(store),
        *fleet_routes.endpoints(
            fleet_routes.Room(store, queries.usage, attached.engines, reconciler.sync_nodes, idle.idle_now)
        ),
        *job_routes.endpoints(room, reconciler.jobs_dir),
        *reservation_routes.endpoints(store, lambda conn, one, now: lines.in_the_way(conn, one, now, room.memory)),
        *queue_routes.endpoints(
            store,
            lambda conn, now: lines.report(conn, now, aside[0]),
            lambda conn, now: lines.heads(conn, now, aside[1], HEADS_SHOWN),
            lines.capacity,
            orphans,
        ),
        *above[0],
    ]
    gate = Gate(access, decide, settings)
    app = build(
        endpoints,
        authenticate=access,
        decide=decide,
        settings=settings,
        extra_mounts=console.build(_console_gate(gate, secure=settings.tls_cert is not None)),
        public_paths=console.PUBLIC_PATHS,
        late=above[1],
    )
    gate.app = app
    house.app = app
    return app


def _console_gate(gate: Gate, *, secure: bool) -> console.Gate:
    return console.Gate(
        gate.ask,
        gate.may,
        lambda request: request.scope.get("penstock.actor"),
        gate.log_in,
        gate.log_out,
        gate.cookie,
        secure,
    )


def _job_samples(store: Store) -> Callable[[], Any]:
    async def source() -> list[Sample]:
        def read(conn: Any) -> list[Sample]:
            counts = queries.counts(conn, None)
            jobs = [
                Sample("jobs", "gauge", "Jobs by phase.", {"phase": phase}, counts.get(phase, 0)) for phase in Phase
            ]
            told = start_outlook.samples(conn, store.clock())
            return [
                *jobs,
                *told,
                *fleet_routes.samples(conn, queries.usage(conn)),
                *idle.samples(conn),
                *kept.samples(conn, store.clock()),
            ]

        return await store.read(read)

    return source


async def _restore(
    store: Store, attached: Attached, reconciler: JobReconciler, file: IO[bytes], actor: str
) -> dict[str, Any]:
    """Stop deciding, put the backup in place, then find out what really runs and go on from there."""
    await reconciler.pause()
    try:
        manifest = await backup.restore(store, file, actor=actor)
        await attached.load()
        orphans = await reconciler.end_orphans()
        if orphans:

            def note(tx: Tx) -> None:
                for attempt_id in orphans:
                    tx.emit(Ref("Attempt", attempt_id), Reason.OrphanEnded, "the backup does not know it", actor=actor)

            await store.write(note)
    finally:
        await reconciler.start()
    return manifest.to_dict() | {"orphans_ended": orphans}


async def run(
    settings: Settings,
    spawner: Spawner,
    listening: socket.socket,
    environ: Mapping[str, str],
    priced: Priced,
    *,
    as_root: bool,
) -> int:
    """Open the store, take over what runs, serve until told to stop; then let go of everything but the jobs."""
    clock = SystemClock()
    store = Store.open(settings.effective_database_url(), clock=clock.now)
    close_to_others(settings.data_dir)
    api_snapshots.sweep(settings.data_dir)
    await bootstrap(store, settings.data_dir)
    if settings.reset_token:
        await reset_token(store, settings.data_dir)
    simulation = simulated(settings, clock.now)
    if simulation is None:
        config = LocalConfig(environ, settings.local_nodes, url=http.url_of(listening, settings))
        engine: AnEngine = LocalEngine(spawner, config, clock=clock.now)
    else:
        spawner.dismiss()
        engine = simulation.engine
    try:
        await store.read(lambda conn: inventory.check_engine(conn, engine.name))
    except PenstockError:
        await store.close()
        raise
    house = build_house(settings, store, engine, simulation, priced, as_root=as_root)
    await house.attached.load(http.url_of(listening, settings))
    house.room.start()
    served = http.HttpServer(house.app, listening, settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await house.leadership.start()
        await store.write(lambda tx: tx.emit(_server_ref(), Reason.ServerStarted, served.url, actor="system"))
        watching = _watching(house)
        await served.start()
        try:
            write_server_file(settings.data_dir, served.url, settings.tls_cert)
            print(f"Penstock is ready: {served.url}", flush=True)
            if simulation is not None:
                print(f"simulated: {simulation.fleet}; nothing really runs", flush=True)
            gc.freeze()
            await stop.wait()
        finally:
            for task in watching:
                task.cancel()
            await served.stop()
            await house.later.close()
            await house.leadership.close()
            await house.reconciler.close()
            with contextlib.suppress(PenstockError):
                await store.write(lambda tx: tx.emit(_server_ref(), Reason.ServerStopped, "jobs go on", actor="system"))
    finally:
        await store.close()
    return 0


def _watching(house: House) -> list[asyncio.Task[None]]:
    """What is looked at now and then while the server runs."""
    return [asyncio.ensure_future(watch(house)) for watch in (_watch_nodes, _watch_outside)] + _feeding(house)


def _feeding(house: House) -> list[asyncio.Task[None]]:
    """The made-up load of a simulated fleet, if it has one."""
    if house.simulation is None:
        return []
    jobs_dir = house.reconciler.jobs_dir
    feeds = house.simulation.feeding(house.room, jobs_dir, lambda: house.leadership.leading)
    return [asyncio.ensure_future(feed) for feed in feeds]


def _server_ref() -> Ref:
    return Ref("Server", socket.gethostname())


async def _watch_nodes(house: House) -> None:
    """What the machine offers may change (a GPU falls off the bus): look now and then."""
    while True:
        await asyncio.sleep(SYNC_NODES_S)
        if house.leadership.leading:
            try:
                await house.reconciler.sync_nodes()
                await house.gpus.look()
                await budgets.look(house.store, house.prices)
            except PenstockError as error:
                log.warning("cannot take over the nodes: %s", error)


async def _watch_outside(house: House) -> None:
    """Jobs that people submit to engines themselves."""
    while True:
        await asyncio.sleep(SEE_OUTSIDE_S)
        if house.leadership.leading:
            try:
                await house.later.look_outside(house.leadership.fence)
            except PenstockError as error:
                log.warning("jobs from outside cannot be taken over: %s", error)
