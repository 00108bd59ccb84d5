"""What Envoy is told, and the checks before it: pure, so for any gateway that Hypothesis thinks of."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.serving.gateway.check import check, check_rendered, settle
from penstock.serving.gateway.render import (
    BOOTSTRAP,
    BUCKETS_MS,
    CLUSTERS,
    LIMITS,
    LISTENERS,
    ROUTE_FILE,
    inline,
    render,
)
from penstock.serving.gateway.spec import Backend, Gateway, Match, RateLimit, ServiceRoute, VersionRoute
from penstock.serving.gateway.words import eds_file, version_of_cluster
from penstock.serving.state import WHOLE

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
DIGEST = "0" * 64
FEWER = settings(max_examples=max(20, settings().max_examples // 5))  # each renders whole gateways


@st.composite
def services(draw: st.DrawFn, ident: tuple[str, str], base: int) -> ServiceRoute:
    count = draw(st.integers(1, 3))
    cuts = sorted(draw(st.integers(0, WHOLE)) for _ in range(count - 1))
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, WHOLE], strict=True)]
    grpc = draw(st.booleans())
    versions = tuple(
        VersionRoute(
            number + 1,
            tuple(
                Backend(f"r{one}", "127.0.0.1", base + 10 * number + one, base + 500 + 10 * number + one if grpc else 0)
                for one in range(draw(st.integers(0, 3)))
            ),
            weight=weights[number],
            mirror=draw(st.sampled_from([0, 0, 5000, WHOLE])),
        )
        for number in range(count)
    )
    project, name = ident
    matches = [Match("", f"/{project}/{name}/")]
    if draw(st.booleans()):
        matches.append(Match(f"{name}.{project}.example.com", "/", keep=draw(st.booleans())))
    return ServiceRoute(
        project,
        name,
        tuple(matches),
        versions,
        timeout=draw(st.floats(0.1, 3600)),
        retries=draw(st.integers(0, 10)),
        rate_limit=draw(st.sampled_from([None, RateLimit(5, 1.0)])),
        keys=draw(st.sampled_from([(), (DIGEST,)])),
        activator=draw(st.sampled_from([None, ("127.0.0.1", 9)])),
        comparator=draw(st.sampled_from([None, ("127.0.0.1", 8), ("127.0.0.1", 7)])),
        protocol=draw(st.sampled_from(["http1", "http2"])),
        health=draw(st.sampled_from(["", "/v2/health/ready"])),
    )


@st.composite
def gateways(draw: st.DrawFn) -> Gateway:
    idents = draw(st.lists(st.tuples(NAMES, NAMES), max_size=4, unique=True))
    there = tuple(draw(services(ident, 10_000 + 1000 * number)) for number, ident in enumerate(idents))
    secured = draw(st.booleans())
    return Gateway(
        "127.0.0.1",
        8080,
        there,
        tls_cert="/c/cert.pem" if secured else None,
        tls_key="/c/key.pem" if secured else None,
        access_log=draw(st.sampled_from([None, "/l/access.log"])),
        otlp=draw(st.sampled_from([None, ("127.0.0.1", 4318)])),
    )


def one(**fields: Any) -> Gateway:
    backends = (Backend("a", "127.0.0.1", 9001), Backend("b", "127.0.0.1", 9002))
    service = ServiceRoute("default", "digits", (Match("", "/default/digits/"),), (VersionRoute(1, backends),))
    return Gateway("127.0.0.1", 8080, (replace(service, **fields),))


def resources(files: dict[str, str], path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files[path])["resources"]
    return found


@FEWER
@given(gateways())
def test_what_is_rendered_holds_together(gateway: Gateway) -> None:
    """Text parses, every reference resolves, names are unique, weights are whole, and it is the same again."""
    assert check(gateway) == []
    assert settle(gateway) == (gateway, [])
    files = render(gateway, "/f")
    assert files == render(replace(gateway, services=gateway.services[::-1]), "/f")
    clusters = resources(files, CLUSTERS)
    routes = resources(files, ROUTE_FILE)[0]
    assert check_rendered(clusters, routes) == []
    names = [cluster["name"] for cluster in clusters]
    assert len(set(names)) == len(names)
    for cluster in clusters:
        if cluster["type"] == "EDS":
            assert resources(files, eds_file(cluster["name"]))[0]["cluster_name"] == cluster["name"]
            assert (
                cluster["eds_cluster_config"]["eds_config"]["path_config_source"]["path"]
                == f"/f/{eds_file(cluster['name'])}"
            )
    domains = [domain for host in routes["virtual_hosts"] for domain in host["domains"]]
    assert len(set(domains)) == len(domains)
    for host in routes["virtual_hosts"]:
        for route in host["routes"]:
            weighted = route.get("route", {}).get("weighted_clusters")
            grpc = "grpc" in route["match"]
            assert weighted is None or grpc or sum(entry["weight"] for entry in weighted["clusters"]) == WHOLE
    for path, text in files.items():
        assert json.loads(text)
        assert path == BOOTSTRAP or path.count("/") == 1


@FEWER
@given(gateways(), st.data())
def test_a_weight_touches_the_routes_alone(gateway: Gateway, data: st.DataObject) -> None:
    """Clusters that change lose their connections, and listeners drain theirs."""
    there = [service for service in gateway.services if len(service.versions) > 1]
    if not there:
        return
    service = data.draw(st.sampled_from(there))
    turned = replace(
        service,
        versions=tuple(
            replace(version, weight=other.weight)
            for version, other in zip(service.versions, service.versions[::-1], strict=True)
        ),
    )
    moved = replace(gateway, services=tuple(turned if each is service else each for each in gateway.services))
    before, after = render(gateway, "/f"), render(moved, "/f")
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {ROUTE_FILE}


@FEWER
@given(gateways())
def test_a_replica_that_comes_or_goes_touches_its_endpoints_alone(gateway: Gateway) -> None:
    for service in gateway.services:
        for version in service.versions:
            if len(version.backends) < 2:
                continue
            fewer = replace(version, backends=version.backends[:-1])
            changed = replace(service, versions=tuple(fewer if v is version else v for v in service.versions))
            moved = replace(gateway, services=tuple(changed if each is service else each for each in gateway.services))
            before, after = render(gateway, "/f"), render(moved, "/f")
            different = {path for path in before if before[path] != after.get(path)}
            assert different
            assert all(path.startswith(f"eds/{service.project}.{service.name}.{version.version}") for path in different)


@FEWER
@given(gateways(), st.integers(0, 5))
def test_of_so_many_files_the_ones_that_are_there_stay(gateway: Gateway, most: int) -> None:
    every = {path for path in render(gateway, "/f") if path.startswith("eds/")}
    files = render(gateway, "/f", inline(gateway, (), most))
    there = {path for path in files if path.startswith("eds/")}
    assert len(there) == min(most, len(every))
    again = render(gateway, "/f", inline(gateway, sorted(every)[-most:] if most else [], most))
    assert {path for path in again if path.startswith("eds/")} == set(sorted(every)[-most:] if most else [])
    assert len(resources(files, CLUSTERS)) == len(resources(again, CLUSTERS))


def test_versions_are_read_back_from_names() -> None:
    assert version_of_cluster("default/digits/12") == ("default", "digits", 12)
    assert version_of_cluster("default/digits/12/grpc") == ("default", "digits", 12)
    assert version_of_cluster("comparator-127-0-0-1-9") is None
    assert version_of_cluster("otlp") is None


def test_the_longest_path_is_asked_first_and_a_path_ends_where_a_word_does() -> None:
    backends = (Backend("a", "127.0.0.1", 9001),)
    short = ServiceRoute("p", "short", (Match("", "/m"),), (VersionRoute(1, backends),))
    long = ServiceRoute("p", "long", (Match("", "/m/deep/"),), (VersionRoute(1, (Backend("b", "127.0.0.1", 9002),)),))
    files = render(Gateway("127.0.0.1", 8080, (short, long)), "/f")
    routes = resources(files, ROUTE_FILE)[0]["virtual_hosts"][0]["routes"]
    assert [route["match"] for route in routes] == [
        {"path_separated_prefix": "/m/deep"},
        {"path_separated_prefix": "/m"},
    ]
    rewrite = routes[0]["route"]["regex_rewrite"]
    for path, rest in {"/m/deep": "/", "/m/deep/": "/", "/m/deep/v2/x": "/v2/x"}.items():
        assert re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path) == rest


def test_a_service_of_no_weight_says_so_itself() -> None:
    gateway = one(versions=(VersionRoute(1, (), weight=0),))
    assert check(gateway) == []
    route = resources(render(gateway, "/f"), ROUTE_FILE)[0]["virtual_hosts"][0]["routes"][0]
    assert route["direct_response"]["status"] == 503


def test_rate_limits_lie_apart_from_routes() -> None:
    files = render(one(rate_limit=RateLimit(7, 60.0)), "/f")
    limits = resources(files, LIMITS)[0]["typed_config"]["descriptors"]
    assert [entry["token_bucket"]["max_tokens"] for entry in limits] == [7]
    assert limits[0]["entries"] == [{"key": "service", "value": "default/digits"}]


def test_buckets_are_fine_enough_for_a_ratio_of_p95() -> None:
    assert list(BUCKETS_MS) == sorted(set(BUCKETS_MS))
    steps = [b / a for a, b in itertools.pairwise(BUCKETS_MS) if 20 <= a <= 50_000]
    assert max(steps) < 1.2


BAD: dict[str, tuple[Gateway, str]] = {
    "weights": (one(versions=(VersionRoute(1, (), weight=9000), VersionRoute(2, (), weight=900))), "sum to 10000"),
    "negative": (one(versions=(VersionRoute(1, (), weight=-1), VersionRoute(2, (), weight=WHOLE + 1))), "sum to 10000"),
    "twice": (one(versions=(VersionRoute(1, ()), VersionRoute(1, (), weight=0))), "twice"),
    "mirror": (one(versions=(VersionRoute(1, (), mirror=WHOLE + 1),)), "mirrored share"),
    "name": (one(name="../x"), "not a name"),
    "host": (one(matches=(Match("a b", "/"),)), "no host"),
    "prefix": (one(matches=(Match("", "x"),)), "is no path"),
    "address": (one(versions=(VersionRoute(1, (Backend("a", "node-1", 80),)),)), "no IP address"),
    "port": (one(versions=(VersionRoute(1, (Backend("a", "10.0.0.1", 70_000),)),)), "no port"),
    "shared": (
        one(
            versions=(
                VersionRoute(1, (Backend("a", "10.0.0.1", 80),)),
                VersionRoute(2, (Backend("b", "10.0.0.1", 80),), 0),
            )
        ),
        "another version's",
    ),
    "key": (one(keys=("secret",)), "64 hexadecimal"),
    "limit": (one(rate_limit=RateLimit(1, 0.001)), "50 ms"),
    "timeout": (one(timeout=0), "from 1 ms"),
    "wildcard": (one(matches=(Match("*", "/"),)), "no host"),
    "host with port": (one(matches=(Match("a.example:80", "/"),)), "no host"),
    "activator": (one(activator=("localhost", 80)), "no IP address"),
    "own port": (replace(one(), port=70_000), "no port"),
    "tls": (replace(one(), tls_cert="/a"), "come together"),
    "relative": (replace(one(), access_log="a.log"), "absolute path"),
    "same place": (
        replace(
            one(), services=(*one().services, ServiceRoute("default", "other", (Match("", "/default/digits"),), ()))
        ),
        "default/digits's already",
    ),
    "same service": (replace(one(), services=one().services * 2), "is there twice"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_hold_together_is_refused_or_left_out(what: str) -> None:
    gateway, message = BAD[what]
    settled, left_out = settle(gateway)
    problems = [*check(gateway), *left_out]
    assert any(message in problem.message for problem in problems), problems
    assert settle(settled) == (settled, [])


def test_a_mistake_costs_no_more_than_it_must() -> None:
    wrong = VersionRoute(1, (Backend("a", "node-1", 80), Backend("b", "10.0.0.1", 80)))
    bad = ServiceRoute("default", "bad", (Match("", "/default/bad/"), Match("a b", "/")), (wrong,))
    worse = replace(bad, name="worse", timeout=0)
    settled, left_out = settle(replace(one(), services=(bad, worse, *one().services)))
    assert [service.name for service in settled.services] == ["bad", "digits"]
    assert [backend.replica for backend in settled.services[0].versions[0].backends] == ["b"]
    assert settled.services[0].matches == bad.matches[:1]
    assert len(left_out) == 3


def test_nobody_takes_anothers_path_even_by_a_longer_one() -> None:
    thief = ServiceRoute(
        "aaa",
        "thief",
        tuple(
            Match("", path) for path in ("/default/digits", "/default/digits/v2/models", "/aaa/thief/", "/mine", "/")
        ),
        (VersionRoute(1, (Backend("t", "10.0.0.9", 80),)),),
    )
    settled, _ = settle(replace(one(), services=(thief, *one().services)))
    assert [match.prefix for match in settled.services[0].matches] == ["/aaa/thief/", "/mine", "/"]
    assert settled.services[1] == one().services[0]


def test_a_route_to_nowhere_and_a_token_that_envoy_does_not_know_are_seen() -> None:
    files = render(one(), "/f")
    clusters, routes = resources(files, CLUSTERS), resources(files, ROUTE_FILE)[0]
    assert any("default/digits/1" in problem.message for problem in check_rendered([], routes))
    routes["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"]["retry_on"] = "5xx,conect-failure"
    assert ["conect-failure" in problem.message for problem in check_rendered(clusters, routes)] == [True]


def test_the_listener_is_one_whatever_the_services() -> None:
    first = render(one(), "/f")[LISTENERS]
    assert (
        first == render(one(keys=(DIGEST,), comparator=("127.0.0.1", 9), rate_limit=RateLimit(1, 1.0)), "/f")[LISTENERS]
    )
