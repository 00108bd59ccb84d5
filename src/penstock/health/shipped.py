"""The policy in force: the files of ``data/``, and the site's own."""

from __future__ import annotations

from importlib import resources

from penstock.base.errors import InvalidInput
from penstock.base.text import one_line
from penstock.documents import MAX_BYTES
from penstock.health import policy
from penstock.health.rule import Policy


def load(path: str | None) -> Policy:
    """Raises InvalidInput with every error of the site's file at once."""
    made = _shipped()
    if path is None:
        return made
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the health policy {path} cannot be read: {one_line(str(error))}") from error
    return policy.overridden(made, text, path)


def _shipped() -> Policy:
    data = resources.files("penstock.health") / "data"
    return policy.shipped(*((data / name).read_text("utf-8") for name in ("xid.csv", "sxid.csv", "rules.yaml")))
