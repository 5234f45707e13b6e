"""The contact sheet: for each candidate a few frames of both people and the numbers, to accept or reject by eye.

Knows nothing of how candidates were found. One sheet in memory at a time.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from difflistener.clip import replacing
from difflistener.mine.table import Row
from difflistener.progress import progress

THUMB = 128
"""Side of one picture, px."""
MOMENTS = 4
"""Pictures of each person: three spread over the segment, and the strongest reaction."""
LABEL, GAP, EDGE = 44, 12, 8
ROW_HEIGHT = LABEL + THUMB + GAP
WIDTH = EDGE + 2 * MOMENTS * THUMB + 2 * GAP
ROWS = 100
"""Candidates on one sheet."""
KEPT, NOT_KEPT, PEAK, INK = (46, 140, 80), (190, 60, 60), (255, 190, 0), (30, 30, 30)


def write_contact_sheets(folder: Path, rows: list[Row], look: Callable[[float], tuple[np.ndarray, np.ndarray]]) -> list[Path]:
    """Write contact.jpg, and contact-2.jpg and so on beyond `ROWS` rows, into `folder`.

    Args:
        look: the pictures [H, W, 3] uint8 of the person on the left and on the right at a time in seconds.
    """
    from PIL import Image

    for old in folder.glob("contact*.jpg"):
        old.unlink()
    paths = []
    sheet = np.zeros(0)
    for index, (row, _) in enumerate(progress(rows, "contact sheet")):
        line = index % ROWS
        if line == 0:
            sheet = np.full((min(ROWS, len(rows) - index) * ROW_HEIGHT, WIDTH, 3), 255, np.uint8)
        sheet[line * ROW_HEIGHT : (line + 1) * ROW_HEIGHT] = draw_row(row, [look(time) for time in moments(row)])
        if (line + 1) * ROW_HEIGHT == len(sheet):
            paths.append(folder / ("contact.jpg" if not paths else f"contact-{len(paths) + 1}.jpg"))
            with replacing(paths[-1]) as temporary:
                Image.fromarray(sheet).save(temporary, format="JPEG", quality=88)
    return paths


def moments(row: Row) -> list[float]:
    """Times at which a row is looked at, in order."""
    spread = np.linspace(row.start, row.stop, 2 * (MOMENTS - 1) + 1)[1::2]
    return sorted([*spread.tolist(), row.peak])


def draw_row(row: Row, pictures: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """One line of a sheet [ROW_HEIGHT, WIDTH, 3]: the speaker's pictures, then the listener's."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, ROW_HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    verdict = KEPT if row.kept else NOT_KEPT
    draw.rectangle((0, 0, EDGE - 3, ROW_HEIGHT - GAP), fill=verdict)
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((EDGE, 3), f"{row.name}    {row.start:.2f} to {row.stop:.2f} s ({row.stop - row.start:.1f} s)", INK, bold)
    draw.text((WIDTH - GAP, 3), "kept" if row.kept else f"not kept: {row.reason}", verdict, bold, anchor="ra")
    answered = "" if row.answered is None else f"   answers at {row.answered:.2f} s"
    draw.text((EDGE, 25), f"speaker ({row.speaker})   voice {row.voice:.0%}   overlap {row.overlap:.0%}", INK, plain)
    draw.text((EDGE + MOMENTS * THUMB + GAP, 25), f"listener ({row.listener})   reaction {row.reaction:.1f}: "
              f"head {row.rotation:.1f} degrees, face {row.expression:.1f} %{answered}", INK, plain)
    strongest = moments(row).index(row.peak)
    for column, pair in enumerate(pictures):
        for half, side in enumerate((row.speaker, row.listener)):
            picture = Image.fromarray(np.ascontiguousarray(pair[("left", "right").index(side)]))
            picture.thumbnail((THUMB - 2, THUMB))
            x = EDGE + half * (MOMENTS * THUMB + GAP) + column * THUMB
            image.paste(picture, (x, LABEL))
            if half and column == strongest:
                draw.rectangle((x, LABEL, x + picture.width - 1, LABEL + picture.height - 1), outline=PEAK, width=3)
    return np.asarray(image)
