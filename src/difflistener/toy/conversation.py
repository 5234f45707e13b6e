"""A corpus conversation: how a script and its reactions sound and look, and the law's own answer for any speaker.

`draw_speaker` gives what a listener perceives, `draw_listener` one listener, `perfect` as many as wanted for the same
speaker: samples of the very distribution that a brain should learn. Knows nothing of files.
Axes: K samples, T frames at 25 fps, N samples of sound at 16 kHz; rotation in radians about OpenCV camera axes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from difflistener.motion import FPS, NUM_MOTION

from .codes import coloured, mix, swaying
from .faces import Faces
from .law import blink_curve, smile_curve
from .reactions import ATTITUDES, Event, Law, Script, draw_events, draw_script
from .voice import HISS, speak

SWAY = (0.035, 0.060, 0.045)
"""Deviation of the idle head in pitch, yaw and roll. Real: .11 .12 .06, .025 .025 .030 (clips/dualtalk), .05 .08 .07
(talking_face.webm)."""
FAST_SWAY = (0.06, 0.15, 0.15)
"""Share of the sway that is fast; less in pitch, where nods are the fast part."""
JAW = (0.012, 0.009, 0.014)
"""Deviation of the idle jaw about x, y, z. Real, clips/dualtalk: .063 .018 .025 and .031 .009 .014 (they also talk)."""
JAW_OF_SMILE = 0.06
"""How far the jaw drops with a full smile."""
NOD_DOWN = 0.24
"""Seconds from the start of a nod to its deepest point."""
RAISE = 0.18
"""Seconds in which brows go up."""


@dataclass(frozen=True)
class Speaker:
    """What a listener perceives, and what is behind it."""

    script: Script
    sound: np.ndarray
    """[N] float32."""
    expression: np.ndarray
    """[T,50] in basis `toy-law`, or that of the faces given."""


@dataclass(frozen=True)
class Listener:
    """One listener to a speaker."""

    attitude: str
    events: list[Event]
    motion: np.ndarray
    """[T,56] in that basis."""
    eyes: np.ndarray
    """[T,4] closure left and right, gaze yaw and pitch (radians)."""


def draw_speaker(seconds: float, seed: int | tuple[int, ...], faces: Faces | None = None, hiss: float = HISS) -> Speaker:
    """The speaker of a conversation of `seconds`, rounded to whole frames; with `faces`, in their basis."""
    plan, tongue, face = (np.random.default_rng(key) for key in np.random.SeedSequence(seed).spawn(3))
    script = draw_script(round(seconds * FPS) / FPS, plan)
    sound, mouth = speak(script.segments, script.seconds, tongue, hiss)
    return Speaker(script, sound, _speaking_face(script, mouth, face, faces))


def draw_attitude(generator: np.random.Generator) -> str:
    return ATTITUDES[generator.integers(len(ATTITUDES))]


def draw_listener(script: Script, attitude: str, law: Law, seed: int | tuple[int, ...], faces: Faces | None = None) -> Listener:
    """One listener with `attitude` to the speaker of `script`; another for each seed. With `faces`, in their basis."""
    mind, face = (np.random.default_rng(key) for key in np.random.SeedSequence(seed).spawn(2))
    events = draw_events(script, attitude, law, mind)
    return Listener(attitude, events, *_listening_face(script.seconds, attitude, law, events, face, faces))


def perfect(script: Script, attitude: str | None, law: Law, num_samples: int, seed: int) -> np.ndarray:
    """Listeners [K,T,56] as the law has them. With attitude None each has one of its own, as for who cannot know it."""
    motions = []
    for sample in range(num_samples):
        own = attitude or draw_attitude(np.random.default_rng((seed, sample, 1)))
        motions.append(draw_listener(script, own, law, (seed, sample)).motion)
    return np.stack(motions)


def frame_times(seconds: float) -> np.ndarray:
    """[T]"""
    return np.arange(round(seconds * FPS)) / FPS


def _speaking_face(script: Script, mouth: np.ndarray, generator: np.random.Generator, faces: Faces | None) -> np.ndarray:
    """[T,50] The speaker's codes: the mouth follows the voice, brows and head move more while talking."""
    t = frame_times(script.seconds)
    talking = gaussian_filter1d((mouth > 0.05).astype(float), 5.0)
    smile = np.clip(smile_curve(t, script.smiles) + 0.04 * coloured(len(t), 1, 0.4, generator)[:, 0], 0, None)
    wander = coloured(len(t), 4, 0.4, generator)
    sway = swaying(len(t), 2, 0.15, generator)
    return (faces.speak if faces else mix)({
        "smile": smile,
        "brow": brow_curve(t, script.flashes[:, :3]) + 0.08 * talking * wander[:, 0],
        "blink": blink_curve(t, script.blinks),
        "gaze_yaw": 0.10 * wander[:, 1], "gaze_pitch": 0.04 * wander[:, 2],
        "mouth": mouth * (1 - 0.25 * np.clip(smile, 0, 1)),
        "lean": sway[:, 0] + gaussian_filter1d(mouth, 2.0) + 0.5 * talking * wander[:, 3], "turn": sway[:, 1],
    }, generator)  # fmt: skip


def _listening_face(
    seconds: float, attitude: str, law: Law, events: list[Event], generator: np.random.Generator, faces: Faces | None
) -> tuple[np.ndarray, np.ndarray]:
    """Motion [T,56] and eyes [T,4] of a listener."""
    t = frame_times(seconds)
    frames, which = len(t), ATTITUDES.index(attitude)
    rows = {kind: np.array([(e.start, e.duration, e.strength) for e in events if e.kind == kind and e.answered]).reshape(-1, 3)
            for kind in ("nod", "smile", "brow", "blink", "look")}
    idle = coloured(frames, 6, 0.5, generator)
    rest = law.smile_at_rest[which]
    smile = rest + (1 - rest) * smile_curve(t, rows["smile"]) + 0.03 * idle[:, 0]
    closed = blink_curve(t, rows["blink"][:, :2])
    away = look_curve(t, rows["look"])
    sway = np.concatenate([swaying(frames, 1, fast, generator) for fast in FAST_SWAY], 1) * SWAY
    nod = nod_curve(t, rows["nod"])
    rotation = sway + np.stack([nod, 0.4 * away, -0.06 * away], 1)
    # The eyes hold the speaker while the head sways and nods, but for small wanderings.
    gaze = np.stack([away + 0.03 * idle[:, 1] - 0.5 * sway[:, 1], 0.02 * idle[:, 2] - 0.4 * nod], 1)
    codes = (faces.listen if faces else mix)({
        "smile": smile,
        "brow": law.brow_at_rest[which] + brow_curve(t, rows["brow"]) + 0.05 * idle[:, 3],
        "blink": closed, "gaze_yaw": gaze[:, 0], "gaze_pitch": gaze[:, 1],
        "mouth": 0.03 + 0.15 * smile + 0.02 * idle[:, 4],
        "lean": 0.8 * sway[:, 0] / SWAY[0] + 0.6 * idle[:, 5], "turn": 0.8 * rotation[:, 1] / SWAY[1],
    }, generator)  # fmt: skip
    jaw = swaying(frames, 3, 0.3, generator) * JAW
    jaw[:, 0] += JAW_OF_SMILE * smile
    if faces:  # A landmark basis carries the jaw itself.
        jaw[:] = 0
    motion = np.concatenate([codes, rotation, jaw], 1).astype(np.float32)
    assert motion.shape == (frames, NUM_MOTION)
    return motion, np.concatenate([closed[:, None].repeat(2, 1), gaze], 1).astype(np.float32)


def nod_curve(t: np.ndarray, nods: np.ndarray) -> np.ndarray:
    """[T] pitch of nods [n,3] start, duration, depth: down in `NOD_DOWN` s, up in the rest."""
    pitch = np.zeros_like(t)
    for start, duration, depth in nods:
        since = t - start
        phase = np.where(since < NOD_DOWN, since / NOD_DOWN, 1 + (since - NOD_DOWN) / (duration - NOD_DOWN))
        pitch += np.where((phase > 0) & (phase < 2), depth * 0.5 * (1 - np.cos(np.pi * phase)), 0)
    return pitch


def brow_curve(t: np.ndarray, flashes: np.ndarray) -> np.ndarray:
    """[T] 0..1 of flashes [n,3] start, duration, strength."""
    level = np.zeros_like(t)
    for start, duration, strength in flashes:
        part = np.clip(np.minimum((t - start) / RAISE, (start + duration - t) / 0.3), 0, 1)
        level = np.maximum(level, strength * part * part * (3 - 2 * part))
    return level


def look_curve(t: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """[T] gaze yaw of looks away [n,3] start, duration, yaw."""
    yaw = np.zeros_like(t)
    for start, duration, angle in looks:
        part = np.clip(np.minimum((t - start) / 0.2, (start + duration - t) / 0.3), 0, 1)
        yaw += angle * part * part * (3 - 2 * part)
    return yaw
