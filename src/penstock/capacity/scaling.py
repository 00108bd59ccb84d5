"""A queue file for a larger or smaller fleet: every quota of GPUs keeps its share of the whole."""

from __future__ import annotations

import math
from typing import Any

import yaml


def scaled(text: str, share: float) -> str:
    """The file with its GPU quotas times ``share``, nominal ones rounded down so that they still fit. The text itself where
    nothing changes; what is no quota is left to whoever reads the file.
    """
    if share == 1.0 or not text.strip():
        return text
    documents = [document for document in yaml.safe_load_all(text) if document is not None]
    for document in documents:
        for kind in ("queues", "cohorts"):
            for entry in _dicts(document, kind):
                for flavor in (entry.get("quotas") or {}).values():
                    if isinstance(flavor, dict) and "gpus" in flavor:
                        flavor["gpus"] = _quota(flavor["gpus"], share)
    return yaml.safe_dump_all(documents, sort_keys=False)


def _dicts(document: Any, kind: str) -> list[dict[str, Any]]:
    found = document.get(kind) if isinstance(document, dict) else None
    entries = found if isinstance(found, list) else []
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get("quotas"), dict)]


def _quota(value: Any, share: float) -> Any:
    if isinstance(value, dict):
        return {name: _times(amount, share, down=name == "nominal") for name, amount in value.items()}
    return _times(value, share, down=True)


def _times(amount: Any, share: float, *, down: bool) -> Any:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return amount
    exact = round(amount * share, 9)
    return math.floor(exact) if down else round(exact)
