"""Take the pictures of docs/screenshots/ from real servers: .venv/bin/python tools/screenshots.py [--only machine|fleet|service]

Starts `penstock up` in a temporary folder, trains examples/digits on two ranks, kills one of them, queues what cannot run
yet, and photographs the console in Chromium; then the same with a simulated fleet under load. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import sys
import time
import zlib
from pathlib import Path

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.console import served  # noqa: E402  # because the tests' folder is found by the line above
from tests.console.browser import chromium, visit  # noqa: E402  # because of the same
from tests.system.house import House, house, processes_of, until  # noqa: E402  # because of the same

MOST_BYTES = 200_000
DEMO = "demo"
PICTURES = (
    # name, path, width, height, scheme
    ("jobs-light", "/", 1280, 800, "light"),
    ("job-light", f"/jobs/default/{DEMO}", 1200, 1040, "light"),
    ("job-dark", f"/jobs/default/{DEMO}", 1200, 1040, "dark"),
    ("waiting-dark", "/jobs/default/llm-pretrain", 1280, 800, "dark"),
    ("nodes-dark", "/nodes", 1280, 560, "dark"),
    ("events-light", "/events", 1280, 800, "light"),
    ("jobs-phone", "/", 375, 760, "dark"),
    ("job-phone", f"/jobs/default/{DEMO}", 375, 760, "light"),
)
FLEET = ("--simulate", "64x8", "--simulate-load", "1.1", "--simulate-speed", "300", "--simulate-mtbf", "40d")
REPLAY = "replay"
CANARY = {
    "strategy": "canary",
    "steps": [{"weight": 25, "time": "10s"}],
    "analysis": {"min_requests": 200, "p95_ratio": 4, "p50_ratio": 4},
}
SHADOWED = {"strategy": "shadow", "shadow_time": "5m", "analysis": {"min_requests": 100_000, "agreement": None}}
FLEET_PICTURES = (
    ("nodes-map-dark", "/nodes", 1280, 620, "dark"),
    ("queues-light", "/queues", 1280, 900, "light"),
    ("capacity-light", REPLAY, 1280, 1120, "light"),
    ("what-if-dark", "/capacity", 1280, 660, "dark"),
    ("cost-light", "/cost", 1280, 860, "light"),
    ("queues-phone", "/queues", 375, 760, "dark"),
)


def submit(server: House) -> None:
    """A morning's work: what ended well and badly, what waits, and a training that loses a rank and goes on."""
    server.run(["sh", "-c", "echo tokenized 1,797 documents"], name="tokenize")
    server.ended("tokenize")
    server.run([sys.executable, "-c", "import sys; sys.exit('no such dataset: /data/imagenet')"], name="prep-imagenet")
    server.ended("prep-imagenet")
    server.run(["sh", "-c", "sleep 1; exit $((PENSTOCK_ARRAY_INDEX == 3))"], name="sweep", array={"count": 6})
    server.ended("sweep")
    server.cli("apply", "-f", str(ROOT / "examples/digits/job.yaml"))
    server.run([sys.executable, "-V"], name="evaluate", depends_on=["digits"])
    server.run(["python", "pretrain.py"], name="llm-pretrain", nodes=2, procs=8, resources={"gpus": 8})


def lose_a_rank(server: House, name: str) -> None:
    """SIGKILL to one of its ranks once it has trained for a while; wait until it trains again."""

    def trained(steps: int) -> bool:
        return int((server.job(name)["status"]["progress"] or {}).get("step") or 0) >= steps

    until(lambda: trained(40), "the training does not report", 120)
    job = server.job(name)["id"]
    ranks = [pid for pid in processes_of(job) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(ranks), signal.SIGKILL)
    until(lambda: server.job(name)["status"]["restarts"] > 0, "no restart is seen", 120)
    until(lambda: trained(60), "the training does not go on", 120)


def photograph(browser: Browser, server: House, folder: Path, job: str) -> None:
    for name, path, width, height, scheme in PICTURES:
        with visit(browser, server.url, width=width, height=height, color_scheme=scheme) as seen:
            seen.sign_in(server.token)
            page = seen.open(path.replace(DEMO, job))
            if path.endswith(DEMO):
                page.wait_for_selector(".plot canvas")
                page.wait_for_selector(".log div")
            page.wait_for_timeout(1200)
            save(page, folder / f"{name}.png")


def live_fleet(server: House) -> str:
    """A simulated fleet some minutes into its load, with nodes away, budgets set and a replay done; the replay's address."""
    until(lambda: server.get("capacity/sources")["own"]["jobs"] > 250, "the fleet runs too little", 120)
    for verb, node in (("cordon", "node-13"), ("drain", "node-42"), ("lose", "node-27")):
        server.cli(verb, node)
    server.cli("budget", "set", "language", "--amount", "100")
    server.cli("budget", "set", "science", "--amount", "2000")
    scenario = {"nodes": 20, "gpus_per_node": 8, "queues": "none"}
    asked = {
        "source": {"kind": "synth", "cluster": "philly", "jobs": 20_000, "seed": 7},
        "a": scenario,
        "b": scenario | {"nodes": 24, "backfill": "easy"},
    }
    body, headers = json.dumps(asked).encode(), {"content-type": "application/json"}
    made = server.client.transport.request("POST", "/api/v1/capacity/replays", body=body, headers=headers).json()
    until(lambda: server.get(f"capacity/replays/{made['id']}")["state"] == "done", "the replay does not end", 120)
    until(lambda: server.get("queues/waiting")["items"], "nobody waits", 120)
    return f"/capacity/{made['id']}"


def photograph_fleet(browser: Browser, server: House, folder: Path, replay: str) -> None:
    for name, path, width, height, scheme in FLEET_PICTURES:
        with visit(browser, server.url, width=width, height=height, color_scheme=scheme) as seen:
            seen.sign_in(server.token)
            page = seen.open(replay if path == REPLAY else path)
            if path == REPLAY:
                page.wait_for_selector(".pairs canvas")
            page.wait_for_timeout(1200)
            save(page, folder / f"{name}.png")


def photograph_service(browser: Browser, server: House, folder: Path) -> None:
    """A canary that was promoted, and then another model in its shadow, whose answers differ."""
    services, watched = server.client.services, 25
    time.sleep(watched)
    canary = served.spec(server, "good", **CANARY) | {"env": {"OMP_NUM_THREADS": "1"}}
    services.replace(served.NAME, canary)
    until(lambda: services.rollouts(served.NAME)[0]["phase"] == "Promoted", "the canary is not promoted", 120)
    shadow = served.spec(server, "other", **SHADOWED) | {"env": {"OMP_NUM_THREADS": "1"}}
    services.replace(served.NAME, shadow)
    time.sleep(watched)
    with visit(browser, server.url, width=1200, height=1500, color_scheme="light") as seen:
        seen.sign_in(server.token)
        page = seen.open(f"/services/default/{served.NAME}")
        page.wait_for_selector(".examples li")
        page.wait_for_timeout(1200)
        save(page, folder / "service-light.png")


def save(page: Page, path: Path) -> None:
    path.write_bytes(squeezed(page.screenshot()))
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} is larger than {MOST_BYTES} bytes")


def squeezed(png: bytes) -> bytes:
    """The same picture with its data deflated as well as zlib can (PNG, third edition, section 5)."""
    kept, data, at = png[:8], b"", 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        elif kind == b"IEND":
            body = b"IDAT" + zlib.compress(zlib.decompress(data), 9)
            kept += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[at:]
        else:
            kept += png[at : at + 12 + length]
        at += 12 + length
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/screenshots")
    parser.add_argument("--only", choices=("machine", "fleet", "service"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.only in (None, "machine"):
        with house("--local-nodes", "2") as server, chromium() as browser:
            submit(server)
            lose_a_rank(server, "digits")
            photograph(browser, server, folder, "digits")
    if arguments.only in (None, "fleet"):
        with house(*FLEET) as server, chromium() as browser:
            photograph_fleet(browser, server, folder, live_fleet(server))
    if arguments.only in (None, "service"):
        with served.house() as server, served.callers(served.serve(server)), chromium() as browser:
            photograph_service(browser, server, folder)


if __name__ == "__main__":
    main()
