"""A clip: a folder with everything known of one conversation, each feature with exactly `num_frames` rows.

Knows what files mean and whether they agree; knows nothing of how they were made. Axes: T frames at 25 fps.

    clip.json                  format; fps; num_frames; basis; roles: files with shape, dtype, producer, settings, sha256
    basis.safetensors          the landmark basis of the codes (absent for FLAME tracks)
    speaker/  audio.wav  video.mp4  logmel.npy  wav2vec2.npy  expression.npy  eyes.npy  valid.npy
    listener/ video.mp4  motion.npy  eyes.npy  translation.npy  torso.npy  valid.npy  mask.npz  background.png  camera.json

A file is written to a temporary name, renamed, and only then entered in clip.json: a killed run loses nothing, and
a stage whose producer and settings are already entered need not run again.
"""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.motion import FPS, NUM_EXPRESSION, NUM_EYES, NUM_MOTION, Motion, check_finite

FORMAT = 2
ROLES = ("speaker", "listener")
COLUMNS = {"motion": (NUM_MOTION,), "expression": (NUM_EXPRESSION,), "eyes": (NUM_EYES,), "translation": (3,),
           "torso": (3,), "valid": (), "landmarks": (478, 3)}
"""Shape of one row of each feature with a fixed width."""

AGAIN = "Prepare the clip again with --resume to rebuild it, or with --overwrite to start over."

MASK_LABELS = {"background": 0, "torso": 1, "head": 2, "hair": 3, "mouth": 4}
"""Pixel labels of mask.npz; `mouth` is the inner mouth."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well, and vanishes if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Clip:
    """One clip folder. `Clip.open` checks an existing one, `Clip.create` starts one."""

    def __init__(self, path: Path, meta: dict):
        self.path = path
        self.meta = meta

    @classmethod
    def create(cls, path: Path, num_frames: int | None = None) -> "Clip":
        clip = cls(Path(path), {"library": "difflistener", "format": FORMAT, "fps": FPS, "num_frames": num_frames,
                                "basis": None, "roles": {}, "licences": []})
        clip._write_meta()
        return clip

    @classmethod
    def open(cls, path: Path, check: bool = True) -> "Clip":
        """Open a clip; with `check`, every feature must be there with exactly `num_frames` finite-shaped rows.

        Raises:
            UserError: not a clip, another format, a file missing or of the wrong shape (named, with by how much).
        """
        path = Path(path)
        file = path / "clip.json"
        if not file.is_file():
            raise UserError(f"{path} is not a clip: it has no clip.json.",
                            "Make one with: difflistener prepare --speaker VIDEO --listener VIDEO --out CLIP")
        try:
            meta = json.loads(file.read_text())
            version = meta["format"]
            if version == FORMAT:
                meta["num_frames"], meta["basis"], meta["licences"]
                for files in meta["roles"].values():
                    for entry in files.values():
                        entry["settings"], entry["sha256"], entry["producer"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged ({error}).", "Prepare the clip again with --overwrite.") from error
        if version != FORMAT:
            raise UserError(f"{file} has format {version}; this version reads format {FORMAT}.",
                            "Prepare the clip again, or install the version of difflistener that wrote it.")
        clip = cls(path, meta)
        if check:
            clip.check()
        return clip

    @property
    def num_frames(self) -> int:
        return self.meta["num_frames"]

    @property
    def basis(self) -> str | None:
        return self.meta["basis"]

    @property
    def digest(self) -> str:
        """Of all that the clip holds, wherever it lies."""
        held = {role: {file: entry["sha256"] for file, entry in files.items()} for role, files in self.meta["roles"].items()}
        return hashlib.sha256(json.dumps([held, self.meta.get("test_frames")], sort_keys=True).encode()).hexdigest()[:12]

    def roles(self) -> list[str]:
        return [role for role in ROLES if self.meta["roles"].get(role)]

    def has(self, role: str, file: str) -> bool:
        return file in self.meta["roles"].get(role, {})

    def file(self, role: str, name: str) -> Path:
        """Path of a file that the clip holds. Raises `UserError` where it does not."""
        if not self.has(role, name):
            held = ", ".join(sorted(self.meta["roles"].get(role, {}))) or "nothing"
            raise UserError(f"The clip {self.path} has no {role}/{name} (it holds {held}).",
                            f"Prepare it again with a --{role} that gives it.")
        return self.path / role / name

    def read(self, role: str, name: str) -> np.ndarray:
        """A feature, memory-mapped, [T, ...]. `name` without .npy."""
        return np.load(self.file(role, f"{name}.npy"), mmap_mode="r")

    def read_json(self, role: str, name: str) -> dict:
        path = self.file(role, name)
        try:
            return json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}).", AGAIN) from error

    def is_test(self) -> np.ndarray:
        """Which frames [T] nothing is fitted on: the block `test_frames` (first, end) of clip.json."""
        first, end = self.meta["test_frames"]
        frame = np.arange(self.num_frames)
        return (frame >= first) & (frame < end)

    def motion(self) -> Motion:
        """The listener's motion, whole."""
        optional = {n: np.array(self.read("listener", n)) for n in ("eyes", "translation") if self.has("listener", f"{n}.npy")}
        return Motion(np.array(self.read("listener", "motion")), self.basis, np.array(self.read("listener", "valid")), **optional)

    def is_current(self, role: str, file: str, settings: dict) -> bool:
        """Whether `file` was made with exactly these settings and still stands there, unchanged."""
        entry = self.meta["roles"].get(role, {}).get(file)
        path = self.path / role / file
        return (entry is not None and entry["settings"] == json.loads(json.dumps(settings)) and path.is_file()
                and sha256(path) == entry["sha256"])

    def write(self, role: str, name: str, array: np.ndarray, producer: str, settings: dict) -> None:
        """Store a feature [T, ...] as `name`.npy. Raises `ValueError` on a wrong shape or a number that is not finite."""
        if self.num_frames is not None and len(array) != self.num_frames:
            raise ValueError(f"{role}/{name} has {len(array)} rows, the clip has {self.num_frames} frames")
        if name in COLUMNS and array.shape[1:] != COLUMNS[name]:
            raise ValueError(f"{role}/{name} has rows of shape {array.shape[1:]}, expected {COLUMNS[name]}")
        check_finite(array, f"{role}/{name}")
        with self.adding(role, f"{name}.npy", producer, settings) as temporary, temporary.open("wb") as file:
            np.save(file, array)

    @contextmanager
    def adding(self, role: str, file: str, producer: str, settings: dict) -> Iterator[Path]:
        """Write any file through a temporary path; it is entered in clip.json once it is whole."""
        path = self.path / role / file
        with replacing(path) as temporary:
            yield temporary
        entry = {"producer": producer, "settings": json.loads(json.dumps(settings)), "sha256": sha256(path)}
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
            entry |= {"shape": list(array.shape), "dtype": str(array.dtype)}
        self.meta["roles"].setdefault(role, {})[file] = entry
        self._write_meta()

    def set(self, **fields) -> None:
        """Change top-level fields of clip.json."""
        if any(name not in self.meta or self.meta[name] != value for name, value in fields.items()):
            self.meta.update(fields)
            self._write_meta()

    def _write_meta(self) -> None:
        write_json(self.path / "clip.json", self.meta)

    def check(self) -> None:
        """Raise `UserError` for the first file that is missing or disagrees with `num_frames`."""
        if not isinstance(self.num_frames, int) or self.num_frames < 1:
            raise UserError(f"The clip {self.path} was not finished.", AGAIN)
        for role, files in self.meta["roles"].items():
            for name in files:
                path = self.path / role / name
                if not path.is_file():
                    raise UserError(f"The clip {self.path} lacks {role}/{name}.", AGAIN)
                if path.suffix == ".npy":
                    self._check_feature(path)

    def _check_feature(self, path: Path) -> None:
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a readable .npy file ({error}).", AGAIN) from error
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise UserError(f"{path} holds no rows.", AGAIN)
        off = len(array) - self.num_frames
        if off:
            raise UserError(f"{path} has {len(array)} rows, {abs(off)} {'more' if off > 0 else 'fewer'} than the clip's "
                            f"{self.num_frames} frames.", AGAIN)
        wanted = COLUMNS.get(path.stem)
        if wanted is not None and array.shape[1:] != wanted:
            raise UserError(f"{path} has rows of shape {array.shape[1:]}, expected {wanted}.", AGAIN)
        try:
            for start in range(0, len(array), 4096):
                check_finite(array[start : start + 4096], path.name)
        except ValueError as error:
            raise UserError(f"{path}: {error}.", AGAIN) from error


class MaskWriter:
    """Streams label images [H, W] uint8 into a compressed .npz, one member for each 64 frames."""

    BLOCK = 64

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._rows: list[np.ndarray] = []
        self._start = 0

    def write(self, labels: np.ndarray) -> None:
        self._rows.append(labels.astype(np.uint8))
        if len(self._rows) == self.BLOCK:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._zip.close()

    def _flush(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.stack(self._rows))
        self._zip.writestr(f"{self._start:08d}.npy", buffer.getvalue())
        self._start += len(self._rows)
        self._rows = []


def read_masks(path: Path) -> Iterator[np.ndarray]:
    """Label images [H, W] uint8 of mask.npz, in order, one block in memory at a time."""
    try:
        with np.load(path) as archive:
            for member in sorted(archive.files):
                yield from archive[member]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}).", AGAIN) from error
