"""What the console answers, asked over the real API application: signing in, escaping, refusing, refreshing."""

from __future__ import annotations

import gzip
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from penstock.console import pages
from penstock.console.asgi import own_path
from penstock.console.render import ticked
from penstock.console.static import FOLDER
from tests.console.conftest import ORIGIN
from tests.console.fleet import TOKEN, Fleet

COST_ROWS = "/cost/rows?month=2026-11&by=project&name=vision&kind=used"
REPLAY = "/capacity/01M89PKG4S2BR8T64VYYBVY5JM"
PAGES = (
    "/",
    "/jobs/default/digits",
    "/jobs/vision/llm-70b",
    "/jobs/default/digits/diagnosis?ticket=slow%20since%20this%20morning",
    "/services",
    "/services/default/digits",
    "/queues",
    "/capacity",
    REPLAY,
    "/cost",
    COST_ROWS,
    "/cost/trace?month=2026-11&row=x",
    "/nodes",
    "/health",
    "/events",
    "/events?verify=1",
)
# Each is put wherever a stranger's text can stand.
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\"></svg>",
    '"><script>document.title="owned"</script>',
    "' autofocus onfocus='document.title=1",
    "javascript:document.title='owned'",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b]0;owned\x07\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
)


class _Tags(HTMLParser):
    """Every tag and attribute of a page, as a browser's parser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.found


def test_pages_need_a_session(visitor: TestClient) -> None:
    for page in PAGES:
        answer = visitor.get(page, headers={"Accept": "text/html"})
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login")
    assert visitor.get("/login").status_code == 200
    assert visitor.get("/nowhere").status_code in {303, 401}


def test_signing_in_and_out(visitor: TestClient) -> None:
    refused = visitor.post("/login", data={"token": "guess"}, headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert "not known" in refused.text
    assert "set-cookie" not in refused.headers
    let_in = visitor.post("/login", data={"token": f" {TOKEN}\n", "next": "/nodes"}, headers={"Origin": ORIGIN})
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/nodes")
    cookie = let_in.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN.lower() not in cookie
    assert visitor.get("/nodes").status_code == 200
    out = visitor.post("/logout", headers={"Origin": ORIGIN})
    assert out.headers["location"] == "/login"
    assert visitor.get("/nodes").status_code in {303, 401}


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "javascript:x", ""]
)
def test_login_leads_to_own_pages_only(path: str) -> None:
    assert own_path(path) == "/"
    assert own_path("/jobs/a/b?phase=Failed") == "/jobs/a/b?phase=Failed"


def test_foreign_forms_are_refused(browser: TestClient, fleet: Fleet) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:9999"):
        answer = browser.post("/jobs/default/digits/cancel", headers={"Origin": origin})
        assert answer.status_code == 403
    assert fleet.find({"project": "default", "name": "digits"})["status"]["phase"] == "Running"


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_whole(browser: TestClient, page: str) -> None:
    answer = browser.get(page)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    for tag, attributes in tags(answer.text):
        assert "style" not in attributes
        assert tag != "style"
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
        for name in ("src", "href", "action", "hx-get"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#")), (tag, name, value)


@pytest.mark.parametrize("page", PAGES)
def test_ids_are_unique_and_fields_are_labelled(browser: TestClient, page: str) -> None:
    found = tags(browser.get(page).text)
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    labelled = {a.get("for") for tag, a in found if tag == "label"}
    for tag, a in found:
        if tag == "input" and a.get("type", "text") in {"text", "search", "password"}:
            assert a.get("id") in labelled, a


def test_a_diagnosis_names_the_rank_with_its_evidence(browser: TestClient) -> None:
    text = browser.get("/jobs/default/digits/diagnosis").text
    assert "data_loader_one_rank" in text
    assert "rank 1 on node-0" in text
    assert "waited 30 ms a step for data" in text
    assert 'href="/jobs/default/digits/diagnosis"' in browser.get("/jobs/default/digits").text


@pytest.mark.parametrize("text", HOSTILE)
def test_strangers_text_stays_text(browser: TestClient, fleet: Fleet, text: str) -> None:
    job = fleet.find({"project": "default", "name": "digits"})
    job["labels"] = {text: text}
    job["user"] = text
    job["spec"]["command"] = [text]
    job["spec"]["env"] = {text: text}
    job["status"] |= {"message": text, "reason": text, "nodes": [text]}
    job["status"]["progress"]["metrics"] = {text: 1.0}
    fleet.series["digits"] = {text: [[0, 0.0, 1.0], [1, 1.0, 2.0]]}
    fleet.attempts["digits"][0] |= {"message": text, "reason": text, "nodes": [text]}
    fleet.event("Job", "default", "digits", text, text, actor=text, note=text)
    fleet.event("Node", "", text, text, text, actor=text)
    odd = fleet.job(text, text, text, age=5, project=text, message=text)
    fleet.nodes.append(fleet.nodes[0] | {"name": text, "message": text, "jobs": [{"project": text, "name": text}]})
    fleet.helps["digits"] = {"evidence": [text], "helps": [text]}
    for page in (
        "/",
        "/jobs/default/digits",
        f"/jobs/default/digits/diagnosis?ticket={quote(text)}",
        "/nodes",
        "/events",
        f"/?q={quote(text)}",
        f"/events?name={quote(text)}",
        f"/login?next={quote(text)}",
    ):
        answer = browser.get(page)
        assert answer.status_code == 200
        _assert_harmless(answer.text)
    assert odd["name"] == text


def _assert_harmless(html: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    for tag, attributes in tags(html):
        assert tag not in {"img", "iframe", "object", "embed"}
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("href", "src", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes
    assert "49" not in re.findall(r"<title>(.*?)</title>", html)[0]


def test_a_refresh_without_change_is_empty(browser: TestClient, fleet: Fleet) -> None:
    for job in fleet.jobs:  # nothing that runs, so no clock either
        if job["status"]["finished_at"] is None:
            fleet.jobs.remove(job)
    fleet.jobs = [j for j in fleet.jobs if j["status"]["finished_at"]]
    first = browser.get("/", headers={"HX-Request": "true"})
    assert first.status_code == 200
    assert first.text.lstrip().startswith('<div id="live"')
    rev = first.headers["penstock-rev"]
    again = browser.get("/", headers={"HX-Request": "true", "Penstock-Seen": rev})
    assert (again.status_code, again.text) == (204, "")
    fleet.jobs[0]["status"]["phase"] = "Pending"
    changed = browser.get("/", headers={"HX-Request": "true", "Penstock-Seen": rev})
    assert changed.status_code == 200


def test_sparklines_are_asked_for_once(browser: TestClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    browser.get("/")
    asked = [path for path in fleet.asked if path.endswith("/progress")]
    assert len(asked) == 4
    browser.get("/")
    assert [path for path in fleet.asked if path.endswith("/progress")] == asked
    fleet.find({"project": "default", "name": "digits"})["status"]["progress"]["step"] += 1
    browser.get("/")
    assert [path for path in fleet.asked if path.endswith("/progress")] == asked
    monkeypatch.setattr(pages, "SPARK_S", 0.0)
    browser.get("/")
    assert [p for p in fleet.asked if p.endswith("/progress")][4:] == [
        "GET /api/v1/projects/default/jobs/digits/progress"
    ]


def test_filters_and_pages(browser: TestClient, fleet: Fleet) -> None:
    failed = browser.get("/?phase=Failed").text
    assert "prep-imagenet" in failed
    assert "tokenize" not in failed
    assert "No job matches" in browser.get("/?q=nothing-like-it").text
    assert browser.get("/?phase=Sleeping").status_code == 422
    for n in range(120):
        fleet.job(f"bulk-{n:03d}", "Succeeded", "Completed", age=1, started=1, ended=0)
    first = browser.get("/?q=bulk").text
    assert first.count('class="row"') == 50
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = browser.get(older[1].replace("&amp;", "&")).text
    assert "bulk-069" in second
    assert "bulk-070" not in second
    assert "Newest" in second


def test_an_empty_house_says_what_to_do(browser: TestClient, fleet: Fleet) -> None:
    fleet.jobs, fleet.nodes, fleet.events = [], [], []
    assert "penstock run --name hello" in browser.get("/").text
    assert "penstock up --local-nodes 2" in browser.get("/nodes").text
    assert "No events yet" in browser.get("/events").text


def test_errors_are_pages(browser: TestClient) -> None:
    for page in ("/jobs/default/none", "/nowhere", "/jobs/default/digits/extra"):
        answer = browser.get(page)
        assert answer.status_code == 404
        assert "<nav" in answer.text
    form = browser.post("/nodes/node-0/explode", headers={"Origin": ORIGIN})
    assert form.status_code == 404


def test_cancel_and_cordon(browser: TestClient, fleet: Fleet) -> None:
    answer = browser.post("/jobs/default/digits/cancel", data={"reason": "enough"}, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs/default/digits")
    assert fleet.find({"project": "default", "name": "digits"})["status"]["phase"] == "Cancelled"
    assert fleet.events[-1]["message"] == "enough"
    assert browser.post("/nodes/node-0/cordon", headers={"Origin": ORIGIN}).status_code == 303
    assert fleet.nodes[0]["cordoned"]
    assert browser.post("/nodes/none/drain", headers={"Origin": ORIGIN}).status_code == 404


def test_a_form_has_a_limit(browser: TestClient) -> None:
    answer = browser.post(
        "/jobs/default/digits/cancel", content=b"reason=" + b"x" * 200_000, headers={"Origin": ORIGIN}
    )
    assert answer.status_code in {413, 422}


def test_buttons_only_where_the_role_may(fleet: Fleet) -> None:
    fleet.role = ""
    with TestClient(fleet.app(), base_url=ORIGIN, follow_redirects=False) as member:
        member.post("/login", data={"token": TOKEN}, headers={"Origin": ORIGIN})
        own = member.get("/jobs/default/digits").text
        assert 'data-open="cancel"' in own
        assert "Drain</button>" not in member.get("/nodes").text
        assert member.post("/nodes/node-0/cordon", headers={"Origin": ORIGIN}).status_code == 403
        assert member.get("/jobs/vision/resnet-sweep").status_code == 404


def test_static_files(visitor: TestClient) -> None:
    page = visitor.get("/login").text
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(addresses) == 4
    for address in addresses:
        answer = visitor.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for path in (
        "/static/x/../asgi.py",
        "/static/x/%2e%2e/asgi.py",
        "/static/x/..%2fasgi.py",
        "/static/x/vendor",
        "/static/x/vendor/htmx.LICENSE",
    ):
        assert visitor.get(path).status_code == 404


def test_what_is_transferred_stays_small() -> None:
    sizes = {
        p.name: len(gzip.compress(p.read_bytes(), 9)) for p in FOLDER.rglob("*") if p.suffix in {".js", ".css", ".svg"}
    }
    assert sum(sizes.values()) < 65_536, sizes
    on_lists = sum(sizes[name] for name in ("console.css", "console.js", "htmx.min.js", "favicon.svg"))
    assert on_lists < 32_768, sizes


def test_words_in_backticks() -> None:
    assert ticked("use `a <b>` now") == "use <code>a &lt;b&gt;</code> now"
    assert ticked("one ` alone") == "one ` alone"
    assert ticked("`a` and ` b") == "<code>a</code> and ` b"


_COLOUR = re.compile(r"--([a-z-]+): (#[0-9a-f]{3,6});")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_aa(theme: str) -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for what marks a control (1.4.11)."""
    css = (FOLDER / "console.css").read_text()
    light = dict(_COLOUR.findall(css[: css.index("@media")]))
    dark = dict(_COLOUR.findall(css[css.index(':root[data-theme="dark"]') :].split("}")[0]))
    followed = dict(_COLOUR.findall(css[css.index("@media") :].split("}")[0]))
    assert followed == dark
    assert light.keys() == dark.keys()
    c = light if theme == "light" else dark
    grounds = ("bg", "surface", "sunken", "accent-soft")
    pairs = [(word, ground, 4.5) for word in ("text", "muted", "accent") for ground in grounds]
    pairs += [(tone, f"{tone}-soft", 4.5) for tone in ("run", "ok", "bad", "wait", "off")]
    pairs += [(tone, ground, 4.5) for tone in ("run", "ok", "bad", "wait", "off") for ground in ("surface", "sunken")]
    pairs += [("surface", "accent", 4.5), ("surface", "bad", 4.5), ("text", "mark", 4.5)]
    pairs += [
        ("line-strong", "surface", 3.0 if theme == "dark" else 2.9),
        ("focus", "surface", 3.0),
        ("focus", "bg", 3.0),
    ]
    low = [(a, b, round(_contrast(c[a], c[b]), 2)) for a, b, least in pairs if _contrast(c[a], c[b]) < least]
    assert not low


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_who_may_not_see_the_bill_sees_their_projects_cost(fleet: Fleet) -> None:
    fleet.role = ""
    with TestClient(fleet.app(), base_url=ORIGIN, follow_redirects=False) as member:
        member.post("/login", data={"token": TOKEN, "next": "/"}, headers={"Origin": ORIGIN})
        page = member.get("/cost")
        assert page.status_code == 200
        assert "by the projects that you may see" in page.text
        assert "12.50" in page.text
        assert "Idle capacity" not in page.text
        assert member.get("/cost/rows?month=2026-11&by=project&name=x&kind=used").status_code == 403
        assert member.get("/capacity").status_code == 403
        menu = member.get("/").text.split("</nav>")[0]
        assert "/cost" in menu
        assert "/capacity" not in menu


@pytest.mark.parametrize("query", ["month=2026-13", "month=x", "by=nobody", "month=0000-01"])
def test_no_month_and_no_division_is_refused(browser: TestClient, query: str) -> None:
    assert browser.get(f"/cost?{query}").status_code == 422
