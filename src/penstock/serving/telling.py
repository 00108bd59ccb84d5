"""What a model is, told in a process of its own, with no more rights than whoever serves it: a server looks into no user's files.

    python -m penstock.serving.telling MODEL [FOLDER < SNAPSHOT]

With a FOLDER, which is empty, the snapshot is unpacked there first, and MODEL is a path in it. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from penstock.engines.local import snapshot
from penstock.engines.local.child import LaunchError
from penstock.serving import formats

MOST = 2 << 30  # bytes of an unpacked snapshot; a larger one is left to its replicas


def main(argv: Sequence[str]) -> int:
    path, *folder = argv
    try:
        if folder:
            snapshot.unpack(sys.stdin.fileno(), folder[0], MOST)
            path = os.path.join(folder[0], path)
        said = asdict(formats.tell(path))
    except OSError as error:
        said = {"error": f"cannot be read: {error.strerror}"}
    except LaunchError as error:
        said = {"error": str(error)}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
