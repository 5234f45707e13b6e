"""Random people with random faces and what they do: from these the shipped landmark basis learns how faces move.

Draws who somebody is, how a face acts (broadly, or one doing at a time) and from where it is seen, from a generator. Knows
nothing of trackers, bases or files. Axes: T frames at 25 fps; controls as in `law`, strengths as in `anatomy.FURTHER`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from difflistener.motion import FPS

from .anatomy import FURTHER, Shape
from .codes import coloured, swaying
from .face import HEAD_DISTANCE, Camera, Character, Renderer
from .law import Controls, ListenerLaw, about_neck, blink_curve, draw_blinks, gaze_shifts, sway, times
from .paint import Look

SKINS = np.array([[250, 224, 206], [240, 200, 176], [222, 172, 138], [196, 142, 104], [156, 104, 72], [112, 72, 50], [82, 52, 38]], float)
"""sRGB, light to dark."""
HAIRS = np.array([[226, 190, 130], [176, 124, 70], [120, 68, 38], [70, 46, 32], [36, 28, 26], [150, 148, 146]], float)
IRISES = np.array([[96, 134, 170], [86, 122, 92], [120, 100, 60], [84, 54, 34], [52, 34, 24]], float)
_TOGETHER, _APART = 0.75, 0.5
"""How much of a sided expression both sides do alike, and each by itself."""
_TALKING = {"pucker": 0.45, "funnel": 0.45, "press": 0.5, "stretch": 0.45, "lower_depress": 0.6, "upper_raise": 0.3, "jaw_forward": 0.2,
            "chin_raise": 0.25, "jaw_side": 0.1, "corner_down": 0.15}  # fmt: skip
"""What a talking mouth does beside opening, and how much of it."""


@dataclass(frozen=True)
class Acting:
    """Everything that a face does."""

    controls: Controls
    strengths: np.ndarray
    """[T, len(FURTHER)]"""

    def __len__(self) -> int:
        return len(self.controls)


@dataclass(frozen=True)
class Manner:
    """How a person does what has a name: strengths of `FURTHER` that go with a smile, a raised brow and an opened mouth."""

    smile: dict[str, float]
    brow: dict[str, float]
    mouth: dict[str, float]


def draw_person(generator: np.random.Generator, name: str = "somebody") -> Character:
    """Somebody: proportions about those of the toy's two characters, colours of anybody."""
    u = generator.uniform
    shape = Shape(width=u(0.90, 1.08), jaw=u(0.86, 1.12), chin=u(0.85, 1.15), nose=u(0.75, 1.25), nose_width=u(0.80, 1.30),
                  lips=u(0.70, 1.35), eyes=u(0.88, 1.12), neck=u(0.80, 1.10), shoulders=u(0.85, 1.10),
                  long_hair=bool(generator.random() < 0.45))  # fmt: skip
    skin = _between(SKINS, u(0, len(SKINS) - 1))
    hair = HAIRS[generator.integers(len(HAIRS))] if skin.mean() > 130 else HAIRS[generator.integers(3, len(HAIRS))]
    hair = hair * u(0.7, 1.15)
    redness = np.array([0.84, 0.56, 0.56]) * u(0.85, 1.15)
    look = Look(skin=_color(skin * u(0.95, 1.02, 3)), lip=_color(skin * redness), hair=_color(hair), brow=_color(hair * u(0.6, 0.9)),
                iris=_color(IRISES[generator.integers(len(IRISES))] * u(0.85, 1.15)), cloth=_color(u(25, 225, 3)),
                background=(_color(u(60, 235, 3)), _color(u(40, 200, 3))), freckles=float(u() if u() < 0.3 else 0),
                stubble=float(u(0.2, 0.9) if not shape.long_hair and u() < 0.5 else 0), brow_weight=float(u(0.55, 1.1)),
                lashes=float(u(0.6, 1)), stripes=bool(u() < 0.2))  # fmt: skip
    return Character(name, shape, look, int(generator.integers(2**31)))


def draw_manner(generator: np.random.Generator) -> Manner:
    """A smile may be asymmetrical, narrow the eyes or show teeth; brows rise more inside or outside; mouths open variously."""
    u = generator.uniform
    lopsided = u(-0.15, 0.15)
    smile = {"corner_up_left": lopsided, "corner_up_right": -lopsided}
    smile |= _sides("squint", u(0, 0.6)) | _sides("stretch", u(-0.1, 0.4)) | _sides("upper_raise", u(0, 0.4)) | _sides("dimple", u(0, 0.4))
    brow = _sides("inner_brow", u(-0.3, 0.4)) | _sides("outer_brow", u(-0.3, 0.4)) | _sides("wide", u(0, 0.3))
    mouth = {"funnel": u(0, 0.4)} | _sides("stretch", u(0, 0.25)) | _sides("lower_depress", u(0, 0.4))
    return Manner(smile, brow, mouth)


def act_broadly(frames: int, generator: np.random.Generator) -> Acting:
    """Everything that faces do, at random: talk, grimaces of any mixture, blinks, looks, turns of the head; at rest between."""
    t = times(frames / FPS)
    talking = _smooth_gate(coloured(frames, 1, 0.8, generator)[:, 0] + generator.uniform(-0.6, 0.6))
    strengths = np.zeros((frames, len(FURTHER)))
    names = sorted({name.removesuffix("_left").removesuffix("_right") for name in FURTHER})
    for name in names:
        both_ways = name in ("jaw_side", "jaw_forward", "mouth_side")
        size = generator.gamma(2.0, 0.45)
        slow, fast = generator.uniform(0.15, 0.5), coloured(frames, 3, 0.06, generator)
        wave = coloured(frames, 3, slow, generator)
        level = 0.5 * wave if both_ways else 0.7 * np.maximum(wave - 0.9, 0)
        speech = _TALKING.get(name, 0.0) * talking[:, None] * (fast if both_ways else np.maximum(fast - 0.2, 0))
        level = level * size + speech
        if name in FURTHER:
            strengths[:, FURTHER.index(name)] = level[:, 0]
        else:
            for k, side in enumerate(("left", "right")):
                strengths[:, FURTHER.index(f"{name}_{side}")] = _TOGETHER * level[:, 0] + _APART * level[:, 1 + k]
    strengths = np.clip(strengths, -1.2, 1.4)
    wave = coloured(frames, 6, 0.35, generator)
    mouth = talking * np.clip(0.22 + 0.24 * coloured(frames, 1, 0.06, generator)[:, 0], 0, 1) + 0.6 * np.maximum(wave[:, 0] - 1.3, 0)
    smile, brow = 0.7 * np.maximum(wave[:, 1] - 0.5, 0), 0.6 * np.maximum(wave[:, 2] - 0.6, 0)
    closed = blink_curve(t, draw_blinks(frames / FPS, ListenerLaw(blink_interval=generator.uniform(1.5, 4)), generator))
    lids = 0.45 * np.maximum(wave[:, 3] - 1.2, 0)
    winks = np.clip(np.maximum(wave[:, 4:] - 2.1, 0) * 2.5, 0, 1)
    blink = np.clip(np.maximum(np.maximum(closed, lids)[:, None], winks), 0, 1)
    rotation = draw_head(frames, generator, generator.uniform(0.6, 2.0))
    gaze = 1.6 * gaze_shifts(t, frames / FPS, generator) - generator.uniform(0.2, 0.7) * rotation[:, 1::-1]
    return _acting(mouth, np.clip(smile, 0, 1.2), np.clip(brow, 0, 1.2), blink, np.clip(gaze, -0.5, 0.5), rotation, strengths, generator)


def do_doings(frames: int, still: int, manner: Manner, generator: np.random.Generator) -> tuple[Acting, np.ndarray]:
    """A face at rest for `still` frames, then one with independent random doings; and the doings [T, 6].

    Doings: smile, brow, blink, gaze yaw, gaze pitch, mouth, in the units of `codes.DOINGS`. The head moves throughout.
    """
    doing = np.arange(frames) >= still
    level = np.where(doing, 1.0, 0.0)
    level = gaussian_filter1d(level, 2.0) * doing
    wave = coloured(frames, 5, 0.3, generator)
    smile, brow = (level * np.clip(0.6 * wave[:, k] + 0.15, 0, 1) for k in (0, 1))
    gaze = level[:, None] * np.clip(wave[:, 2:4] * [0.16, 0.08], -0.4, 0.2)
    mouth = level * np.clip(0.35 * coloured(frames, 1, 0.1, generator)[:, 0], 0, 1)
    blinks = draw_blinks(frames / FPS, ListenerLaw(blink_interval=1.2, blink_seconds=(0.2, 0.5)), generator)
    knots = np.arange(0, frames, 30)
    depth = np.interp(np.arange(frames), knots, generator.uniform(0.4, 1.2, len(knots))).clip(0, 1)
    closed = level * blink_curve(times(frames / FPS), blinks) * depth
    strengths = np.zeros((frames, len(FURTHER)))
    for curve, goes_with in ((smile, manner.smile), (brow, manner.brow), (mouth, manner.mouth)):
        for name, share in goes_with.items():
            strengths[:, FURTHER.index(name)] += share * curve
    acting = _acting(mouth, smile, brow, np.stack([closed, closed], 1), gaze, draw_head(frames, generator, 0.45), strengths, generator)
    return acting, np.stack([smile, brow, closed, *gaze.T, mouth], 1)


def draw_head(frames: int, generator: np.random.Generator, breadth: float) -> np.ndarray:
    """[T, 3] rotation: sways about a direction of its own; `breadth` 1 deviates about 9 degrees in yaw."""
    home = np.deg2rad([3.0, 6.0, 2.0]) * generator.standard_normal(3)
    idle = np.deg2rad([7.0, 11.0, 5.0]) * swaying(frames, 3, 0.15, generator) * generator.uniform(0.5, 1.2)
    return np.clip(breadth * (home + idle), -np.deg2rad([28, 45, 25]), np.deg2rad([28, 45, 25]))


def draw_camera(size: int, generator: np.random.Generator) -> tuple[Camera, float]:
    """A camera and how far the head is beyond its usual distance, metres; the head looks about as large as ever."""
    away = generator.uniform(-0.3, 0.7)
    return Camera(size, 2.2 * (1 + away / HEAD_DISTANCE) * generator.uniform(1.1, 1.6)), away


def film(person: Character, acting: Acting, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames [size, size, 3] uint8 RGB of somebody seen by a camera with its own lens, exposure, tint and noise."""
    camera, away = draw_camera(size, generator)
    renderer = Renderer(person, camera)
    tint = generator.uniform(0.75, 1.2) * generator.uniform(0.95, 1.05, 3)
    noise = generator.uniform(0.5, 5.0)
    controls = Controls(**{**vars(acting.controls), "translation": acting.controls.translation + np.float32([0, 0, away])})
    for index, row in enumerate(acting.strengths):
        clean = renderer.draw(controls, index, {name: float(s) for name, s in zip(FURTHER, row, strict=True) if s})
        grain = noise * generator.standard_normal(clean.shape, np.float32)
        yield np.clip(clean * tint.astype(np.float32) + grain, 0, 255).astype(np.uint8)


def _acting(mouth, smile, brow, blink, gaze, rotation, strengths, generator) -> Acting:
    frames = len(mouth)
    moved = about_neck(rotation, generator.uniform(1, 3) * sway(frames, generator))
    values = dict(mouth_open=mouth, smile=smile, brow=brow, blink=blink, gaze=gaze, rotation=rotation, translation=moved)
    return Acting(Controls(**{name: np.asarray(value, np.float32) for name, value in values.items()}), strengths.astype(np.float32))


def _smooth_gate(wave: np.ndarray) -> np.ndarray:
    return gaussian_filter1d((wave > 0).astype(float), 3.0)


def _sides(name: str, strength: float) -> dict[str, float]:
    return {f"{name}_left": strength, f"{name}_right": strength}


def _between(colors: np.ndarray, at: float) -> np.ndarray:
    return np.array([np.interp(at, np.arange(len(colors)), channel) for channel in colors.T])


def _color(value: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(value, 0, 255))
