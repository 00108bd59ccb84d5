"""The console in Chromium over the fleet in memory: looks, keys, refreshing, logs, charts, and strangers' text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.browser import Visit, chromium, served, until, visit
from tests.console.fleet import TOKEN, Fleet, sample
from tests.console.operations import many_nodes, replay_record
from tests.console.test_pages import HOSTILE

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]

COST_ROWS = "/cost/rows?month=2026-11&by=project&name=vision&kind=used"
REPLAY = "/capacity/01M89PKG4S2BR8T64VYYBVY5JM"
PAGES = (
    "/",
    "/jobs/default/digits",
    "/jobs/vision/llm-70b",
    "/jobs/vision/resnet-sweep",
    "/queues",
    "/capacity",
    REPLAY,
    "/cost",
    COST_ROWS,
    "/cost/trace?month=2026-11&row=x",
    "/nodes",
    "/nodes/node-0",
    "/events",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def house() -> Iterator[tuple[Fleet, str]]:
    fleet = sample(time.time())
    with served(fleet.app()) as base:
        yield fleet, base


@pytest.fixture
def person(browser: Browser, house: tuple[Fleet, str]) -> Iterator[Visit]:
    """Signed in; whatever goes wrong in a page fails the test."""
    with visit(browser, house[1]) as seen:
        yield seen.sign_in(TOKEN)
        assert seen.errors == []
        assert seen.foreign == []


def _settle(page: Page) -> None:
    page.wait_for_load_state("load")
    page.wait_for_function("document.fonts.status === 'loaded'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1280, 2560])
def test_every_page_fits(browser: Browser, house: tuple[Fleet, str], width: int, scheme: str) -> None:
    with visit(browser, house[1], width=width, color_scheme=scheme) as seen:
        seen.sign_in(TOKEN)
        for path in PAGES:
            page = seen.open(path)
            _settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == (scheme == "dark")
        assert seen.errors == []
        assert seen.foreign == []


def test_little_is_transferred(browser: Browser, house: tuple[Fleet, str]) -> None:
    """First visits, with nothing in the cache: a list <= 40 KB over the wire, a job's page <= 72 KB (log and metrics aside)."""
    for path, most in (("/", 40_000), ("/jobs/default/digits", 72_000)):
        with visit(browser, house[1]) as signing:
            signing.sign_in(TOKEN)
            kept = signing.context.storage_state()
        with visit(browser, house[1], storage_state=kept) as seen:
            page = seen.open(path)
            sizes = page.evaluate(
                "Object.fromEntries([...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
                ".filter(e => !e.name.includes('/api/')).map(e => [e.name, e.encodedBodySize]))"
            )
            assert len(sizes) >= 4
            assert all(sizes.values()), sizes
            assert sum(sizes.values()) <= most, sizes


def test_the_filter_narrows_and_keeps_the_address(person: Visit) -> None:
    page = person.open("/")
    expect(page.locator("a.row")).to_have_count(12)
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("re")
    expect(page.locator("a.row")).to_have_text(["resnet-sweep", "prep-imagenet"])
    expect(page).to_have_url(re.compile(r"\?q=re$"))
    page.click("#phase-Failed")
    expect(page.locator("a.row")).to_have_text(["prep-imagenet"])
    expect(page).to_have_url(re.compile(r"q=re.*phase=Failed"))
    page.fill("#q", "")
    expect(page.locator("a.row")).to_have_text(["embed-corpus", "prep-imagenet"])
    page.select_option("#project", "vision")
    expect(page).to_have_url(re.compile("project=vision"))
    page.reload()
    expect(page.locator("#project")).to_have_value("vision")


def test_the_keyboard_is_enough(person: Visit) -> None:
    page = person.open("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("a.row").nth(0)).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/jobs/default/digits$"))
    page.wait_for_load_state("load")  # keys are heard once the page's script has run
    page.keyboard.press("/")
    expect(page.locator("#log-q")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("n")
    expect(page).to_have_url(re.compile("/nodes$"))


def test_queues_lead_to_their_jobs(person: Visit) -> None:
    page = person.open("/")
    page.keyboard.press("g")
    page.keyboard.press("q")
    expect(page).to_have_url(re.compile("/queues$"))
    expect(page.locator(".quotas a.row")).to_have_text(["research", "serving", "default"])
    expect(page.locator(".heads li")).to_have_count(3)
    expect(page.locator(".heads li").first).to_contain_text("32 GPUs in one rack")
    page.keyboard.press("j")
    expect(page.locator("a.row", has_text="research")).to_be_focused()
    page.click("text=research >> nth=0")
    expect(page).to_have_url(re.compile(r"\?queue=research$"))
    expect(page.locator(".empty h2")).to_have_text("No job matches")
    page.click("#phase-Failed")
    expect(page).to_have_url(re.compile("queue=research.*phase=Failed"))
    page.click("text=show all queues")
    expect(page.locator("a.row").first).to_be_visible()


def test_a_what_if_is_asked_seen_under_way_and_compared(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    page = person.open("/capacity")
    expect(page.locator("[name=a_nodes]")).to_have_value("64")
    page.fill("[name=a_nodes]", "many")
    person.expected = ("422",)
    page.click("button.primary")
    expect(page.locator("[role=alert]")).to_contain_text("'many' is no whole number")
    expect(page.locator("[name=b_nodes]")).to_have_value("+20%")
    page.fill("[name=a_nodes]", "64")
    page.keyboard.press("Enter")
    expect(page.locator(".title-line .badge")).to_have_text("Running")
    expect(page.locator(".sides dd").nth(1)).to_have_text("77 nodes of 8 GPUs, easy backfill")
    expect(page.locator(".progress-now")).to_contain_text("scenario B: 3,000 of about 9,000")
    asked = next(id_ for id_ in fleet.replays if "ASKED" in id_)
    assert fleet.replays[asked]["asked"]["b"]["backfill"] == "easy"
    fleet.replays[asked] = replay_record(fleet.now, id=asked)
    expect(page.locator(".pairs canvas")).to_have_count(6)
    expect(page.locator(".lead")).to_contain_text("95% of the jobs wait at most 2h24m instead of 6h")
    expect(page.locator(".figures tr", has_text="P95 wait").first).to_contain_text("-60%")
    expect(page.locator(".legend .key")).to_have_text(["research", "serving"])
    page.click("[data-theme-toggle]")
    expect(page.locator(".pairs canvas")).to_have_count(6)
    page.click("[data-open=remove]")
    page.click("#remove .danger")
    expect(page).to_have_url(re.compile("/capacity$"))
    assert asked not in fleet.replays


def test_every_figure_of_the_bill_leads_to_its_intervals(person: Visit) -> None:
    page = person.open("/cost?month=2026-11")
    expect(page.locator(".stats")).to_contain_text("80% between 101,200.00 and 111,900.00")
    expect(page.locator(".days-chart g")).to_have_count(24)
    expect(page.locator(".bears a.row")).to_have_text(
        ["language", "vision", "science", "Idle capacity", "Unused commitments"]
    )
    expect(page.locator(".budgets li").first).to_contain_text("new work is refused")
    page.click(".bears a.row >> text=vision")
    expect(page.locator(".rows a.row")).to_have_text(["digits", "llm-70b"])
    page.click("text=intervals >> nth=0")
    expect(page.locator(".rows tbody tr")).to_have_count(1)
    expect(page.locator(".rows")).to_contain_text("digits.1/node-1/gpus:H200")
    page.click(".crumbs a")
    expect(page).to_have_url(re.compile("/cost\\?month=2026-11$"))
    page.click(".tabs >> text=queue")
    expect(page).to_have_url(re.compile("by=queue"))
    page.emulate_media(media="print")
    expect(page.locator(".top")).to_be_hidden()
    expect(page.locator("[data-print]")).to_be_hidden()
    expect(page.locator(".days-chart")).to_be_visible()


@pytest.mark.parametrize("width", [375, 1280])
def test_two_thousand_nodes_fit_a_page(browser: Browser, house: tuple[Fleet, str], width: int) -> None:
    fleet, base = house
    fleet.nodes = many_nodes(2000)
    with visit(browser, base, width=width) as seen:
        seen.sign_in(TOKEN)
        page = seen.open("/nodes")
        expect(page.locator(".racks li")).to_have_count(250)
        expect(page.locator(".card, .node")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.outerHTML.length") < 500_000
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile("rack=node-16$"))
        expect(page.locator(".node")).to_have_count(8)
        page.click("#node-17 >> text=Cordon")
        expect(page).to_have_url(re.compile("rack=node-16$"))
        expect(page.locator("#node-17 .badge")).to_contain_text("Cordoned")
        page.click(".crumbs a")
        expect(page.locator(".stats")).to_contain_text("14,2")
        assert seen.errors == []


def test_a_node_of_the_map_leads_to_its_card(person: Visit, house: tuple[Fleet, str]) -> None:
    house[0].nodes = many_nodes(64)
    page = person.open("/nodes")
    page.locator(".map").nth(1).locator("a").nth(3).click()
    expect(page).to_have_url(re.compile(r"rack=node-8#node-11$"))
    expect(page.locator("#node-11")).to_be_in_viewport()
    expect(page.locator(".floor")).to_have_count(0)


def test_a_refresh_keeps_place_and_selection(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    for n in range(60):
        fleet.job(f"filler-{n}", "Succeeded", "Completed", age=50, started=49, ended=1)
    page = person.open("/")
    row = page.locator("a.row", has_text="filler-30")
    row.focus()
    row.evaluate("node => getSelection().selectAllChildren(node)")
    before = row.bounding_box()
    assert before is not None
    job = fleet.job("newcomer", "Pending", "Created", age=0)
    expect(page.locator("a.row").first).to_have_text("newcomer")
    expect(row).to_be_focused()
    assert page.evaluate("getSelection().toString()").strip() == "filler-30"
    after = row.bounding_box()
    assert after is not None
    assert abs(after["y"] - before["y"]) < 2, "the list moved under the reader"
    job["status"] |= {"phase": "Running", "reason": "Started"}
    expect(page.locator(f"#job-{job['id']} .badge")).to_have_text("Running")


def test_nothing_shifts_while_a_page_loads(person: Visit) -> None:
    for path in ("/", "/nodes", "/events", "/jobs/default/digits"):
        page = person.open(path)
        _settle(page)
        shift = page.evaluate(
            "new Promise(done => { let sum = 0; new PerformanceObserver(list => { for (const e of list.getEntries()) sum += e.value; })"
            ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 700); })"
        )
        assert shift < 0.02, (path, shift)


def test_the_log_follows(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    page = person.open("/jobs/default/digits")
    log = page.locator(".log")
    expect(log.locator("div").last).to_contain_text("restarting the worker group")
    fleet.write("digits", "[rank 1] a line that is new")
    expect(log.locator("div").last).to_have_text("1a line that is new")
    until(lambda: log.evaluate("n => n.scrollHeight - n.scrollTop - n.clientHeight") < 24)
    log.evaluate("n => { n.scrollTop = 100; }")
    expect(page.locator("[data-follow]")).not_to_be_checked()
    fleet.write("digits", "[rank 0] and another")
    expect(page.locator(".to-end")).to_be_visible()
    assert log.evaluate("n => n.scrollTop") == 100
    page.click(".to-end")
    expect(page.locator("[data-follow]")).to_be_checked()
    page.select_option("[data-rank]", "1")
    expect(log.locator("div").last).to_contain_text("a line that is new")
    assert "rank=1" in (page.get_attribute("[data-download]", "href") or "")
    page.fill("#log-q", "STEP   600")
    expect(page.locator("[data-hits]")).to_have_text("1 of 1")
    expect(log.locator("mark")).to_have_text("step   600")
    with page.expect_download() as download:
        page.click("[data-download]")
    assert download.value.suggested_filename == "digits.log"


def test_a_flood_stays_bounded(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    fleet.logs["digits"] = [f"[rank 0] flood {n}" for n in range(60_000)]
    page = person.open("/jobs/default/digits")
    expect(page.locator(".log div").last).to_contain_text("flood 59999")
    assert page.locator(".log div").count() <= 5001
    fleet.write("digits", *(f"[rank 0] more {n}" for n in range(30_000)))
    expect(page.locator(".log div").last).to_contain_text("more 29999")
    assert page.locator(".log div").count() <= 5001


def test_charts_are_drawn_and_grow(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    page = person.open("/jobs/default/digits")
    expect(page.locator("[data-charts] .plot canvas")).to_have_count(4)
    expect(page.locator("[data-charts] .plot h3").first).to_contain_text("loss")
    painted = page.evaluate(
        "(() => { const c = document.querySelector('[data-charts] .plot canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i]) n += 1; return n; })()"
    )
    assert painted > 500
    fleet.series["digits"]["loss"].append([1400, fleet.now, 0.0421])
    expect(page.locator("[data-charts] .plot h3").first).to_contain_text("0.0421 at step 1,400")
    page.select_option("[data-axis]", "time")
    expect(page.locator("[data-charts] .plot h3").first).not_to_contain_text("step")
    page.check("[data-log-scale]")
    expect(page.locator("[data-charts] .plot canvas")).to_have_count(4)


def test_cancel_asks_first(person: Visit, house: tuple[Fleet, str]) -> None:
    page = person.open("/jobs/default/digits")
    page.click("button[data-open=cancel]")
    expect(page.locator("#cancel")).to_be_visible()
    page.click("#cancel [data-close]")
    assert house[0].find({"project": "default", "name": "digits"})["status"]["phase"] == "Running"
    page.click("button[data-open=cancel]")
    page.fill("#cancel-reason", "wrong data")
    page.click("#cancel .danger")
    expect(page.locator(".title-line .badge")).to_have_text("Cancelled")
    expect(page.locator("button[data-open=cancel]")).to_have_count(0)
    assert house[0].events[-1]["message"] == "wrong data"


def test_nodes_are_cordoned_and_drained(person: Visit, house: tuple[Fleet, str]) -> None:
    page = person.open("/nodes")
    page.click("#node-0 >> text=Cordon")
    expect(page.locator("#node-0 .badge")).to_have_text("Cordoned")
    page.click("#node-1 >> text=Drain")
    expect(page.locator("#drain")).to_contain_text("Drain node-1?")
    page.click("#drain .danger")
    expect(page.locator("#node-1 .badge")).to_have_text("Cordoned, empty")


def test_theme_can_be_chosen(person: Visit) -> None:
    page = person.open("/")
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(14, 20, 19)'"
    assert not page.evaluate(dark)
    page.click("[data-theme-toggle]")
    page.click("[data-theme-toggle]")
    assert page.evaluate(dark)
    page.reload()
    assert page.evaluate(dark)
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('.meter .level')).transitionDuration") == "0s"


def test_a_lost_server_is_said_and_forgiven(browser: Browser, house: tuple[Fleet, str]) -> None:
    with visit(browser, house[1]) as seen:
        seen.expected = ("ERR_INTERNET_DISCONNECTED", "htmx:afterRequest", "htmx:sendError")
        seen.sign_in(TOKEN)
        seen.context.set_offline(True)
        expect(seen.page.locator(".lost")).to_be_visible()
        expect(seen.page.locator("a.row")).to_have_count(12)
        seen.context.set_offline(False)
        expect(seen.page.locator(".lost")).to_be_hidden()
        assert seen.errors == []


def test_a_revoked_session_leads_to_the_login(person: Visit) -> None:
    person.expected = ("401",)
    page = person.open("/")
    person.context.clear_cookies()
    page.wait_for_url(re.compile("/login"))


def test_hostile_text_runs_nothing(person: Visit, house: tuple[Fleet, str]) -> None:
    fleet = house[0]
    job = fleet.find({"project": "default", "name": "digits"})
    everything = " ".join(HOSTILE)
    job["labels"] = {h: h for h in HOSTILE}
    job["status"]["message"] = everything
    job["status"]["progress"]["metrics"] = dict.fromkeys(HOSTILE, 1.0)
    fleet.series["digits"] = {h: [[0, 0.0, 1.0], [1, 1.0, 2.0]] for h in HOSTILE}
    fleet.event("Job", "default", "digits", everything, everything, actor=everything)
    fleet.job(HOSTILE[0], "Running", HOSTILE[1], age=3, project=HOSTILE[2], user=HOSTILE[3], started=1)
    fleet.write("digits", *(f"[rank 0] {h}" for h in HOSTILE))
    for path in ("/", "/jobs/default/digits", "/events", "/nodes", "/?q=%3Cscript%3E"):
        page = person.open(path)
        _settle(page)
        if "digits" in path:
            expect(page.locator(".log div").last).to_contain_text("gnp.exe")
            expect(page.locator("[data-charts] .plot")).to_have_count(8)
            page.fill("#log-q", "<script>")
            expect(page.locator("[data-hits]")).to_contain_text("of")
            assert (
                page.evaluate(
                    "/[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e]/.test(document.querySelector('.log').textContent)"
                )
                is False
            )
        assert "owned" not in page.title()
        assert page.locator("main img, main script, main iframe").count() == 0
        assert page.evaluate(
            "[...document.querySelectorAll('*')].every(n => [...n.attributes].every(a => !a.name.startsWith('on')))"
        )
