"""One picture of a prepared clip, from which a person sees at once whether the tracking is good.

Faces of sample frames with landmarks, the frames with masks, the background plate, the numbers, and curves over time with
the frames without a face shaded. Knows nothing of clips: it draws what it is given. Axes: T frames at 25 fps.
"""

from pathlib import Path

import numpy as np

from difflistener.clip import MASK_LABELS, replacing
from difflistener.motion import FPS, runs
from difflistener.prepare.face_points import FACE_OVAL, INNER_LIPS, IRISES, LEFT_BROW, LEFT_EYE, LOWER_LIP_BOTTOM, \
    RIGHT_BROW, RIGHT_EYE, UPPER_LIP_TOP

WIDTH_INCHES = 15.0
DPI = 110
STRIP_WIDTH = int((WIDTH_INCHES - 0.8) * DPI)
GAP = 6
MAX_CHANNELS = 12
"""A curve of more channels (a log-mel) is drawn as an image."""
MAX_POINTS = 4000
"""A longer curve (a waveform) is drawn as its envelope."""
CHANNEL_NAMES = {"rotation": ("x nod", "y turn", "z tilt"), "translation": ("x", "y", "z"), "torso": ("dx", "dy", "angle"),
                 "eye": ("left", "right", "gaze yaw", "gaze pitch")}
"""How the channels of a curve are called whose name contains the key."""
MASK_COLOURS = {"torso": (70, 130, 255), "head": (70, 220, 110), "hair": (240, 80, 200), "mouth": (255, 210, 0)}
CURVE_COLOURS = ("#3367b0", "#d9663a", "#3b9a5b", "#a34fa0", "#c4a12a", "#5aa7b8", "#7a7a7a", "#b03a4c", "#6b8e23", "#8a6d5a",
                 "#4b4b9a", "#d28fb0")
OUTLINES = (FACE_OVAL, LEFT_EYE, RIGHT_EYE, LEFT_BROW, RIGHT_BROW, INNER_LIPS,
            np.concatenate([UPPER_LIP_TOP, LOWER_LIP_BOTTOM[-2:0:-1]]))


def write_report(path: Path, role: str, samples: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray | None]],
                 background: np.ndarray | None, curves: dict[str, np.ndarray], valid: np.ndarray, facts: dict[str, str]) -> None:
    """Write the report as a PNG, whole or not at all.

    Args:
        samples: (frame index, frame [H, W, 3] uint8 RGB, landmarks [478, 2 or 3] in its pixels or None, labels [H, W]
            or None), about eight of them.
        background: plate [H, W, 3] uint8 RGB, or None.
        curves: name -> [N, C] or [N] over the whole clip, in drawing order; N need not be T (a waveform).
        valid: [T] bool, frames with a face.
        facts: what is written at the top, name -> value.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strips = [_strip(_with_landmarks(samples))]
    if any(labels is not None for *_, labels in samples):
        strips.append(_strip([_with_labels(frame, labels) for _, frame, _, labels in samples]))
    inches = WIDTH_INCHES - 0.8
    strip_heights = [inches * strip.shape[0] / strip.shape[1] for strip in strips]
    curve_height = max(1.05 * max(len(curves), 1), 2.6)
    height = 0.95 + sum(strip_heights) + 0.35 * len(strips) + curve_height + 0.75

    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")
    left, right = 0.4 / WIDTH_INCHES, 1 - 0.4 / WIDTH_INCHES
    figure.text(left, 1 - 0.22 / height, role, fontsize=17, fontweight="bold", va="top", parse_math=False)
    figure.text(left, 1 - 0.62 / height, "    ".join(f"{name}: {value}" for name, value in facts.items()), fontsize=10.5,
                va="top", color="#333333", parse_math=False)
    top = height - 0.95
    for strip, strip_height, legend in zip(strips, strip_heights, (None, MASK_COLOURS)):
        top -= 0.3
        axes = figure.add_axes((left, (top - strip_height) / height, right - left, strip_height / height))
        axes.imshow(strip, aspect="auto", interpolation="nearest")
        axes.axis("off")
        _label_strip(figure, samples, valid, legend, left, right, (top + 0.07) / height)
        top -= strip_height + 0.05
    bottom = 0.5
    split = left
    if background is not None:
        split = left + 0.23 * (right - left)
        _draw_plate(figure, background, left, split - 0.015, bottom / height, (top - 0.3) / height, height)
    _draw_curves(figure, curves, valid, split + 0.03, right - 0.085, bottom / height, (top - 0.3) / height)
    with replacing(Path(path)) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _label_strip(figure, samples, valid, legend, left, right, y) -> None:
    if legend is None:
        step = (right - left) * (1 + GAP / STRIP_WIDTH) / len(samples)
        for column, (index, _, points, _) in enumerate(samples):
            missing = "" if points is not None else "  no face"
            figure.text(left + column * step, y, f"frame {index}, {index / FPS:.1f} s{missing}", fontsize=8.5,
                        color="#333333" if points is not None else "#b03a4c")
        return
    for column, (name, colour) in enumerate(legend.items()):
        figure.text(left + column * 0.055, y, f"■ {'inner mouth' if name == 'mouth' else name}", fontsize=9,
                    color=np.array(colour) / 255 * 0.85)


def _draw_plate(figure, background, left, right, bottom, top, height) -> None:
    wide = (right - left) * WIDTH_INCHES
    tall = min(wide * background.shape[0] / background.shape[1], (top - bottom) * height)
    wide = tall * background.shape[1] / background.shape[0]
    axes = figure.add_axes((left, top - tall / height, wide / WIDTH_INCHES, tall / height))
    axes.imshow(_resize(background, 480))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("background plate", fontsize=9.5, loc="left", pad=3)


def _draw_curves(figure, curves, valid, left, right, bottom, top) -> None:
    if not curves:
        return
    seconds = len(valid) / FPS
    step = (top - bottom) / len(curves)
    for row, (name, values) in enumerate(curves.items()):
        axes = figure.add_axes((left, top - (row + 1) * step + 0.1 * step, right - left, 0.74 * step))
        values = np.asarray(values, np.float32).reshape(len(values), -1)
        if values.shape[1] > MAX_CHANNELS:
            low, high = np.percentile(values, [1, 99])
            axes.imshow(values[:: max(1, len(values) // MAX_POINTS)].T, aspect="auto", origin="lower", cmap="magma", vmin=low,
                        vmax=high, extent=(0, seconds, 0, values.shape[1]))
        else:
            _draw_lines(axes, name, values, seconds)
        for start, stop in runs(~np.asarray(valid, bool)):
            axes.axvspan(start / FPS, stop / FPS, color="#b03a4c", alpha=0.16, lw=0)
        axes.set_xlim(0, seconds)
        axes.set_title(name, fontsize=9.5, loc="left", pad=2)
        axes.tick_params(labelsize=8, length=2, labelbottom=row == len(curves) - 1)
        axes.grid(color="#dddddd", lw=0.5)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    shaded = "; shaded: no face" if not np.all(valid) else ""
    axes.set_xlabel(f"seconds{shaded}", fontsize=9)


def _draw_lines(axes, name: str, values: np.ndarray, seconds: float) -> None:
    known = next((names for key, names in CHANNEL_NAMES.items() if key in name), ())
    for channel, colour in zip(range(values.shape[1]), CURVE_COLOURS):
        line = values[:, channel]
        label = known[channel] if channel < len(known) else str(channel + 1)
        if len(line) > MAX_POINTS:
            size = -(-len(line) // (MAX_POINTS // 2))
            blocks = np.pad(line, (0, -len(line) % size), mode="edge").reshape(-1, size)
            x = (np.arange(len(blocks)) + 0.5) * size / len(line) * seconds
            axes.fill_between(x, blocks.min(1), blocks.max(1), color=colour, lw=0.4, label=label)
        else:
            axes.plot((np.arange(len(line)) + 0.5) / len(line) * seconds, line, color=colour, lw=0.9, label=label)
    if values.shape[1] > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.12), fontsize=7.5, frameon=False, handlelength=1.2,
                    labelspacing=0.15, borderaxespad=0)


def _strip(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of one height side by side on white, as wide as the report."""
    each = (STRIP_WIDTH - GAP * (len(pictures) - 1)) // len(pictures)
    pictures = [_resize(picture, min(each, 420)) for picture in pictures]
    strip = np.full((max(p.shape[0] for p in pictures), STRIP_WIDTH, 3), 255, np.uint8)
    for column, picture in enumerate(pictures):
        x = column * (STRIP_WIDTH + GAP) // len(pictures)
        strip[: picture.shape[0], x : x + picture.shape[1]] = picture[:, : STRIP_WIDTH - x]
    return strip


def _resize(picture: np.ndarray, width: int) -> np.ndarray:
    from PIL import Image

    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _with_landmarks(samples) -> list[np.ndarray]:
    """The face of each sample in a square of one size, with the landmarks as dots and the features outlined."""
    faces = [np.asarray(points)[:, :2] for _, _, points, _ in samples if points is not None]
    sides = [np.ptp(face, axis=0).max() * 1.45 for face in faces]
    return [_face(frame, points, max(sides, default=min(frame.shape[:2]))) for _, frame, points, _ in samples]


def _face(frame: np.ndarray, points: np.ndarray | None, side: float) -> np.ndarray:
    from PIL import Image, ImageDraw

    size = 420
    centre = np.array([frame.shape[1], frame.shape[0]]) / 2
    if points is not None:
        xy = np.asarray(points)[:, :2] + 0.5
        centre = (xy.min(0) + xy.max(0)) / 2
    corner = centre - side / 2
    box = (*corner, *(corner + side))
    picture = Image.fromarray(frame).transform((size, size), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)
    if points is None:
        return np.asarray(picture)
    draw = ImageDraw.Draw(picture, "RGBA")
    xy = (xy - corner) * size / side
    for x, y in xy:
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(255, 255, 255, 120))
    for outline in OUTLINES:
        corners = [tuple(p) for p in xy[outline]]
        draw.line(corners + corners[:1], fill=(0, 230, 255, 200), width=2)
    for iris in (IRISES[1:5], IRISES[6:10]):
        corners = [tuple(p) for p in xy[iris]]
        draw.line(corners + corners[:1], fill=(255, 220, 0, 230), width=2)
    return np.asarray(picture)


def _with_labels(frame: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """`frame` with each label's colour over it and the background darkened."""
    if labels is None:
        return (frame * 0.45).astype(np.uint8)
    tint = np.zeros((max(MASK_LABELS.values()) + 1, 3), np.float32)
    strength = np.full((len(tint), 1), 0.55, np.float32)
    for name, colour in MASK_COLOURS.items():
        tint[MASK_LABELS[name]], strength[MASK_LABELS[name]] = colour, 0.45
    mix = strength[labels]
    return (frame * (1 - mix) + tint[labels] * mix).astype(np.uint8)
