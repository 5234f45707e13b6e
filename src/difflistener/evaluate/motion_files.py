"""Sequences for `difflistener evaluate motion`: finds them in files, clips and folders, matches them by name, reads them.

Looks at shapes first; values are read one sequence at a time. Knows nothing of metrics.
Axes: K samples, T frames at 25 fps, D = 56 motion or 50 expression.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

EXPECTED = {"pred": "motion [T, 56], or [K, T, 56] for K samples", "truth": "motion [T, 56]",
            "speaker": "the speaker's motion [T, 56] or expression [T, 50]"}
"""What each kind of input holds."""
NAMED = 5
"""Names that a message lists; more are counted."""


@dataclass(frozen=True)
class Stored:
    """A feature in a file. Its shape is known to be right, its values are not looked at before `read`."""

    path: Path
    basis: str | None
    """Id of the basis, where it is a clip's."""
    shape: tuple[int, ...]
    unseen: int = 0
    """Frames in which a clip's tracker saw nobody: interpolated, and scored as they stand."""

    @property
    def frames(self) -> int:
        return self.shape[-2]

    @property
    def num_samples(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    def read(self) -> np.ndarray:
        """[T, D] or [K, T, D] float64. Raises `UserError` naming the first frame that is not finite."""
        values = np.load(self.path).astype(np.float64)
        bad = ~np.isfinite(values)
        if bad.any():
            at = tuple(int(index) for index in np.argwhere(bad)[np.argwhere(bad)[:, -2].argmin()])
            sample = f" of sample {at[0]}" if len(at) == 3 else ""
            raise UserError(f"{self.path} is not finite at frame {at[-2]}{sample}: column {at[-1]} is {values[at]}.",
                            "Repair or cut that motion; no metric is defined on it.")
        return values


@dataclass(frozen=True)
class Matched:
    """One sequence: the generated listener, the true one, and the speaker where given."""

    name: str
    pred: Stored
    truth: Stored
    speaker: Stored | None

    def frames(self, pads: bool) -> int:
        """Frames that are scored: those of the truth where predictions are padded, else of the shortest."""
        parts = [self.truth] if pads else [part for part in (self.pred, self.truth, self.speaker) if part]
        return min(part.frames for part in parts)

    def lengths(self) -> str:
        parts = {"pred": self.pred, "truth": self.truth, "speaker": self.speaker}
        return f"{self.name} ({', '.join(f'{kind} {part.frames}' for kind, part in parts.items() if part)})"

    def is_even(self) -> bool:
        return len({part.frames for part in (self.pred, self.truth, self.speaker) if part}) == 1


def match(pred: Path, truth: Path, speaker: Path | None) -> list[Matched]:
    """The sequences of three inputs, matched by name, in the order of names.

    Raises:
        UserError: an input that holds nothing or something else, names that are missing, bases that differ.
    """
    paths = {"pred": pred, "truth": truth} | ({} if speaker is None else {"speaker": speaker})
    found = {kind: find(path, kind) for kind, path in paths.items()}
    alone = [kind for kind, files in found.items() if None in files]
    if alone and len(alone) < len(found):
        other = next(kind for kind in found if kind not in alone)
        raise UserError(f"{paths[alone[0]]} is one sequence, {paths[other]} is a folder of sequences.",
                        "Give single sequences only, or folders only.")
    names = set().union(*found.values())
    for kind, files in found.items():
        missing = sorted(names - set(files))
        if missing:
            raise UserError(f"{paths[kind]} lacks {len(missing)} of {len(names)} sequences: {listed(missing)}.",
                            "Every sequence needs the same name in PRED, TRUTH and --speaker; add these or take out the others.")
    matched = []
    for name in sorted(names, key=str):
        parts = {kind: files[name] for kind, files in found.items()}
        bases = {part.basis: part.path for part in parts.values() if part.basis is not None}
        if len(bases) > 1:
            (first, at_first), (second, at_second) = list(bases.items())[:2]
            raise UserError(f"{at_first} speaks basis {first}, {at_second} speaks basis {second}.",
                            "Numbers of two bases cannot be compared; prepare one of the clips again with --basis.")
        matched.append(Matched(name or truth.stem, parts["pred"], parts["truth"], parts.get("speaker")))
    return matched


def find(path: Path, kind: str) -> dict[str | None, Stored]:
    """Name -> sequence of an input of this kind (a key of `EXPECTED`); the name is None where the input is one sequence."""
    if (path / "clip.json").is_file():
        return {None: _of_clip(path, kind)}
    if path.suffix == ".npy" and not path.is_dir():
        return {None: _of_file(path, kind)}
    if not path.is_dir():
        what = "is neither a .npy file, a clip nor a folder of them" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}.", f"Name a .npy with {EXPECTED[kind]}, a clip, or a folder of either.")
    found: dict[str | None, Stored] = {}
    for entry in sorted(path.iterdir()):
        is_clip = (entry / "clip.json").is_file()
        if entry.name.startswith(".") or not (is_clip or entry.suffix == ".npy"):
            continue
        name = entry.name if is_clip else entry.stem
        if name in found:
            raise UserError(f"{path} holds two sequences named {name}: a clip and a .npy.", "Take one of them away.")
        found[name] = _of_clip(entry, kind) if is_clip else _of_file(entry, kind)
    if not found:
        raise UserError(f"{path} holds no .npy file and no clip.", f"Put into it .npy files with {EXPECTED[kind]}, or clips.")
    return found


def listed(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _of_clip(path: Path, kind: str) -> Stored:
    clip = Clip.open(path, check=False)
    if kind != "speaker":
        stored = _of_file(clip.file("listener", "motion.npy"), kind, clip.basis)
        seen = clip.read("listener", "valid") if clip.has("listener", "valid.npy") else True
        return replace(stored, unseen=int(np.count_nonzero(np.logical_not(seen))))
    name = "motion.npy" if clip.has("speaker", "motion.npy") else "expression.npy"
    return _of_file(clip.file("speaker", name), kind, clip.basis)


def _of_file(path: Path, kind: str, basis: str | None = None) -> Stored:
    remedy = f"It should hold {EXPECTED[kind]}."
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"There is no file at {path}.", remedy) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable .npy file ({error}).", remedy) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path} is not an array of numbers.", remedy)
    widths = (NUM_EXPRESSION, NUM_MOTION) if kind == "speaker" else (NUM_MOTION,)
    if array.ndim not in ((2, 3) if kind == "pred" else (2,)) or array.shape[-1] not in widths or 0 in array.shape:
        raise UserError(f"{path} has shape {list(array.shape)}.", remedy)
    return Stored(path, basis, array.shape)
