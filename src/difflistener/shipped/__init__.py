"""What comes with the package: a landmark basis, procedural faces in it, a body and a brain. Made by recipes/shipped.py."""

from pathlib import Path

SHIPPED = Path(__file__).resolve().parent
"""Folder of them all."""


def named(path: Path | str, part: str = "") -> Path:
    """`path`; or, where it is the word `shipped` and no such file is there, what of that kind comes with the package."""
    path = Path(path)
    return SHIPPED / part if path == Path("shipped") and not path.exists() else path
