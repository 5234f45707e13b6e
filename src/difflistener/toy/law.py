"""The law of a toy conversation: when a listener nods, smiles and blinks, given a speaker's phrases and smiles.

Turns a seed into known motion. Knows nothing of pixels or sound. Axes: T frames at 25 fps, times in seconds,
angles in radians about OpenCV camera axes (x right, y down, z forward): a positive rotation about x lowers the
nose (a nod), a positive one about y turns it to the picture's left.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from difflistener.motion import FPS

NECK_PIVOT = (0.0, 0.09, 0.045)
"""The point the head turns about, in the head's own frame, metres."""
JAW_OPEN = 0.30
"""Jaw rotation about x, radians, at mouth_open = 1."""


@dataclass(frozen=True)
class ListenerLaw:
    """How the listener reacts. Every number is true of the drawn conversation, up to chance."""

    nod_probability: float = 0.6
    """Chance of a nod after each end of a phrase."""
    nod_delay: tuple[float, float] = (0.3, 0.1)
    """Mean and deviation of the time from the end of the phrase to the start of the nod, seconds."""
    nod_seconds: tuple[float, float] = (0.5, 0.8)
    """Shortest and longest nod."""
    nod_degrees: tuple[float, float] = (8.0, 14.0)
    """Smallest and largest peak of a nod."""
    smile_probability: float = 0.7
    """Chance that a smile of the speaker is mirrored."""
    smile_delay: tuple[float, float] = (0.4, 0.1)
    """Mean and deviation of the time from the speaker's smile to the listener's, seconds."""
    blink_interval: float = 3.0
    """Mean time between the listener's blinks, seconds; they do not depend on the speaker."""
    blink_seconds: tuple[float, float] = (0.16, 0.20)
    """Shortest and longest time that an eyelid moves."""
    drift_degrees: tuple[float, float, float] = (2.2, 3.5, 1.8)
    """Deviation of the slow drift in pitch, yaw and roll."""
    turn_interval: float = 14.0
    """Mean time between larger turns of the head, seconds."""
    turn_degrees: float = 20.0
    """Largest turn to a side."""


@dataclass(frozen=True)
class Controls:
    """What a toy face does, frame by frame. `left` is the picture's left throughout."""

    mouth_open: np.ndarray
    """[T] 0 closed .. 1."""
    smile: np.ndarray
    """[T] 0 .. 1."""
    brow: np.ndarray
    """[T] 0 at rest .. 1 raised."""
    blink: np.ndarray
    """[T,2] left and right eye, 0 open .. 1 closed."""
    gaze: np.ndarray
    """[T,2] yaw (positive to picture left) and pitch (positive down) relative to the head, radians."""
    rotation: np.ndarray
    """[T,3] head rotation, axis-angle, radians."""
    translation: np.ndarray
    """[T,3] metres: a point p of the head is seen at R p + rest + translation."""

    def __post_init__(self):
        frames = len(self.mouth_open)
        shapes = dict(mouth_open=(), smile=(), brow=(), blink=(2,), gaze=(2,), rotation=(3,), translation=(3,))
        for name, tail in shapes.items():
            got = getattr(self, name).shape
            assert got == (frames, *tail), f"controls.{name} has shape {got}, expected {(frames, *tail)}"

    def __len__(self) -> int:
        return len(self.mouth_open)

    @staticmethod
    def neutral(frames: int, **given: np.ndarray) -> "Controls":
        """A face at rest, except for the controls given."""
        tails = dict(mouth_open=(), smile=(), brow=(), blink=(2,), gaze=(2,), rotation=(3,), translation=(3,))
        rest = {name: np.zeros((frames, *tail), np.float32) for name, tail in tails.items()}
        return Controls(**{**rest, **{k: np.asarray(v, np.float32) for k, v in given.items()}})

    def motion(self) -> np.ndarray:
        """[T,56] float32 in the toy's own basis.

        Expression slots 0..6 are mouth_open, smile, brow, blink left, blink right, gaze yaw, gaze pitch; slots
        7..49 are zero. Then head rotation (3) and jaw rotation (3, about x, from mouth_open).
        """
        values = np.zeros((len(self), 56), np.float32)
        values[:, 0], values[:, 1], values[:, 2] = self.mouth_open, self.smile, self.brow
        values[:, 3:5], values[:, 5:7] = self.blink, self.gaze
        values[:, 50:53] = self.rotation
        values[:, 53] = JAW_OPEN * self.mouth_open
        return values


@dataclass(frozen=True)
class Events:
    """What was drawn. Times in seconds from the start."""

    phrases: np.ndarray
    """[P,2] start and end of each phrase of the speaker."""
    nods: np.ndarray
    """[N,5] phrase index, delay after its end, start, duration, peak in radians."""
    speaker_smiles: np.ndarray
    """[S,3] start, duration, strength."""
    listener_smiles: np.ndarray
    """[M,5] index of the speaker's smile, delay after its start, start, duration, strength."""
    speaker_blinks: np.ndarray
    """[B,2] start, duration."""
    listener_blinks: np.ndarray
    """[B,2] start, duration."""
    turns: np.ndarray
    """[K,4] start, duration, yaw, pitch of the listener's larger head turns, radians."""


def draw_phrases(seconds: float, generator: np.random.Generator) -> np.ndarray:
    """[P,2] start and end of phrases of 1 to 3 s with pauses of 0.4 to 1.5 s between; the last may be cut."""
    phrases, now = [], generator.uniform(0.3, 0.8)
    while now + 0.6 < seconds:
        end = now + generator.uniform(1.0, 3.0)
        phrases.append((now, min(end, seconds)))
        now = end + generator.uniform(0.4, 1.5)
    return np.array(phrases, float).reshape(-1, 2)


def draw_smiles(seconds: float, generator: np.random.Generator, interval: float = 5.5) -> np.ndarray:
    """[S,3] start, duration, strength of a speaker's smiles, which do not overlap."""
    smiles, now = [], generator.uniform(0.8, 3.0)
    while now < seconds:
        duration = generator.uniform(1.2, 2.6)
        smiles.append((now, duration, generator.uniform(0.55, 1.0)))
        now += duration + 0.8 + generator.exponential(interval - 2.7)
    return np.array(smiles, float).reshape(-1, 3)


def draw_blinks(seconds: float, law: ListenerLaw, generator: np.random.Generator) -> np.ndarray:
    """[B,2] start and duration: a Poisson process with half a second of rest after each blink."""
    blinks, now = [], generator.exponential(law.blink_interval - 0.7)
    while now < seconds:
        duration = generator.uniform(*law.blink_seconds)
        blinks.append((now, duration))
        now += duration + 0.5 + generator.exponential(law.blink_interval - 0.7)
    return np.array(blinks, float).reshape(-1, 2)


def draw_nods(phrases: np.ndarray, seconds: float, law: ListenerLaw, generator: np.random.Generator) -> np.ndarray:
    """[N,5]; the same draws are made whether or not a nod happens, so that one phrase does not move the next."""
    nods = []
    for index, (_, end) in enumerate(phrases):
        happens = generator.random() < law.nod_probability
        delay = max(generator.normal(*law.nod_delay), 0.04)
        duration, peak = generator.uniform(*law.nod_seconds), np.deg2rad(generator.uniform(*law.nod_degrees))
        if happens and end + delay < seconds:
            nods.append((index, delay, end + delay, duration, peak))
    return np.array(nods, float).reshape(-1, 5)


def draw_mirrored(smiles: np.ndarray, seconds: float, law: ListenerLaw, generator: np.random.Generator) -> np.ndarray:
    """[M,5] the listener's smiles."""
    mirrored = []
    for index, (start, duration, strength) in enumerate(smiles):
        happens = generator.random() < law.smile_probability
        delay = max(generator.normal(*law.smile_delay), 0.04)
        scale = generator.uniform(0.75, 1.0)
        if happens and start + delay < seconds:
            mirrored.append((index, delay, start + delay, duration, strength * scale))
    return np.array(mirrored, float).reshape(-1, 5)


def draw_turns(seconds: float, law: ListenerLaw, generator: np.random.Generator) -> np.ndarray:
    """[K,4] looks to a side and back."""
    turns, now = [], generator.exponential(0.6 * law.turn_interval)
    while now < seconds:
        duration = generator.uniform(1.8, 3.2)
        yaw = generator.choice([-1, 1]) * np.deg2rad(generator.uniform(0.6, 1.0) * law.turn_degrees)
        turns.append((now, duration, yaw, np.deg2rad(generator.uniform(-4, 5))))
        now += duration + 2 + generator.exponential(law.turn_interval)
    return np.array(turns, float).reshape(-1, 4)


def num_frames(seconds: float) -> int:
    """Frames at 25 fps."""
    return int(round(seconds * FPS))


def times(seconds: float) -> np.ndarray:
    """[T] the time of each frame."""
    return np.arange(num_frames(seconds)) / FPS


def blink_curve(t: np.ndarray, blinks: np.ndarray) -> np.ndarray:
    """[T] 0..1: quick down, a touch of rest, slower up."""
    closed = np.zeros_like(t)
    for start, duration in blinks:
        s = (t - start) / duration
        # Frames last 40 ms: half a frame either side keeps every blink visible.
        down, up = np.clip((s + 0.10) / 0.42, 0, 1), np.clip((1.12 - s) / 0.55, 0, 1)
        closed = np.maximum(closed, _ease(np.minimum(down, up)))
    return closed


def smile_curve(t: np.ndarray, smiles: np.ndarray) -> np.ndarray:
    """[T] 0..1 from rows that end in (start, duration, strength)."""
    level = np.zeros_like(t)
    for start, duration, strength in smiles[:, -3:]:
        rise, fall = (t - start) / 0.35, (start + duration - t) / 0.6
        level = np.maximum(level, strength * _ease(np.clip(np.minimum(rise, fall), 0, 1)))
    return level


def nod_curve(t: np.ndarray, nods: np.ndarray) -> np.ndarray:
    """[T] pitch in radians: down and back, then a smaller one if there is time."""
    pitch = np.zeros_like(t)
    for _, _, start, duration, peak in nods:
        s = (t - start) / duration
        inside = (s >= 0) & (s <= 1)
        cycles = 1 if duration < 0.62 else 2
        wave = np.sin(np.pi * cycles * np.clip(s, 0, 1)) ** 2 * np.exp(-1.3 * np.clip(s, 0, 1) * (cycles - 1))
        crest = 1.0 if cycles == 1 else float(np.exp(-1.3 * 0.245) * np.sin(2 * np.pi * 0.245) ** 2)
        # A nod may still be going when the next begins: the head does the larger.
        pitch = np.maximum(pitch, np.where(inside, peak * wave / crest, 0))
    return pitch


def _ease(s: np.ndarray) -> np.ndarray:
    return s * s * (3 - 2 * s)


def drift(frames: int, generator: np.random.Generator, seconds: float) -> np.ndarray:
    """[frames] smooth noise of unit variance with the given time scale."""
    pad = int(4 * seconds * FPS)
    noise = gaussian_filter1d(generator.standard_normal(frames + 2 * pad), seconds * FPS)[pad : pad + frames]
    # The filter's own gain, so that a short clip is not blown up to unit variance.
    return noise * np.sqrt(2 * np.sqrt(np.pi) * seconds * FPS)


def gaze_shifts(t: np.ndarray, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """[T,2] quick looks between points near the camera, radians."""
    gaze = np.zeros((len(t), 2))
    now = generator.exponential(1.5)
    while now < seconds:
        point = generator.normal(0, 1, 2) * np.deg2rad([6.0, 2.5])
        if generator.random() < 0.45:
            point *= 0.15
        gaze += _ease(np.clip((t - now) / 0.08, 0, 1))[:, None] * (point - gaze)
        now += 0.4 + generator.exponential(1.6)
    return gaze


def turn_curve(t: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """[T,2] yaw and pitch of looks to a side, radians."""
    out = np.zeros((len(t), 2))
    for start, duration, yaw, pitch in turns:
        level = np.clip(np.minimum((t - start) / 0.7, (start + duration - t) / 0.8), 0, 1)
        out += _ease(level)[:, None] * np.array([yaw, pitch])
    return out


def about_neck(rotation: np.ndarray, sway: np.ndarray) -> np.ndarray:
    """[T,3] translation of a head that turns about its neck, plus the neck's own sway, metres."""
    from scipy.spatial.transform import Rotation

    pivot = np.array(NECK_PIVOT)
    return pivot - Rotation.from_rotvec(rotation).apply(pivot) + sway


def sway(frames: int, generator: np.random.Generator) -> np.ndarray:
    """[T,3] slow shift of the body, metres; a few millimetres."""
    return np.stack([drift(frames, generator, s) * a for s, a in ((1.6, 0.004), (1.3, 0.002), (1.8, 0.005))], 1)


def speaker_controls(
    seconds: float, phrases: np.ndarray, smiles: np.ndarray, blinks: np.ndarray, loudness: np.ndarray,
    generator: np.random.Generator,
) -> Controls:  # fmt: skip
    """The speaker: the mouth follows `loudness` [T] 0..1 of the speech, the head bobs a little with it."""
    t, frames = times(seconds), num_frames(seconds)
    smile = smile_curve(t, smiles)
    talking = np.zeros(frames)
    for start, end in phrases:
        talking = np.maximum(talking, np.clip(np.minimum((t - start) / 0.3, (end - t) / 0.3), 0, 1))
    beat = gaussian_filter1d(loudness, 2.0)
    rotation = np.stack(
        [np.deg2rad(1.6) * drift(frames, generator, 0.8) + np.deg2rad(3.0) * (beat - 0.3) * talking,
         np.deg2rad(3.0) * drift(frames, generator, 1.0),
         np.deg2rad(1.8) * drift(frames, generator, 1.0)], 1)  # fmt: skip
    brow = np.clip(0.12 + 0.30 * drift(frames, generator, 0.4) * talking, 0, 1)
    closed = blink_curve(t, blinks)
    moved = about_neck(rotation, sway(frames, generator))
    return Controls(
        **_float32(
            mouth_open=np.clip(loudness * (1 - 0.25 * smile), 0, 1), smile=smile, brow=brow,
            blink=np.stack([closed, closed], 1), gaze=gaze_shifts(t, seconds, generator), rotation=rotation,
            translation=moved,
        )  # fmt: skip
    )


def listener_controls(
    seconds: float, nods: np.ndarray, smiles: np.ndarray, blinks: np.ndarray, turns: np.ndarray, law: ListenerLaw,
    generator: np.random.Generator,
) -> Controls:  # fmt: skip
    """The listener: nods and mirrored smiles over drift, turns, blinks and gaze of its own."""
    t, frames = times(seconds), num_frames(seconds)
    turn = turn_curve(t, turns)
    slow = np.stack([drift(frames, generator, 1.1) for _ in range(3)], 1) * np.deg2rad(law.drift_degrees)
    rotation = slow + np.stack([nod_curve(t, nods) + turn[:, 1], turn[:, 0], -0.15 * turn[:, 0]], 1)
    smile = smile_curve(t, smiles)
    closed = blink_curve(t, blinks)
    brow = np.clip(0.08 + 0.15 * drift(frames, generator, 0.9), 0, 1)
    gaze = gaze_shifts(t, seconds, generator)
    # Eyes lead a turn of the head and stay on the speaker through a nod.
    gaze[:, 1] -= 0.35 * nod_curve(t, nods)
    moved = about_neck(rotation, sway(frames, generator))
    return Controls(
        **_float32(
            mouth_open=np.clip(0.02 + 0.015 * drift(frames, generator, 0.7), 0, 1), smile=smile, brow=brow,
            blink=np.stack([closed, closed], 1), gaze=gaze, rotation=rotation, translation=moved,
        )  # fmt: skip
    )


def _float32(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}
