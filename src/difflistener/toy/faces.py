"""How the doings of procedural faces show in a landmark basis: for conversations that look as a tracker would see them.

What `codes` is for the made-up basis `toy-law`, this is for a real one. A speaker is one of many people, each with its own
way of smiling, filmed by a tracker that errs a little; the listener is always the same character, and calm: what it does is
drawn by a body. Knows nothing of events or files but its own. Axes: P people, T frames at 25 fps.

    FOLDER/basis.safetensors      the basis
    FOLDER/doings.safetensors     directions [P, 50, 6] codes per unit of each doing, rest [P, 50] codes of a face at rest,
                                  spread [P, 50] deviation of the codes of a still face; row 0 is the listener
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from difflistener.basis import MAX_CODE, NUM_FACE, NUM_POSTURE, POSTURE, LandmarkBasis
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION
from difflistener.shipped import named

from .codes import coloured, swaying

DOINGS = ("smile", "brow", "blink", "gaze_yaw", "gaze_pitch", "mouth")
"""What a face does here; units as in `codes.DOINGS`."""

GAIN = 0.25
"""Deviation of how strongly a person does each thing, against the procedural face that it is taken from."""
OFFSET = 0.5
"""Deviation of the codes of a speaker at rest: a camera rarely sees the very neutral face."""
TALK = 0.35
"""Deviation of a code that speech moves beyond opening the mouth."""
MOODS, MOOD = 4, 0.35
"""Doings of a speaker that no listener answers, and how far each moves a code."""
STEADY = 0.3
"""Posture of a listener who sits and listens, against that of people at a camera."""
CALM = 0.04
"""Deviation of a listener's codes beyond its doings."""
SHUT = 1.3
"""How far along its line a listener's blink goes: lids move along a curve, and the line of the codes stops short of closed."""


@dataclass(frozen=True)
class Faces:
    """Procedural people in a landmark basis."""

    basis: LandmarkBasis
    directions: np.ndarray
    rest: np.ndarray
    spread: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> "Faces":
        """Those of a folder, or `shipped`. Raises `UserError` for a folder without these files, or with those of two bases."""
        folder = named(folder)
        file = folder / "doings.safetensors"
        if not file.is_file():
            raise UserError(f"There are no procedural faces at {file}.", "Make them with recipes/shipped.py, or leave --faces out.")
        try:
            arrays = {name: array.astype(np.float64) for name, array in load_file(file).items()}
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}).", "Copy it again, or make it again with recipes/shipped.py.") from error
        shapes = {name: array.shape[1:] for name, array in arrays.items()}
        if shapes != {"directions": (NUM_EXPRESSION, len(DOINGS)), "rest": (NUM_EXPRESSION,), "spread": (NUM_EXPRESSION,)}:
            raise UserError(f"{file} holds {shapes}, not directions, rest and spread of faces.", "Make it again with recipes/shipped.py.")
        return cls(LandmarkBasis.load(folder / "basis.safetensors"), **arrays)

    def listen(self, doings: dict[str, np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """Codes [T, 50] float32 of the listener's doings [T] by name; "lean" and "turn" move its posture."""
        frames = len(doings["smile"])
        values = np.stack([doings[name] for name in DOINGS], 1)
        codes = self.rest[0] + values @ self._listener.T
        codes[:, :NUM_FACE] += CALM * coloured(frames, NUM_FACE, 0.25, generator)
        codes[:, POSTURE] = STEADY * self._posture(doings, frames, generator)
        return np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.float32)

    def speak(self, doings: dict[str, np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """Codes [T, 50] float32 of a speaker's doings [T] by name, as a tracker has them of a person drawn here."""
        frames = len(doings["smile"])
        person = generator.integers(1, len(self.rest))
        gain = np.clip(generator.normal(1, GAIN, len(DOINGS)), 0.4, 1.8)
        codes = self.rest[person] + np.stack([doings[name] for name in DOINGS], 1) @ (self.directions[person] * gain).T
        codes[:, :NUM_FACE] += generator.normal(0, OFFSET, NUM_FACE)
        # Lips that form words do more than open.
        lips = coloured(frames, 3, 0.06, generator) * np.minimum(3 * doings["mouth"], 1)[:, None]
        codes[:, :NUM_FACE] += lips @ generator.normal(0, TALK, (3, NUM_FACE))
        codes[:, :NUM_FACE] += coloured(frames, MOODS, 0.6, generator) @ generator.normal(0, MOOD, (MOODS, NUM_FACE))
        codes[:, :NUM_FACE] += self.spread[person, :NUM_FACE] * coloured(frames, NUM_FACE, 0.1, generator) * generator.uniform(0.5, 1.5)
        codes[:, POSTURE] = self._posture(doings, frames, generator)
        return np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.float32)

    def read(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """The listener's doings [..., T] by name, of codes [..., T, 50]."""
        face = slice(0, NUM_FACE)
        values = (np.asarray(codes, np.float64)[..., face] - self.rest[0, face]) @ np.linalg.pinv(self._listener[face]).T
        return {name: values[..., index] for index, name in enumerate(DOINGS)}

    @property
    def _listener(self) -> np.ndarray:
        """[50, 6] What a unit of the listener's doings moves."""
        return self.directions[0] * np.where(np.array(DOINGS) == "blink", SHUT, 1.0)

    @staticmethod
    def _posture(doings: dict[str, np.ndarray], frames: int, generator: np.random.Generator) -> np.ndarray:
        """[T, 6] Slow sway of head and torso beyond what the head's turning says."""
        follows = np.stack([doings["turn"], doings["lean"]], 1) @ (0.35 * np.array([[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]]))
        return 0.8 * swaying(frames, NUM_POSTURE, 0.05, generator) + follows
