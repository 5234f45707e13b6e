"""Where an evaluation goes and how it is shown: tables on the terminal, sheets of pictures, figures ready for JSON.

Axes: C columns, H, W.
"""

import math
from pathlib import Path

import numpy as np

from difflistener.clip import replacing
from difflistener.errors import UserError
from difflistener.metrics import lpips


def write_sheet(path: Path, titles: list[str], rows: list[np.ndarray]) -> None:
    """Write rows of pictures [C, H, W, 3] uint8 at full size under C titles."""
    from PIL import Image, ImageDraw

    width = rows[0].shape[2]
    bar = Image.new("RGB", (width * len(titles), 16), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(bar).text((column * width + 4, 2), title, fill="black")
    sheet = np.concatenate([np.asarray(bar), *(np.concatenate(list(row), 1) for row in rows)])
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def check_output(out: Path, overwrite: bool) -> None:
    """Raise `UserError` where an evaluation cannot be written to the folder `out`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another output folder.")
    if (out / "evaluation.json").exists() and not overwrite:
        raise UserError(f"{out} already holds an evaluation.", "Give --overwrite to replace it, or another --out.")


def plain(value):
    """`value` ready for JSON: figures to four places, None for what could not be measured."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def print_tables(figures: dict) -> None:
    """Print the figures of evaluation.json."""
    first, end = figures["frames"]
    print(f"frames {first} to {end - 1}, {figures['scored']} scored, {figures['size']}")
    if figures["learned_from"]:
        print(f"NOT HELD OUT: the clip leaves {figures['learned_from']} of these frames for learning")
    columns = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "psnr_head": ("head PSNR", 2), "lpips": ("LPIPS", 4),
               "lmd_mouth": ("LMD mouth", 2), "lmd_face": ("LMD face", 2), "jitter": ("jitter", 2), "lost": ("lost", 0)}
    measured = next(iter(figures["rows"].values()))
    columns = {key: heading for key, heading in columns.items() if key in measured}
    notes = {"refined": "test images used"}
    print_table({name: row | {"note": notes.get(name, "")} for name, row in figures["rows"].items()}, columns)
    if figures["lpips_network"] is None:
        print(f"lpips: not measured (weights not present). {lpips.how_to_get('alex')}")
    if "large_poses" in figures:
        print("\nturned to 1, 1.25 and 1.5 times the largest yaw and pitch of training, means over four ways to turn")
        rows = {f"{name} {factor}": row for name, of in figures["large_poses"].items() for factor, row in of.items()}
        print_table(rows, {
            "landmark_px": ("landmarks px", 2), "lost": ("lost", 0), "torn_percent": ("torn %", 3),
            "gap_percent": ("of it gaps", 3), "fold_percent": ("folds", 3), "specks": ("specks", 2), "holes": ("holes", 2),
            "specks_in_picture": ("seen specks", 2), "holes_in_picture": ("seen holes", 2)})


def print_table(rows: dict[str, dict], columns: dict[str, tuple[str, int]]) -> None:
    """One line a row; `columns` is key -> (heading, decimals)."""
    print(" " * 16 + "".join(f"{heading:>13}" for heading, _ in columns.values()))
    for name, row in rows.items():
        cells = ["-" if row[key] is None else f"{row[key]:.{places}f}" for key, (_, places) in columns.items()]
        print((f"{name:<16}" + "".join(f"{cell:>13}" for cell in cells) + "  " + row.get("note", "")).rstrip())
