"""The console of a real `penstock up`, with real jobs, in Chromium."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.console.browser import Visit, chromium, until, visit
from tests.system.house import House, house

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]

# Two ranks that report, print what a terminal would obey and a page might, and end when told to.
TRAIN = r"""
import json, os, time
rank = int(os.environ["RANK"])
for step in range(1, 100_000):
    report = {"step": step, "total_steps": 400, "loss": 2.0 / step, "accuracy": 1 - 1 / step}
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), (json.dumps(report) + "\n").encode())
    print(f"rank {rank} at step {step} <script>document.title='owned'</script> \x1b[31mred\x1b[0m \x1b]0;owned\x07", flush=True)
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    with house("--local-nodes", "2") as one:
        yield one


@pytest.fixture
def person(browser: Browser, server: House) -> Iterator[Visit]:
    with visit(browser, server.url) as seen:
        yield seen.sign_in(server.token)
        assert seen.errors == []
        assert seen.foreign == []


def test_a_job_from_its_first_line_to_its_cancel(person: Visit, server: House) -> None:
    name = server.run([sys.executable, "-c", TRAIN], procs=2, launcher="none", name="training", grace_period="1s")
    page = person.page  # the list was open before the job was there
    row = page.locator("tr", has=page.get_by_role("link", name=name, exact=True))
    expect(row.locator(".badge")).to_have_text("Running", timeout=20_000)
    expect(row.locator(".c-progress")).to_contain_text("of 400")
    expect(row.locator(".spark")).to_be_visible()
    row.get_by_role("link").click()
    expect(page.locator("h1")).to_have_text(name)
    log = page.locator(".log")
    expect(log.locator("div").last).to_contain_text("<script>document.title='owned'</script> red")
    until(lambda: {"0", "1"} <= set(log.locator("b").all_text_contents()))
    before = log.locator("div").count()
    until(lambda: log.locator("div").count() > before + 5)
    expect(page.locator(".plot canvas")).to_have_count(2)
    expect(page.locator(".lane-label").nth(1)).to_contain_text("Attempt 1")
    assert "owned" not in page.title()
    page.select_option("[data-rank]", "1")
    expect(log.locator("b")).to_have_count(0)
    expect(log.locator("div").last).to_contain_text("rank 1 at step")
    page.click("button[data-open=cancel]")
    page.fill("#cancel-reason", "seen enough")
    page.click("#cancel .danger")
    expect(page.locator(".title-line .badge")).to_have_text("Cancelled", timeout=20_000)
    expect(page.locator(".story")).to_contain_text("seen enough")
    expect(page.locator(".ranks")).to_contain_text("SIGTERM (15)")
    expect(page.locator(".log-state")).to_contain_text("End of the log", timeout=20_000)
    assert server.phase(name) == "Cancelled"


def test_a_failure_says_why(person: Visit, server: House) -> None:
    name = server.run(["sh", "-c", "echo so far so good; exit 7"], name="breaks")
    server.ended(name)
    page = person.open(f"/jobs/default/{name}")
    expect(page.locator(".title-line .badge")).to_have_text("Failed")
    expect(page.locator(".why")).to_contain_text("exited with code 7")
    expect(page.locator(".exit")).to_have_text("exit 7")
    expect(page.locator(".log div")).to_have_text(["so far so good"])
    expect(page.locator(".log-state")).to_have_text("End of the log, 1 line")


def test_what_can_never_run_says_what_would_help(person: Visit, server: House) -> None:
    name = server.run(["true"], name="giant", resources={"cpus": 4096})
    server.reach(name, "Pending")
    until(lambda: server.job(name)["status"]["reason"] == "Unschedulable")
    page = person.open(f"/jobs/default/{name}")
    expect(page.locator(".why")).to_contain_text("CPUs")
    expect(page.locator(".title-line .reason")).to_have_text("Unschedulable")
    expect(page.locator(".log-state")).to_contain_text("once the job runs")


QUEUES = """
queues:
  - {name: training, quotas: {default: {cpus: 1}}}
  - {name: spare}
  - {name: default}
"""


def test_queues_say_who_waits_and_why(person: Visit, server: House, tmp_path: Path) -> None:
    (tmp_path / "queues.yaml").write_text(QUEUES)
    server.cli("queues", "apply", "-f", str(tmp_path / "queues.yaml"))
    try:
        first = server.run(["sleep", "60"], name="holds-it", queue="training", resources={"cpus": 1})
        server.reach(first, "Running")
        second = server.run(["true"], name="stands-behind", queue="training", resources={"cpus": 1})
        server.run(["true"], name="elsewhere", queue="spare", resources={"cpus": 4096})
        until(lambda: server.job(second)["status"]["reason"] == "QuotaExceeded")
        page = person.open("/queues")
        expect(page.locator(".quotas tr", has_text="training").locator(".c-waiting")).to_have_text("1")
        expect(page.locator(".heads li", has_text=second)).to_contain_text("queue training may have 0 more now")
        expect(page.locator(".heads li", has_text="elsewhere")).to_contain_text("Unschedulable")
        page.click(".c-waiting a >> nth=0")
        expect(page.locator("a.row")).to_have_text([second])
        listed = [job["name"] for job in server.get("jobs?queue=training&phase=active")["items"]]
        assert listed == [second, first]
        assert server.get("jobs/summary?queue=spare")["phases"] == {"Pending": 1}
    finally:
        for name in ("stands-behind", "elsewhere", "holds-it"):
            server.client.jobs.cancel(name)
        (tmp_path / "queues.yaml").write_text("queues: [{name: default}]")
        server.cli("queues", "apply", "-f", str(tmp_path / "queues.yaml"))


def test_an_array_shows_its_tasks(person: Visit, server: House) -> None:
    name = server.run(["sh", "-c", "exit $((PENSTOCK_ARRAY_INDEX % 2))"], name="sweep", array={"count": 4})
    server.ended(name)
    page = person.open(f"/jobs/default/{name}")
    expect(page.locator(".array")).to_contain_text("4 tasks: 2 succeeded, 2 failed")
    page.click(".array a")
    expect(page.locator("a.row")).to_have_count(4)


def test_nodes_and_events(person: Visit, server: House) -> None:
    page = person.open("/nodes")
    expect(page.locator(".node")).to_have_count(2)
    page.click("#node-1 >> text=Cordon")
    expect(page.locator("#node-1 .badge")).to_contain_text("Cordoned")
    page.click("#node-1 >> text=Uncordon")
    expect(page.locator("#node-1 .badge")).to_have_text("Ready")
    page = person.open("/events")
    page.fill("#f-reason", "Uncordoned")
    expect(page.locator(".c-of")).to_have_text(["node-1Node"])
    page.fill("#f-reason", "")
    expect(page).to_have_url(re.compile("/events$"))
    page.click("text=Verify the chain")
    expect(page.locator(".ledger .badge")).to_have_text("Chain holds")


def test_signing_out_ends_the_session(browser: Browser, server: House) -> None:
    with visit(browser, server.url) as seen:
        seen.sign_in(server.token)
        kept: Any = seen.context.cookies()
        seen.page.click("[aria-label='Sign out']")
        expect(seen.page.locator("#token")).to_be_visible()
        seen.context.add_cookies(kept)  # a copy of the cookie opens nothing any more
        seen.open("/nodes")
        expect(seen.page.locator("#token")).to_be_visible()
        assert seen.foreign == []
        assert seen.errors == []
