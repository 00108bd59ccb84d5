"""The pages of services: what they show, what they refuse, and view models that are total over what the API may answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from penstock.serving import page
from tests.console import services
from tests.console.conftest import ORIGIN
from tests.console.fleet import TOKEN, Fleet

NOW = 1_795_000_000.0
ONE = "/services/default/digits"


def test_the_list_and_what_leads_to_it(browser: TestClient) -> None:
    assert 'href="/services"' in browser.get("/").text
    text = browser.get("/services").text
    for word in ("digits", "RollingOut", "152", "50 ms", "0.11%", "v1 90% · v2 10%", "of 2"):
        assert word in text, word


def test_a_service_with_all_that_is_known_of_it(browser: TestClient) -> None:
    text = browser.get(ONE).text
    for word in (
        "http://127.0.0.1:8080/default/digits",
        "/models/digits-2.onnx",
        "Requests a second",
        "Latency of version 2",
        "Replicas against load",
        "version 2 in the place of 1",
        "error rate",
        "0.2% and 0.1%",
        "75%",
        "top-1: 3 and 8",
        "1.3 at the mean",
        "0.000254 <small>USD",
        "per 1,000 requests",
        "loaded 800 ms",
        "7 too large",
        "Earlier rollouts",
    ):
        assert word in text, word
    assert text.count("<polyline") > 10


def test_an_empty_room_says_how_to_begin(browser: TestClient, fleet: Fleet) -> None:
    fleet.services.items.clear()
    assert "penstock serve model.onnx" in browser.get("/services").text
    assert browser.get(ONE).status_code == 404


def test_a_service_before_its_first_request(browser: TestClient, fleet: Fleet) -> None:
    [one] = fleet.services.items
    one["status"] |= {"phase": "Starting", "versions": [], "traffic": None, "rollout": None}
    fleet.services.rollouts.clear()
    text = browser.get(ONE).text
    assert "does not tell of batches" in text
    assert 'data-open="promote"' not in text


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_buttons_do_what_they_say(browser: TestClient, fleet: Fleet, verb: str) -> None:
    assert f'data-open="{verb}"' in browser.get(ONE).text
    answer = browser.post(f"{ONE}/{verb}", headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["location"]) == (303, ONE)
    assert fleet.services.asked == [f"{verb} digits"]
    assert browser.post(f"{ONE}/scale", headers={"Origin": ORIGIN}).status_code == 404
    assert browser.post(f"{ONE}/{verb}", headers={"Origin": "http://evil.example"}).status_code == 403


def test_who_may_only_look_has_no_buttons(fleet: Fleet) -> None:
    fleet.role = "viewer"  # of the fleet: reads every project
    fleet.services.items[0]["project"] = "vision"
    with TestClient(fleet.app(), base_url=ORIGIN, follow_redirects=False) as viewer:
        viewer.post("/login", data={"token": TOKEN, "next": "/"}, headers={"Origin": ORIGIN})
        text = viewer.get("/services/vision/digits").text
        refused = viewer.post("/services/vision/digits/promote", headers={"Origin": ORIGIN})
    assert refused.status_code in {403, 404}
    assert fleet.services.asked == []
    assert "<h1>digits</h1>" in text
    assert "/promote" not in text
    assert 'data-open="rollback"' not in text


def test_strangers_text_stays_text(browser: TestClient, fleet: Fleet) -> None:
    evil = "<script>document.title='owned'</script>"
    [one] = fleet.services.items
    one["status"] |= {"message": evil, "reason": evil, "url": evil}
    one["status"]["versions"][0]["template"]["model"] = evil
    one["status"]["versions"][0]["message"] = evil
    fleet.services.rollouts[0]["message"] = evil
    fleet.services.rollouts[0]["shadow"]["examples"] = [services.example(evil) | {"differs": evil, "candidate": evil}]
    fleet.services.rollouts[0]["evidence"][1]["tests"][0]["words"] = evil
    for path in ("/services", ONE):
        assert evil not in browser.get(path).text
        assert "&lt;script&gt;" in browser.get(path).text


# -- view models

values = st.one_of(st.none(), st.floats(0, 1e9))


@given(st.lists(st.tuples(st.floats(1, 1e9), values, values), max_size=30))
def test_charts_of_any_history(rows: list[tuple[float, Any, Any]]) -> None:
    rows.sort(key=lambda row: row[0])
    names = ("requests", "errors", "p50", "p95", "p99", "active", "ready")
    line = {"at": [r[0] for r in rows], "seconds": [5.0] * len(rows)}
    line |= {
        name: [r[1 + n % 2] if name.startswith("p") else r[1] or 0.0 for r in rows] for n, name in enumerate(names)
    }
    found = page.charts({"every": 5.0, "items": [{"version": 1, **line}]})
    for chart in found.charts if found is not None else ():
        for drawn in chart.lines:
            for path in drawn.paths:
                for point in path.split():
                    x, y = map(float, point.split(","))
                    assert 0 <= x <= page.WIDE
                    assert 0 <= y <= page.HIGH


def test_a_gap_is_a_gap() -> None:
    chart = page.charts(services.history(NOW))
    assert chart is not None
    p95 = next(one for one in chart.charts if one.title == "Latency of version 1").lines[1]
    assert (p95.name, len(p95.paths), p95.newest) == ("P95", 2, "50 ms")


def test_shadow_of_a_rollout_that_is_over_is_its_last_decision() -> None:
    one = services.rollout(NOW)
    one["shadow"] = None
    assert page.rollout(one).shadow is None
    one["evidence"][1] |= {
        "compared": 10,
        "agreed": 9,
        "failed": 0,
        "slower_s": 0.001,
        "examples": [services.example()],
    }
    found = page.rollout(one).shadow
    assert found is not None
    assert (found.share, found.slower, len(found.examples)) == ("90%", "1 ms slower", 1)
