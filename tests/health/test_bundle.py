"""Evidence for the vendor: one file, the same for the same content, each part hashed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from typing import Any

from penstock.health.bundle import bundle

LINE = "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus."
FINDINGS: list[dict[str, Any]] = [
    {"rule": "Xid", "code": "79", "source": "kmsg", "evidence": [LINE, LINE]},
    {"rule": "GpuMissing", "source": "nvml", "evidence": ["7 of 8"]},
]


def made() -> bytes:
    return bundle(
        "n1",
        1_800_000_000.0,
        node_facts={"name": "n1", "gpus": ["GPU-1"]},
        findings=FINDINGS,
        events=[{"seq": 1, "hash": "ab"}, {"seq": 2, "hash": "cd"}],
        incidents=["# Incident"],
        samples=[("DCGM_FI_DEV_GPU_TEMP", 'GPU-1, "hot"', [(1.0, 55.0), (2.0, 91.5)])],
    )


def test_every_file_is_in_the_manifest_with_its_hash() -> None:
    with zipfile.ZipFile(io.BytesIO(made())) as found:
        manifest = json.loads(found.read("manifest.json"))
        assert set(found.namelist()) == {"manifest.json", *manifest["files"]}
        for name, said in manifest["files"].items():
            body = found.read(name)
            assert (len(body), hashlib.sha256(body).hexdigest()) == (said["bytes"], said["sha256"])
        assert found.read("kernel.txt").decode() == LINE + "\n"
        rows = list(csv.DictReader(io.StringIO(found.read("samples.csv").decode())))
    assert [(row["device"], row["value"]) for row in rows] == [('GPU-1, "hot"', "55"), ('GPU-1, "hot"', "91.5")]


def test_the_same_content_is_the_same_file() -> None:
    assert made() == made()
