"""What each page shows: it asks the API's endpoints, hands the answers to the rooms' view models and draws them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from penstock.base.errors import Busy, InvalidInput, NotFound, PenstockError, Problem
from penstock.base.quantities import format_time
from penstock.base.resource import Actor
from penstock.capacity import page as what_if
from penstock.console.gate import Gate
from penstock.console.render import Renderer, link
from penstock.console.static import Assets
from penstock.cost import page as money
from penstock.diagnosis import page as diagnosed
from penstock.diagnosis import steps_page
from penstock.diagnosis.ticket import LONGEST
from penstock.fleet import page as floor_plan
from penstock.fleet.page import node_card, summary
from penstock.health import page as health
from penstock.jobs.page import (
    PHASES,
    JobRow,
    attempt_rows,
    event_row,
    headline_series,
    job_head,
    job_row,
    phase_badge,
    reason_badge,
    spark,
)
from penstock.jobs.timeline import timeline
from penstock.scheduling.page import cohorts
from penstock.serving import page as served
from penstock.training import page as training

# address, word, and the verb without which it is not shown
MENU = (
    ("/", "Jobs", "jobs.read"),
    ("/services", "Services", "services.read"),
    ("/queues", "Queues", "queues.read"),
    ("/nodes", "Nodes", "nodes.read"),
    ("/health", "Health", "nodes.read"),
    ("/capacity", "Capacity", "capacity.read"),
    ("/cost", "Cost", "cost.read"),
    ("/goodput", "Goodput", "jobs.read"),
    ("/events", "Events", "events.read"),
)
REPLAYS = "/api/v1/capacity/replays"
JOBS_PAGE = 50
EVENTS_PAGE = 100
JOB_EVENTS = 200
BUDGETS_FORECAST = 20  # budgets whose projects' forecasts are asked for
NODES_LINKED = 300  # in a larger fleet's map racks are links, not nodes
SLOW_S = 10  # a large fleet's map is asked for again so often
SPARK_S = 10.0  # how old the sparkline of a job that moves may be
_SPARKS = 1000  # sparklines kept


@dataclass(frozen=True, slots=True)
class _Spark:
    step: float
    asked: float  # seconds of the monotonic clock
    points: str


class Pages:
    def __init__(self, gate: Gate, assets: Assets) -> None:
        self._gate = gate
        self._render = Renderer(assets)
        self._sparks: OrderedDict[tuple[str, str], _Spark] = OrderedDict()

    async def show(self, name: str, request: Request, actor: Actor) -> Response:
        pages = {
            "jobs": self._jobs,
            "job": self._job,
            "diagnosis": self._diagnosis,
            "services": self._services,
            "service": self._service,
            "queues": self._queues,
            "capacity": self._capacity,
            "replay": self._replay,
            "cost": self._cost,
            "cost_rows": self._cost_rows,
            "cost_trace": self._cost_trace,
            "goodput": self._goodput,
            "nodes": self._nodes,
            "health": self._health,
            "node": self._node,
            "events": self._events,
        }
        return await pages[name](request, actor)

    def _of(self, actor: Actor | None) -> dict[str, Any]:
        """What every page shows of who looks at it: the name, and the menu of what is theirs to see."""
        if actor is None:
            return {"user": None, "menu": ()}
        return {"user": actor.user, "menu": [entry[:2] for entry in MENU if self._gate.may(actor, entry[2])]}

    def login(self, request: Request, *, refused: bool = False, after: str | None = None) -> Response:
        after = after if after is not None else request.query_params.get("next", "/")
        return self._render.respond(
            request,
            "login.html",
            {"refused": refused, "after": after, **self._of(None)},
            status=401 if refused else 200,
        )

    def error(self, request: Request, error: PenstockError, actor: Actor | None) -> Response:
        context = {"error": error.to_dict(), "status": error.status, **self._of(actor)}
        return self._render.respond(request, "error.html", context, status=error.status)

    async def _jobs(self, request: Request, actor: Actor) -> Response:
        given = request.query_params
        filters = {k: given.get(k, "")[:200] for k in ("q", "project", "queue", "phase")}
        if filters["phase"] not in ("", "active", "finished", *PHASES):
            raise InvalidInput(f"phase: {filters['phase']!r} is none of {', '.join(PHASES)}, active, finished")
        query = {k: v for k, v in filters.items() if v} | {"limit": JOBS_PAGE}
        cursor = given.get("cursor", "")
        within = {k: v for k, v in query.items() if k in {"q", "project", "queue"}}
        answer, totals = await asyncio.gather(
            self._gate.ask("GET", "/api/v1/jobs", actor, query | ({"cursor": cursor} if cursor else {})),
            self._gate.ask("GET", "/api/v1/jobs/summary", actor, within),
        )
        rows = [job_row(job) for job in answer["items"]]
        sparks = dict(
            zip((row.id for row in rows), await asyncio.gather(*(self._spark(r, actor) for r in rows)), strict=True)
        )
        context = {
            **self._of(actor),
            "rows": rows,
            "sparks": sparks,
            "filters": filters,
            "filtered": any(filters.values()),
            "cursor": cursor,
            "next_cursor": answer.get("next_cursor"),
            "projects": sorted({*totals["projects"], *filter(None, [filters["project"]])}),
            "total": sum(totals["phases"].values()),
            "phases": [(phase_badge(p), totals["phases"].get(p, 0)) for p in PHASES],
        }
        return self._render.respond(request, "jobs.html", context, part="_jobs.html")

    async def _spark(self, row: JobRow, actor: Actor) -> str:
        """The points of a job's sparkline, asked for again only when its progress has moved, and not at every refresh."""
        if row.progress is None or row.headline is None:
            return ""
        key, now = (row.id, row.headline[0]), time.monotonic()
        kept = self._sparks.get(key)
        moved = kept is None or kept.step != row.progress.step
        if kept is None or (moved and (now - kept.asked >= SPARK_S or row.finished_at)):
            answer = await self._optional(f"{_api(row.project, row.name)}/progress", actor)
            points = spark(headline_series(answer or {}, row.headline[0]))
            kept = self._sparks[key] = _Spark(row.progress.step, now, points)
            while len(self._sparks) > _SPARKS:
                self._sparks.popitem(last=False)
        self._sparks.move_to_end(key)
        return kept.points

    async def _job(self, request: Request, actor: Actor) -> Response:
        project, name = request.path_params["project"], request.path_params["name"]
        base = _api(project, name)
        job = await self._gate.ask("GET", base, actor)
        attempts, events, cost, goodput, saves, steps = await asyncio.gather(
            self._gate.ask("GET", f"{base}/attempts", actor),
            self._gate.ask("GET", f"{base}/events", actor, {"limit": JOB_EVENTS, "newest": True}),
            self._optional(f"{base}/cost", actor),
            self._optional(f"{base}/goodput", actor),
            self._optional(f"{base}/checkpoints", actor),
            self._optional(f"{base}/steps", actor),
        )
        head = job_head(job)
        waits = head.row.badge.word in {"Pending", "Failed"}
        happened = events["items"]
        context = {
            **self._of(actor),
            "api": base,
            "head": head,
            "why": await self._optional(f"{base}/why", actor) if waits else None,
            "attempts": attempt_rows(attempts["items"]),
            "timeline": timeline(job, attempts["items"], happened, time.time()),
            "events": [event_row(e) for e in sorted(happened, key=lambda e: -int(e["seq"]))],
            "cost": cost,
            "goodput": training.panel(goodput) if goodput is not None else None,
            "steps": steps_page.panel(steps) if steps is not None else None,
            "saves": training.checkpoints(saves) if saves is not None else None,
            "may_save": bool(saves and saves["running"]) and self._gate.may(actor, "jobs.exec", project),
            "may_cancel": not head.final and self._gate.may(actor, "jobs.cancel", project),
        }
        return self._render.respond(request, "job.html", context, part="_job.html")

    async def _diagnosis(self, request: Request, actor: Actor) -> Response:
        ticket = request.query_params.get("ticket", "")[:LONGEST]
        path = f"{_api(request.path_params['project'], request.path_params['name'])}/diagnosis"
        answer = await self._gate.ask("GET", path, actor, {"ticket": ticket} if ticket.strip() else {})
        context = {**self._of(actor), "found": diagnosed.report(answer), "phases": diagnosed.PHASES, "ticket": ticket}
        return self._render.respond(request, "diagnosis.html", context)

    async def _services(self, request: Request, actor: Actor) -> Response:
        answer = await self._gate.ask("GET", "/api/v1/services", actor)
        context = {**self._of(actor), "rows": [served.service_row(each) for each in answer["items"]]}
        return self._render.respond(request, "services.html", context, part="_services.html")

    async def _service(self, request: Request, actor: Actor) -> Response:
        project, name = request.path_params["project"], request.path_params["name"]
        base = f"/api/v1/projects/{quote(project, safe='')}/services/{quote(name, safe='')}"
        service = await self._gate.ask("GET", base, actor)
        history, rollouts, cost = await asyncio.gather(
            self._gate.ask("GET", f"{base}/history", actor),
            self._gate.ask("GET", f"{base}/rollouts", actor),
            self._optional(f"{base}/cost", actor),
        )
        sizes, mean = served.batches(service)
        context = {
            **self._of(actor),
            "row": served.service_row(service),
            "charts": served.charts(history),
            "rollouts": [served.rollout(each) for each in rollouts["items"]],
            "under_way": service["status"]["rollout"] is not None,
            "replicas": served.replicas(service),
            "stages": served.STAGES,
            "batches": sizes,
            "mean_batch": mean,
            "cost": cost,
            "per_1000": served.price(cost["per_1000"]) if cost is not None else "-",
            "may_write": self._gate.may(actor, "services.write", project),
        }
        return self._render.respond(request, "service.html", context, part="_service.html")

    async def _queues(self, request: Request, actor: Actor) -> Response:
        report, waiting = await asyncio.gather(
            self._gate.ask("GET", "/api/v1/queues", actor), self._optional("/api/v1/queues/waiting", actor)
        )
        found = cohorts(report, waiting)
        queues = [queue for cohort in found for queue in cohort.queues]
        context = {
            **self._of(actor),
            "policy": report["policy"],
            "generation": report["generation"],
            "warnings": report.get("warnings") or (),
            "cohorts": found,
            "queues": len(queues),
            "waiting": sum(queue.waiting for queue in queues),
            "told": waiting is not None,
            "badges": {head.reason: reason_badge(head.reason) for queue in queues for head in queue.heads},
        }
        return self._render.respond(request, "queues.html", context, part="_queues.html")

    async def _capacity(self, request: Request, actor: Actor) -> Response:
        return await self._what_if(request, actor)

    async def ask_replay(self, request: Request, actor: Actor, given: Mapping[str, str]) -> str | Response:
        """The new replay's address; where the form or the API refuses what was filled in, the form again, saying why."""
        sources = await self._gate.ask("GET", "/api/v1/capacity/sources", actor)
        try:
            made = await self._gate.ask("POST", REPLAYS, actor, body=what_if.body(given, sources))
        except (InvalidInput, Busy, NotFound) as refused:
            return await self._what_if(request, actor, given, refused)
        return f"/capacity/{made['id']}"

    async def _what_if(
        self,
        request: Request,
        actor: Actor,
        given: Mapping[str, str] | None = None,
        refused: PenstockError | None = None,
    ) -> Response:
        sources, listed = await asyncio.gather(
            self._gate.ask("GET", "/api/v1/capacity/sources", actor), self._gate.ask("GET", REPLAYS, actor)
        )
        form = what_if.defaults(sources)
        if given is not None:
            form |= {"compare": ""} | {name: value[:100] for name, value in given.items() if name in form}
        context = {
            **self._of(actor),
            **sources,
            "form": form,
            "refused": str(refused) if refused else "",
            "problems": (refused.details or (Problem("", refused.hint),)) if refused else (),
            "rows": [what_if.replay_row(record) for record in listed["items"]],
            "may_run": self._gate.may(actor, "capacity.run"),
        }
        status = refused.status if refused else 200
        return self._render.respond(request, "capacity.html", context, part="_capacity.html", status=status)

    async def _replay(self, request: Request, actor: Actor) -> Response:
        address = f"{REPLAYS}/{quote(request.path_params['id'], safe='')}"
        record = await self._gate.ask("GET", address, actor)
        row = what_if.replay_row(record)
        context = {
            **self._of(actor),
            "api": address,
            "row": row,
            "sides": len(row.scenarios),
            "compared": what_if.comparison(record),
            "may_run": self._gate.may(actor, "capacity.run"),
        }
        return self._render.respond(request, "replay.html", context, part="_replay.html")

    async def _cost(self, request: Request, actor: Actor) -> Response:
        given = request.query_params
        month, by = given.get("month", "")[:7], given.get("by", "project")
        fleet = self._gate.may(actor, "bill.read")
        choices = [each for each in money.BY if fleet or each in {"project", "user", "job"}]
        if by not in choices:
            raise InvalidInput(f"by: {by[:40]!r} is none of {', '.join(choices)}")
        budgets = await self._gate.ask("GET", "/api/v1/budgets", actor)
        today = format_time(time.time()) or ""
        context = {
            **self._of(actor),
            "by": by,
            "choices": choices,
            "kinds": money.KINDS,
            "asked_month": month,
            "month": month or today[:7],
            "earlier": money.before(month or today[:7]),
            "later": money.after(month or today[:7], today[:7]),
            "budgets": money.budgets(budgets["items"], {} if month else await self._forecasts(budgets["items"], actor)),
            **await (self._bill if fleet else self._own_cost)(month, by, actor),
        }
        return self._render.respond(request, "cost.html", context, part="_cost.html")

    async def _bill(self, month: str, by: str, actor: Actor) -> dict[str, Any]:
        query = {"month": month} if month else {}
        outlook, bill = await asyncio.gather(
            self._gate.ask("GET", "/api/v1/cost/outlook", actor, query),
            self._gate.ask("GET", "/api/v1/cost/bill", actor, query | {"by": by}),
        )
        top = money.month(outlook)
        idle = await self._gate.ask(
            "GET", "/api/v1/cost/idle", actor, {"by": "user", "since": outlook["since"], "until": outlook["until"]}
        )
        return {
            "top": top,
            "currency": bill["currency"],
            "lines": money.lines(bill, by, top.month),
            "idle": money.idle_lines(idle),
        }

    async def _own_cost(self, month: str, by: str, actor: Actor) -> dict[str, Any]:
        """For those who may not see the fleet's bill: what their projects used."""
        since, until = money.window(month or (format_time(time.time()) or "")[:7])
        within = {"by": by, "since": since} | ({"until": until} if month else {})
        report, idle = await asyncio.gather(
            self._gate.ask("GET", "/api/v1/cost/report", actor, within),
            self._gate.ask("GET", "/api/v1/cost/idle", actor, within | {"by": "user"}),
        )
        return {
            "top": None,
            "currency": report["currency"],
            "total": report["total"],
            "lines": money.own_lines(report),
            "idle": money.idle_lines(idle),
        }

    async def _forecasts(self, budgets: Iterable[Mapping[str, Any]], actor: Actor) -> dict[str, Mapping[str, Any]]:
        names = [str(budget["project"]) for budget in budgets][:BUDGETS_FORECAST]
        paths = [f"/api/v1/projects/{quote(name, safe='')}/forecast" for name in names]
        found = await asyncio.gather(*(self._optional(path, actor) for path in paths))
        return {name: each for name, each in zip(names, found, strict=True) if each is not None}

    async def _cost_rows(self, request: Request, actor: Actor) -> Response:
        given = request.query_params
        month, by, name, kind = (given.get(key, "")[:200] for key in ("month", "by", "name", "kind"))
        bill = await self._gate.ask("GET", "/api/v1/cost/bill", actor, {"month": month or None})
        rows, left_out = money.bill_rows(bill, by, name, kind, month)
        context = {
            **self._of(actor),
            "title": name or money.KINDS.get(kind, kind).capitalize(),
            "sub": f"{money.KINDS.get(kind, kind)}, by {by}",
            "back": link("/cost", month=month, by=by),
            "month": month,
            "currency": bill["currency"],
            "rows": rows,
            "left_out": left_out,
        }
        return self._render.respond(request, "cost_rows.html", context)

    async def _cost_trace(self, request: Request, actor: Actor) -> Response:
        month, row = (request.query_params.get(key, "")[:2000] for key in ("month", "row"))
        found = await self._gate.ask("GET", "/api/v1/cost/trace", actor, {"month": month or None, "row": row})
        context = {
            **self._of(actor),
            "title": f"{found['nanos'] / money.NANOS:,.6f} {found['currency']}",
            "sub": f"{found['hours']:,.6g} unit hours, from {len(found['items']):,} usage intervals of the ledger",
            "back": link("/cost", month=month),
            "month": month,
            "items": found["items"][: money.MOST_ROWS],
        }
        return self._render.respond(request, "cost_rows.html", context)

    async def _goodput(self, request: Request, actor: Actor) -> Response:
        given = request.query_params
        project, since = given.get("project", "")[:63], given.get("since", "7d")[:40]
        query = {"since": since} | ({"project": project} if project else {})
        context = {
            **self._of(actor),
            "project": project,
            "since": since,
            "periods": (("1d", "A day"), ("7d", "A week"), ("30d", "30 days")),
            "fleet": training.fleet(await self._gate.ask("GET", "/api/v1/goodput", actor, query)),
        }
        return self._render.respond(request, "goodput.html", context, part="_goodput.html")

    async def _nodes(self, request: Request, actor: Actor) -> Response:
        """A small fleet: a card for each node. A large one: the map, and the cards of the rack that is asked for."""
        given = request.query_params
        fleet = await self._gate.ask("GET", "/api/v1/fleet", actor)
        racks = floor_plan.racks(fleet)
        known = len(fleet["items"])
        rack = next((each for each in racks if given.get("rack") and each.nodes[0].name == given["rack"]), None)
        if given.get("rack") and rack is None:
            raise NotFound(f"there is no rack that begins with node {given['rack'][:80]!r}")
        names = [] if rack is None else [node.name for node in rack.nodes]
        cards = []
        if names or 0 < known <= floor_plan.CARDS:
            answer = await self._gate.ask("GET", "/api/v1/nodes", actor, {"name": names or None})
            cards = [node_card(node) for node in answer["items"]]
        page = max(0, int(given["page"])) if given.get("page", "").isdecimal() and len(given["page"]) < 6 else 0
        each = floor_plan.MAPPED // floor_plan.RACK
        page = min(page, max(0, -(-len(racks) // each) - 1))
        context = {
            **self._of(actor),
            "cards": cards,
            "summary": summary(answer["items"]) if cards and not names else None,
            "fleet": fleet,
            "blocks": () if rack or known == 1 else floor_plan.blocks(racks[page * each : (page + 1) * each]),
            "rack": rack,
            "linked": known <= NODES_LINKED,
            "page": page,
            "pages": -(-len(racks) // each),
            "every": SLOW_S if known > NODES_LINKED else 0,
            "may_write": self._gate.may(actor, "nodes.write", ""),
        }
        return self._render.respond(request, "nodes.html", context, part="_nodes.html")

    async def _node(self, request: Request, actor: Actor) -> Response:
        """The charts' numbers the browser fetches itself."""
        base = f"/api/v1/nodes/{quote(request.path_params['name'], safe='')}"
        node = await self._gate.ask("GET", base, actor)
        heard = await self._optional(f"{base}/telemetry", actor, {"minutes": 1})
        known = await self._optional(f"{base}/health", actor)
        context = {
            **self._of(actor),
            "api": base,
            "health": health.node(known) if known is not None else None,
            "node": node_card(node),
            "agent": heard["agent"] if heard is not None else None,
        }
        return self._render.respond(request, "node.html", context, part="_node.html")

    async def _health(self, request: Request, actor: Actor) -> Response:
        answer = await self._gate.ask("GET", "/api/v1/health", actor)
        context = {
            **self._of(actor),
            "total": answer["nodes"],
            "nodes": [health.node(one) for one in answer["items"]],
            "shared": [(one["domain"], one["what"], one["reason"]) for one in answer["shared"]],
            "past": health.past(answer["outages"]),
        }
        return self._render.respond(request, "health.html", context, part="_health.html")

    async def _events(self, request: Request, actor: Actor) -> Response:
        given = request.query_params
        filters = {k: given.get(k, "").strip()[:200] for k in ("kind", "project", "name", "reason", "actor")}
        cursor = given.get("cursor", "")
        query = {k: v for k, v in filters.items() if v} | {"limit": EVENTS_PAGE, "newest": True}
        answer = await self._gate.ask("GET", "/api/v1/events", actor, query | ({"cursor": cursor} if cursor else {}))
        checked = await self._optional("/api/v1/audit/verify", actor) if given.get("verify") else None
        context = {
            **self._of(actor),
            "rows": [event_row(e) for e in answer["items"]],
            "filters": filters,
            "filtered": any(filters.values()),
            "cursor": cursor,
            "next_cursor": answer.get("next_cursor"),
            "checked": checked,
        }
        return self._render.respond(request, "events.html", context, part="_events.html")

    async def _optional(
        self, path: str, actor: Actor, query: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any] | None:
        """A part that a page can do without: None where the endpoint refuses."""
        try:
            answer: Mapping[str, Any] = await self._gate.ask("GET", path, actor, query)
        except PenstockError:
            return None
        return answer


def _api(project: str, name: str) -> str:
    return f"/api/v1/projects/{quote(project, safe='')}/jobs/{quote(name, safe='')}"
