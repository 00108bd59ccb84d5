"""Runs after the sweep: reads what its tasks left and names the best."""

from __future__ import annotations

import json
import os
from pathlib import Path

found = [json.loads(path.read_text()) for path in sorted(Path(os.environ.get("RESULTS", "results")).glob("*.json"))]
for one in sorted(found, key=lambda one: -one["accuracy"]):
    print(f"learning rate {one['rate']:<8g} accuracy {one['accuracy']:.4f}")
print(f"best: {max(found, key=lambda one: one['accuracy'])['rate']:g}")
