"""A service's page in Chromium over a real `penstock up` with traffic: charts, a shadow's differences, and a rollback by its button."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.console import served
from tests.console.browser import chromium, visit
from tests.system.house import House

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]


@pytest.fixture
def server() -> Iterator[House]:
    with served.house() as made:
        yield made


def test_a_candidate_in_shadow_is_looked_at_and_taken_back(server: House) -> None:
    url = served.serve(server)
    with served.callers(url), chromium() as browser, visit(browser, server.url) as seen:
        page = seen.sign_in(server.token).page
        page.get_by_role("link", name="Services").click()
        row = page.locator("tr", has=page.get_by_role("link", name=served.NAME, exact=True))
        expect(row.locator(".badge")).to_have_text("Ready")
        expect(row.locator(".c-figure").nth(2)).to_contain_text("ms", timeout=30_000)
        row.get_by_role("link").click()
        expect(page.locator(".url")).to_have_text(url)
        expect(page.locator(".plots-s polyline").first).to_be_attached(timeout=30_000)
        expect(page.locator(".batches")).to_be_visible(timeout=20_000)
        undecided = {"min_requests": 100_000, "agreement": None, "p95_ratio": None, "p50_ratio": None}
        other = served.spec(server, "other", strategy="shadow", shadow_time="1m", analysis=undecided)
        server.client.services.replace(served.NAME, other)
        first = page.locator(".examples details").first
        expect(first).to_contain_text("against", timeout=60_000)
        first.locator("summary").click()
        expect(first.locator("pre").first).to_contain_text('"inputs"')
        expect(page.locator(".stats", has_text="Per 1,000 requests")).to_contain_text("0.0")
        page.click("button[data-open=rollback]")
        page.click("#rollback .danger")
        expect(page.locator(".panel", has_text="Rollout: version 2").locator(".badge").first).to_have_text(
            "RolledBack", timeout=20_000
        )
        expect(page.locator("button[data-open=rollback]")).to_have_count(0)
        assert seen.errors == []
        assert seen.foreign == []
