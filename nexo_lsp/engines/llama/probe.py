"""What the library, this machine and a model file come to, told as one line of JSON; nothing is loaded.

`nexo-lsp doctor` runs it in a process of its own, since a library that crashes takes its process along. Its
argument is a `Load` message.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from nexo_lsp.engines.llama.devices import devices
from nexo_lsp.engines.llama.loading import LoadError, outlook
from nexo_lsp.engines.llama.messages import Load, decode_to_worker
from nexo_lsp.engines.llama.native import Library


def report(library: Library, wish: Load) -> dict[str, Any]:
    """What there is to say: `devices`, `offload`, and an `outlook` or the `error` against it."""
    said: dict[str, Any] = {
        "devices": [asdict(device) for device in devices()],
        "offload": library.uses_gpu,
        "outlook": None,
        "error": "",
    }
    if wish.path:
        try:
            said["outlook"] = asdict(outlook(library, wish))
        except LoadError as error:
            said["error"] = str(error)
    return said


def main() -> None:
    """Print the report of the `Load` message in the first argument."""
    wish = decode_to_worker(sys.argv[1].encode())
    if not isinstance(wish, Load):
        raise SystemExit("a load message is needed")
    # Native libraries may print lines of their own; the report is the last one.
    sys.stdout.write("\n" + json.dumps(report(Library(), wish)) + "\n")


if __name__ == "__main__":
    main()
