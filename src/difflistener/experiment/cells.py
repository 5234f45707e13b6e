"""What an experiment has computed: one folder a cell, named after what it is and a digest of all that decides it.

A cell is finished when its result.json is there, which is written last. Knows nothing of what cells compute.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from difflistener.clip import write_json

RESULT = "result.json"


class Cell(NamedTuple):
    """A finished cell."""

    folder: Path
    digest: str
    """Of all that decides it, for the settings of cells that build on it."""
    result: dict[str, Any]


class Cells:
    """The cells under `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.computed = self.kept = 0

    def get(self, kind: str, name: str, settings: dict[str, Any], compute: Callable[[Path], dict[str, Any]]) -> Cell:
        """The cell of these settings; `compute` fills its folder and returns its result, unless that is there already.

        A folder without a result is what an interrupted run has left, and is given to `compute` as it is.
        """
        digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True, default=str).encode()).hexdigest()[:12]
        folder = self.folder / kind / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{digest}"
        if (folder / RESULT).is_file():
            self.kept += 1
            return Cell(folder, digest, json.loads((folder / RESULT).read_text())["result"])
        print(f"{kind}: {name}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        result = compute(folder)
        write_json(folder / RESULT, {"name": name, "settings": json.loads(json.dumps(settings, default=str)), "result": result})
        self.computed += 1
        return Cell(folder, digest, result)
