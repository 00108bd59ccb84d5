"""What ``penstock checkpoint`` leaves to a process with torch: ``python -m penstock.worker.checkpoint.carry WHAT ...``.

It answers one line of JSON: what was done, or the error in its wire form. The command line itself stays without torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from penstock.base.errors import PenstockError
from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.foreign import find_dcp, find_torch
from penstock.worker.checkpoint.importing import write_imported
from penstock.worker.checkpoint.to_dcp import export_dcp


def bring(kind: str, source: str, directory: str, part: str, step: str) -> dict[str, Any]:
    found = (find_dcp if kind == "dcp" else find_torch)(source, part)
    entry, size = write_imported(found, directory, int(step))
    tensors = len({box.name for box, _ in found.boxes})
    return {"path": entry.path, "tensors": tensors, "size": size, "left_out": found.left_out}


def take(path: str, out: str) -> dict[str, Any]:
    entry = folder.entry_of(path)
    if entry is None:
        raise CheckpointError(f"{path} is no checkpoint's folder")
    tensors, size = export_dcp(path, folder.checked_manifest(entry), out)
    return {"tensors": tensors, "size": size}


def main(argv: list[str]) -> int:
    try:
        said = bring(*argv[1:]) if argv[0] == "import" else take(*argv[1:])
    except PenstockError as error:
        said = {"error": {**error.to_dict(), "exit_code": error.exit_code}}
    except OSError as error:
        said = {"error": {"code": "OSError", "message": str(error), "hint": "", "exit_code": 1}}
    sys.stdout.write(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
