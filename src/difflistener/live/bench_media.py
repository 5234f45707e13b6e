"""A made-up person for `bench live`: a wave and a film that a browser takes for microphone and camera, with a known schedule.

Both last `period` seconds and are played over and over. The brows rest: a listener may answer raised ones in silence, and
silence is what speech is compared with. Knows nothing of browsers. Axes: T frames at 25 fps, N samples at 16 kHz, S turns.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from difflistener.media import write_wav
from difflistener.motion import FPS
from difflistener.toy import Controls, render
from difflistener.toy.law import speaker_controls
from difflistener.toy.reactions import draw_script
from difflistener.toy.voice import speak

PERIOD_S = 40.0
FILM_FPS, DRAWN_FPS = 30, 15
"""Chromium plays every .mjpeg at 30 frames a second. Each of ours is there twice: half the drawing, and like a webcam in a dim
room."""
WIDTH, HEIGHT = 640, 480
DRAWN = 320
"""Pixels of the square that is drawn, and enlarged to the film's height."""
TURN_GAP_S = 2.0
"""A silence at least this long ends a turn; between the phrases of a turn there are at most 1.4 s."""
SEED = 2


@dataclass(frozen=True)
class Person:
    """What is said and shown in one period."""

    sound: np.ndarray
    """[N] float32."""
    controls: Controls
    """The face, T frames."""
    turns: np.ndarray
    """[S, 2] start and end of each turn, seconds."""
    phrase_ends: np.ndarray
    """[P] seconds; the last of a turn is the turn's."""

    @property
    def period(self) -> float:
        """Seconds until it begins anew."""
        return len(self.controls) / FPS


def draw_person(period: float = PERIOD_S, seed: int = SEED) -> Person:
    """Somebody who says a few phrases, waits, and goes on. The same arguments give the same arrays."""
    plan, tongue, face = (np.random.default_rng(key) for key in np.random.SeedSequence(seed).spawn(3))
    script = draw_script(round(period * FPS) / FPS, plan)
    sound, mouth = speak(script.segments, script.seconds, tongue)
    controls = speaker_controls(script.seconds, script.segments[:, :2], script.smiles, script.blinks, mouth, face)
    resting = Controls(**{**vars(controls), "brow": np.full_like(controls.brow, 0.1)})
    return Person(sound.astype(np.float32), resting, merge(script.segments[:, :2], TURN_GAP_S), script.phrase_ends)


def merge(segments: np.ndarray, gap: float) -> np.ndarray:
    """[n, 2] starts and ends in order, those less than `gap` apart made one."""
    turns: list[list[float]] = []
    for start, end in segments:
        if turns and start - turns[-1][1] < gap:
            turns[-1][1] = end
        else:
            turns.append([start, end])
    return np.array(turns, float).reshape(-1, 2)


def write_media(person: Person, folder: Path) -> tuple[Path, Path]:
    """Paths of microphone.wav and camera.mjpeg, written into `folder`."""
    from difflistener.progress import progress

    wave, film = folder / "microphone.wav", folder / "camera.mjpeg"
    write_wav(wave, person.sound)
    controls = at_rate(person.controls, DRAWN_FPS)
    side = (WIDTH - HEIGHT) // 2
    with film.open("wb") as file:
        for picture, _ in progress(render("speaker", controls, DRAWN), "camera film", len(controls)):
            square = np.asarray(Image.fromarray(picture).resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR))
            whole = Image.fromarray(np.pad(square, ((0, 0), (side, side), (0, 0)), mode="edge"))
            for _ in range(FILM_FPS // DRAWN_FPS):
                whole.save(file, "JPEG", quality=85)
    return wave, film


def at_rate(controls: Controls, fps: float) -> Controls:
    """The same face at another frame rate, interpolated."""
    frames = len(controls)
    times = np.arange(round(frames * fps / FPS)) * FPS / fps
    sampled = {}
    for field in fields(controls):
        values = getattr(controls, field.name)
        columns = [np.interp(times, np.arange(frames), column) for column in values.reshape(frames, -1).T]
        sampled[field.name] = np.stack(columns, 1).reshape(len(times), *values.shape[1:]).astype(np.float32)
    return Controls(**sampled)
