"""A procedural talking pair with known motion: the demo, the tests and the docs need no download.

`make_pair` draws a conversation from a seed (`law`, `speech`), `render` draws its faces (`face`, from `anatomy`,
`paint` and `raster`), `write_pair` puts both into files. Knows nothing of clips, brains or bodies.
Axes: T frames at 25 fps, N samples at 16 kHz, OpenCV camera axes, metres and radians.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from difflistener.motion import FPS

from .face import CHARACTERS, HEAD_DISTANCE, Camera, Character, intrinsics, render
from .law import (
    Controls,
    Events,
    ListenerLaw,
    draw_blinks,
    draw_mirrored,
    draw_nods,
    draw_phrases,
    draw_smiles,
    draw_turns,
    listener_controls,
    speaker_controls,
)
from .speech import RATE, speak

__all__ = [
    "CHARACTERS", "FPS", "HEAD_DISTANCE", "RATE", "Camera", "Character", "Controls", "Events", "ListenerLaw",
    "ToyPair", "intrinsics", "make_pair", "render", "write_pair",
]  # fmt: skip


@dataclass(frozen=True)
class ToyPair:
    """A conversation whose every cause is known."""

    speaker: Controls
    listener: Controls
    events: Events
    audio: np.ndarray
    """[N] float32, the speaker's sound at 16 kHz, exactly as long as the frames."""
    law: ListenerLaw
    seed: int

    @property
    def speaker_motion(self) -> np.ndarray:
        """[T,56] float32, see `Controls.motion`."""
        return self.speaker.motion()

    @property
    def listener_motion(self) -> np.ndarray:
        """[T,56] float32, see `Controls.motion`."""
        return self.listener.motion()


def make_pair(seconds: float, seed: int = 0, law: ListenerLaw | None = None) -> ToyPair:
    """Draw a conversation. The same arguments give the same arrays.

    Args:
        seconds: length, rounded to whole frames.
        seed: of everything random.
        law: how the listener reacts; by default `ListenerLaw()`.
    """
    if seconds < 1 / FPS:
        raise ValueError(f"seconds is {seconds}, expected at least one frame of {1 / FPS} s")
    law = law or ListenerLaw()
    seconds = round(seconds * FPS) / FPS
    # One stream per cause, so that a change of the listener's law leaves the speaker as it was.
    names = ("phrases", "speech", "smiles", "speaker blinks", "speaker",
             "nods", "mirrored", "blinks", "turns", "listener")  # fmt: skip
    streams = dict(zip(names, map(np.random.default_rng, np.random.SeedSequence(seed).spawn(len(names))), strict=True))
    phrases = draw_phrases(seconds, streams["phrases"])
    audio, mouth = speak(phrases, seconds, streams["speech"])
    smiles = draw_smiles(seconds, streams["smiles"])
    speaker_blinks = draw_blinks(seconds, law, streams["speaker blinks"])
    nods = draw_nods(phrases, seconds, law, streams["nods"])
    mirrored = draw_mirrored(smiles, seconds, law, streams["mirrored"])
    blinks = draw_blinks(seconds, law, streams["blinks"])
    turns = draw_turns(seconds, law, streams["turns"])
    events = Events(phrases, nods, smiles, mirrored, speaker_blinks, blinks, turns)
    return ToyPair(
        speaker_controls(seconds, phrases, smiles, speaker_blinks, mouth, streams["speaker"]),
        listener_controls(seconds, nods, mirrored, blinks, turns, law, streams["listener"]),
        events, audio, law, seed,
    )  # fmt: skip


def write_pair(
    folder: str | Path, seconds: float, seed: int = 0, size: int = 256, law: ListenerLaw | None = None
) -> ToyPair:
    """Write speaker.mp4 (with sound), listener.mp4 and truth.npz into `folder`, and return what was drawn.

    truth.npz holds `speaker_<control>`, `listener_<control>`, `speaker_motion`, `listener_motion`, `events_<kind>`,
    `audio`, `K` [3,3], `head_distance` (metres), `law` (JSON) and `seed`.
    """
    from difflistener.media import VideoWriter
    from difflistener.progress import progress

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pair = make_pair(seconds, seed, law)
    for role, controls in (("speaker", pair.speaker), ("listener", pair.listener)):
        with VideoWriter(folder / f"{role}.mp4", size, size, audio=role == "speaker") as video:
            samples = RATE // FPS
            for index, (frame, _) in enumerate(progress(render(role, controls, size), f"toy {role}", len(controls))):
                video.write_frame(frame)
                if role == "speaker":
                    video.write_audio(pair.audio[index * samples : (index + 1) * samples])
    K, distance = intrinsics(size)
    np.savez_compressed(
        folder / "truth.npz",
        **{f"speaker_{name}": value for name, value in vars(pair.speaker).items()},
        **{f"listener_{name}": value for name, value in vars(pair.listener).items()},
        **{f"events_{name}": value for name, value in vars(pair.events).items()},
        speaker_motion=pair.speaker_motion, listener_motion=pair.listener_motion, audio=pair.audio, K=K,
        head_distance=distance, law=json.dumps(asdict(pair.law)), seed=pair.seed,
    )  # fmt: skip
    return pair
