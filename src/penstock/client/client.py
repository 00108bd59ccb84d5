"""``penstock.Client``: everything that the command line does, from Python.

>>> with penstock.Client() as client:
...     job = client.jobs.run(["python", "train.py"], procs=2, name="digits")
...     for chunk in client.jobs.logs(job.name, follow=True):
...         sys.stdout.buffer.write(chunk)
...     print(client.jobs.wait(job.name).phase)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.base.errors import PenstockError, Unauthenticated
from penstock.client.discovery import find
from penstock.client.kinds import Engines, Events, Jobs, Nodes, Projects, Services, Tokens, Users, new_key
from penstock.client.resources import API, post
from penstock.client.snapshot import take
from penstock.client.transport import Transport, quote

if TYPE_CHECKING:
    from penstock.base.settings import Settings


class Client:
    """A connection to one Penstock server.

    ``url`` names the server and ``token`` is shown to it; without them the ``data_dir`` of a server on this machine
    says both. ``project`` is where jobs are made and looked up unless a call names another.

    One client may be used by many threads: each has its own connection, taken up again when it breaks. Requests that
    may be repeated are; a creation carries an ``Idempotency-Key`` so that it happens once. Every method raises the
    ``PenstockError`` that the server describes, or ``Unavailable``.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        project: str = "default",
        data_dir: str | None = None,
    ) -> None:
        self.place = find(url, token, data_dir)
        self.project = project
        self.transport = Transport(self.place.url, self.place.token, ca=self.place.ca)
        if url is None:

            def locate() -> tuple[str, str | None, str | None] | None:
                try:
                    return find(None, token, data_dir)[:3]
                except PenstockError:  # it is not up again yet
                    return None

            self.transport.locate = locate
        self.jobs = Jobs(self.transport, project)
        self.services = Services(self.transport, project, self.jobs)
        self.nodes = Nodes(self.transport, project)
        self.engines = Engines(self.transport, project)
        self.events = Events(self.transport, project)
        self.users = Users(self.transport, project)
        self.tokens = Tokens(self.transport, project)
        self.projects = Projects(self.transport, project)

    @classmethod
    def of(cls, settings: Settings) -> Client:
        """The client that the command line uses."""
        return cls(settings.url, settings.token, settings.project, settings.data_dir)

    @property
    def url(self) -> str:
        return self.transport.address.url

    def version(self) -> dict[str, Any]:
        return dict(self._get("version"))

    def whoami(self) -> dict[str, Any]:
        """Raises Unauthenticated where the token is missing or unknown."""
        if self.transport.token is None:
            raise Unauthenticated(f"there is no token to show to {self.url}")
        return dict(self._get("whoami"))

    def apply(
        self, text: str | bytes, *, dry_run: bool = False, max_bytes: int | None = None, base: str = "."
    ) -> dict[str, Any]:
        """Makes jobs and inference services as the YAML documents in ``text`` say; all or none.

        Two steps: a dry run tells which work folders and models the documents name, each is carried to the server as a snapshot,
        and the documents follow. With ``dry_run`` nothing is changed and the plan comes back. Folders that are not
        absolute are beneath ``base``.
        """
        body = text.encode() if isinstance(text, str) else text
        plan = self._apply(body, dry_run=True, snapshots={})
        if dry_run:
            return plan
        folders = sorted({item["workdir"] for item in plan["items"] if item.get("workdir")})
        digests = {folder: self.carry(os.path.join(base, folder), max_bytes) for folder in folders}
        for model in sorted({item["carry"] for item in plan["items"] if item.get("carry")}):
            digests[model] = self.services.carry(os.path.join(base, model), max_bytes)["snapshot"]
        return self._apply(body, dry_run=False, snapshots={f: digest or "" for f, digest in digests.items()})

    def carry(self, folder: str, max_bytes: int | None = None) -> str | None:
        """Takes a snapshot of a folder and sends it unless the server has it; its SHA-256, or None of an empty one."""
        return self.jobs.carry(take(folder, max_bytes=max_bytes))

    def cost_report(self, **filters: Any) -> dict[str, Any]:
        """``by`` ("project", "user", "queue", "job", "node"), ``project``, ``since``, ``until`` (RFC 3339)."""
        return dict(self._get("cost/report", filters))

    def bill(self, part: str = "bill", **filters: Any) -> Any:
        """The whole fleet's: "bill", "trace" (with ``row``) or "focus" (CSV text); ``month`` is "2026-11"."""
        answer = self.transport.request("GET", f"{API}/cost/{part}", query=filters)
        return answer.body.decode() if part == "focus" else answer.json()

    def goodput(self, **filters: Any) -> dict[str, Any]:
        """Where the trainings' device-hours went; filters: project, since, until."""
        return dict(self._get("goodput", filters))

    def cost_idle(self, **filters: Any) -> dict[str, Any]:
        """GPUs that were held and did nothing; ``by`` ("user", "project", "queue", "job"), ``since``, ``until``."""
        return dict(self._get("cost/idle", filters))

    def forecast(self, project: str) -> dict[str, Any]:
        """What a project will have spent by the month's end."""
        return dict(self._get(f"projects/{quote(project)}/forecast"))

    def budgets(self) -> list[dict[str, Any]]:
        return list(self._get("budgets")["items"])

    def set_budget(self, project: str, budget: Mapping[str, Any] | None) -> None:
        """``amount`` (a month), ``thresholds`` (percent), ``refuse``, ``contact``; None deletes it."""
        path = f"{API}/projects/{quote(project)}/budget"
        if budget is None:
            self.transport.request("DELETE", path)
        else:
            self.transport.request(
                "PUT", path, body=json.dumps(budget).encode(), headers={"Content-Type": "application/json"}
            )

    def queues(self) -> dict[str, Any]:
        """Each queue's quotas, what is used, borrowed and lent of them, and who waits."""
        return dict(self._get("queues"))

    def apply_queues(self, text: bytes, *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Puts a queue file in the place of the one that holds; with ``force`` though jobs are left without a queue."""
        query = ({"dry_run": "true"} if dry_run else {}) | ({"force": "true"} if force else {})
        headers = {"Content-Type": "application/yaml"}
        return dict(
            self.transport.request("PUT", f"{API}/queues/setup", query=query, body=text, headers=headers).json()
        )

    def compile_queues(self, engine: str, *, dry_run: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Puts the queue file that holds into an engine's own accounts; with ``overwrite`` over changes by hand."""
        query = {"engine": engine} | ({"dry_run": "true"} if dry_run else {})
        query |= {"overwrite": "true"} if overwrite else {}
        return dict(self.transport.request("POST", f"{API}/queues/compile", query=query).json())

    def health(self) -> dict[str, Any]:
        """Nodes that are not well: findings, what was decided, outages."""
        return dict(self._get("health"))

    def findings(self, *, node: str | None = None, active: bool = False) -> list[dict[str, Any]]:
        query = {"node": node} if node else {}
        return list(
            self._get("health/findings", query | ({"active": "true"} if active else {}) | {"limit": "1000"})["items"]
        )

    def health_plan(self) -> dict[str, Any]:
        """What would be done about nodes now, and what would not, and why."""
        return dict(self._get("health/plan"))

    def health_policy(self, rule: str | None = None, code: str | None = None) -> dict[str, Any]:
        """The rules in force; only these where they are named."""
        return dict(self._get("health/policy", {key: word for key, word in (("rule", rule), ("code", code)) if word}))

    def health_say(self, verb: str, which: Mapping[str, Any]) -> dict[str, Any]:
        """``ack`` or ``clear`` the findings that ``which`` names: ``node``, ``rule``, ``code``, ``device``, ``reason``."""
        return dict(post(self.transport, f"{API}/health/{verb}", dict(which), repeatable=True))

    def incidents(self, node: str) -> list[dict[str, Any]]:
        """A node's incidents, newest first, each as fields and as Markdown."""
        return list(self._get(f"nodes/{quote(node)}/incidents")["items"])

    def evidence(self, node: str) -> bytes:
        """What is known of a node, for its vendor: a zip whose manifest has each file's hash."""
        return self.transport.request("GET", f"{API}/nodes/{quote(node)}/evidence").body

    def checks(self, node: str) -> dict[str, Any]:
        """What a node was asked to check, and what came of the last time."""
        return dict(self._get(f"nodes/{quote(node)}/checks"))

    def check(self, node: str, checks: Sequence[str]) -> dict[str, Any]:
        """Asks a node's agent to run these checks."""
        return dict(post(self.transport, f"{API}/nodes/{quote(node)}/checks", {"checks": list(checks)}))

    def take_in(self, program: str, text: bytes, node: str = "") -> dict[str, Any]:
        """Findings of gpud, nvsentinel, npd or nhc, in their own words; ``node``: of those that name none."""
        query = {"node": node} if node else {}
        path = f"{API}/health/intake/{quote(program)}"
        headers = {"Content-Type": "application/octet-stream"}
        return dict(self.transport.request("POST", path, query=query, body=text, headers=headers).json())

    def reservations(self, *, over: bool = False) -> list[dict[str, Any]]:
        """Reservations and maintenance windows; with ``over`` those of the last week too."""
        return list(self._get("reservations", {"over": "true"} if over else {})["items"])

    def reserve(self, window: Mapping[str, Any], *, dry_run: bool = False, key: str | None = None) -> dict[str, Any]:
        """Keeps nodes: ``name``, ``nodes``, ``start``, ``end`` or ``duration``, ``maintenance``, ``drain`` ..."""
        query = {"dry_run": "true"} if dry_run else {}
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or new_key()}
        body = json.dumps(dict(window)).encode()
        return dict(
            self.transport.request("POST", f"{API}/reservations", query=query, body=body, headers=headers).json()
        )

    def end_reservation(self, name: str) -> None:
        """Ends it now, or calls it off."""
        self.transport.request("DELETE", f"{API}/reservations/{quote(name)}")

    def audit_verify(self) -> dict[str, Any]:
        """Whether the ledger's chain of hashes is whole; else the first row that is not as it was written."""
        return dict(self._get("audit/verify"))

    def backup(self, write: Callable[[bytes], object]) -> int:
        """Hands a dump of everything (a zip) piece by piece to ``write``; answers its size in bytes."""
        size = 0
        with self.transport.stream(f"{API}/backup") as stream:
            for chunk in stream:
                write(chunk)
                size += len(chunk)
        return size

    def restore(self, dump: bytes) -> dict[str, Any]:
        """Puts a dump in the place of what the server holds."""
        answer = self.transport.request(
            "POST", f"{API}/restore", body=dump, headers={"Content-Type": "application/zip"}, repeatable=False
        )
        return dict(answer.json()) if answer.body else {}

    def openapi(self) -> dict[str, Any]:
        return dict(self._get("openapi.json"))

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self.transport.request("GET", f"{API}/{path}", query=query).json()

    def _apply(self, body: bytes, *, dry_run: bool, snapshots: Mapping[str, str]) -> dict[str, Any]:
        headers = {"Content-Type": "application/yaml"} | ({"Snapshots": json.dumps(snapshots)} if snapshots else {})
        query = {"dry_run": dry_run, "project": self.project}
        answer = self.transport.request(
            "POST", f"{API}/apply", query=query, body=body, headers=headers, repeatable=True
        )
        return dict(answer.json())


def with_defaults(defaults: Callable[[], Settings]) -> type[Client]:
    """The client whose arguments default to settings that are read when it is made (``penstock.Client``)."""

    class DefaultClient(Client):
        __doc__ = Client.__doc__

        def __init__(
            self,
            url: str | None = None,
            token: str | None = None,
            project: str | None = None,
            data_dir: str | None = None,
        ) -> None:
            settings = defaults()
            super().__init__(
                url or (None if data_dir else settings.url),
                token or settings.token,
                project or settings.project,
                data_dir or settings.data_dir,
            )

    DefaultClient.__name__ = DefaultClient.__qualname__ = "Client"
    return DefaultClient
