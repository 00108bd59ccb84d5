"""A training that slows down while it runs is told of by itself, and so is the end of it."""

from __future__ import annotations

import sys
from typing import Any

from tests.system.house import House, until

# The house as it is, but that it looks more often.
UP = """
import sys
from penstock.training import watching
watching.EVERY_S = 0.25
from penstock.app import main
sys.exit(main())
"""
TRAIN = """
import json, os, time
slow = os.environ["PENSTOCK_CKPT_DIR"] + "/slow"
for step in range(100_000):
    time.sleep(0.12 if os.path.exists(slow) else 0.04)
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
"""


def newest(house: House, name: str, reason: str) -> dict[str, Any] | None:
    events = house.get(f"projects/default/jobs/{name}/events?limit=100")["items"]
    return next((event for event in events if event["reason"] == reason), None)


def test_a_slow_down_and_its_end() -> None:
    with House(program=(sys.executable, "-c", UP)) as house:
        name = house.run(["python3", "-c", TRAIN], grace_period="1s")
        until(lambda: (house.job(name)["status"].get("progress") or {}).get("step", 0) > 250, house.log())
        assert newest(house, name, "SlowedDown") is None
        house.cli("exec", name, "--", "sh", "-c", ": >$PENSTOCK_CKPT_DIR/slow")
        event = until(lambda: newest(house, name, "SlowedDown"), house.log(), 30)
        assert event["data"]["slower"] > 1.5 and event["data"]["baseline_s"] < event["data"]["now_s"]
        assert house.job(name)["status"]["reason"] == "SlowedDown"
        why = house.get(f"projects/default/jobs/{name}/why")
        assert any("times as long as before" in words for words in why["evidence"]) and why["helps"]
        house.cli("exec", name, "--", "sh", "-c", "rm $PENSTOCK_CKPT_DIR/slow")
        until(lambda: newest(house, name, "SlowdownEnded"), house.log(), 30)
        assert not house.get(f"projects/default/jobs/{name}/why")["evidence"]
