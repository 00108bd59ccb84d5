"""Evidence for the vendor: what was seen of a node, in one zip whose files are each hashed in its manifest. Pure.

The ledger's rows are whole, with the hashes that chain them, so that whoever holds the ledger can show that none was changed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.base.quantities import format_time
from penstock.base.version import VERSION

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content is the same file


def bundle(
    node: str,
    at: float,
    *,
    node_facts: Mapping[str, Any],
    findings: Sequence[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    incidents: Sequence[str],
    samples: Iterable[tuple[str, str, Sequence[tuple[float, float]]]],
) -> bytes:
    """``incidents``: as Markdown, oldest first. ``samples``: name, device, and (epoch seconds, value) by time."""
    files: dict[str, bytes] = {
        "node.json": _json(node_facts),
        "findings.json": _json(list(findings)),
        "events.jsonl": "".join(json.dumps(row, sort_keys=True) + "\n" for row in events).encode(),
        "kernel.txt": "".join(f"{line}\n" for line in _lines(findings)).encode(),
        "samples.csv": _csv(samples),
    }
    files |= {f"incident-{number:03d}.md": text.encode() for number, text in enumerate(incidents, 1)}
    manifest = {
        "format": 1,
        "node": node,
        "made_at": format_time(at),
        "penstock": VERSION,
        "files": {
            name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in files.items()
        },
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, body in (("manifest.json", _json(manifest)), *sorted(files.items())):
            made.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), body, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _lines(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the kernel said, as it said it, of those findings that rest on it."""
    said = [line for one in findings if one.get("source") == "kmsg" for line in one.get("evidence", ())]
    return list(dict.fromkeys(str(line) for line in said))


def _csv(samples: Iterable[tuple[str, str, Sequence[tuple[float, float]]]]) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("time", "name", "device", "value"))
    for name, device, values in samples:
        table.writerows((format_time(at), name, device, f"{value:.9g}") for at, value in values)
    return out.getvalue().encode()
