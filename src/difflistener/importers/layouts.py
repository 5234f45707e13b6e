"""The layouts that can be imported, by name, and which of them a folder has."""

import difflib
from pathlib import Path

from difflistener.errors import UserError
from difflistener.importers import dualtalk, learning2listen, results, vico
from difflistener.importers.source import Layout

LAYOUTS: dict[str, Layout] = {**dualtalk.LAYOUTS, **vico.LAYOUTS, **learning2listen.LAYOUTS, **results.LAYOUTS}
"""The first that fits is taken: data sets before the results of single people, the strictest of a family first."""


def detect(folder: Path) -> str:
    """Name of the layout of `folder`, by what lies there. Raises `UserError` where none fits."""
    for name, layout in LAYOUTS.items():
        if layout.fits(folder):
            return name
    known = "; ".join(f"{name}: {layout.tree}" for name, layout in LAYOUTS.items())
    raise UserError(f"{folder} has no layout that is known.", f"Known are {known}.")


def choose(name: str | None, folder: Path) -> str:
    """`name` if it is a layout, else what `folder` has. Raises `UserError`."""
    if not folder.is_dir():
        raise UserError(f"There is no folder at {folder}.", "Name the folder of a data set.")
    if name is None:
        return detect(folder)
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, 1)
        raise UserError(f"There is no layout {name!r}.",
                        f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(LAYOUTS)}.")
    return name
