"""Writes a conversation down as a clip while it goes on: what the listener heard and perceived, and how it moved.

One clip for each session; pictures are never kept. Rows go to raw files as they come, so that memory does not grow with
length; the clip is made of them at the end. Axes: n rows of 40 ms, each 640 samples of sound.
"""

import contextlib
import queue
import shutil
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from difflistener.basis import LandmarkBasis
from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.media import SAMPLE_RATE, SAMPLES_PER_FRAME
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

PRODUCER = "difflistener live"
PARTS = {"samples": (SAMPLES_PER_FRAME, "<i2"), "expression": (NUM_EXPRESSION, "<f4"), "seen": (1, "?"),
         "motion": (NUM_MOTION, "<f4")}
"""Of a hop: numbers a row, and how they are kept."""
MAX_WAITING = 250
"""Hops that may wait for the disk, 20 s or so; where it is slower than that, recording stops."""
SPARE_BYTES = 50_000_000
"""Free space that is left alone, beyond what the finished clip needs."""
LOOK_EVERY = 64
"""Hops between looks at the free space."""


def check_folder(folder: Path) -> None:
    """Raise `UserError` where no clips can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--record {folder} cannot be written to ({error.strerror}).", "Name a folder that can.") from error


class Recorder:
    """A clip in the making, in a thread of its own.

    Args:
        folder: where the clip's folder is made, named by date and time.
        basis: id of the basis of expression and motion.
        landmark_basis: that basis, kept in the clip; None for FLAME.
        settings: entered in the clip.
        on_stop: called with the reason, from any thread, should recording end before `close`.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, basis: str, landmark_basis: LandmarkBasis | None, settings: dict,
                 on_stop: Callable[[str], None]):
        self.path = _new_folder(folder)
        self._basis, self._landmark_basis, self._settings, self._on_stop = basis, landmark_basis, settings, on_stop
        self._hops: queue.Queue = queue.Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-recorder", daemon=True)
        self._thread.start()

    @property
    def is_recording(self) -> bool:
        return not self._stopped.is_set()

    def write(self, hop) -> None:
        """Take a hop (`listener.Hop`); returns at once, from any thread."""
        if self._stopped.is_set():
            return
        if self._hops.qsize() >= MAX_WAITING:
            self._stop("the disk is too slow")
        self._hops.put(hop)

    def close(self) -> None:
        """Finish the clip, which takes as long as writing it. May be called again."""
        self._hops.put(None)
        self._thread.join()

    def _stop(self, reason: str) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._on_stop(reason)

    def _run(self) -> None:
        raw = {name: self.path / f".{name}.raw" for name in PARTS}
        try:
            try:
                self._take(raw)
            finally:
                self._finish(raw)
        except OSError as error:
            self._stop(error.strerror or str(error))
        finally:
            self._stopped.set()
            with contextlib.suppress(OSError):
                for path in raw.values():
                    path.unlink(missing_ok=True)
                self.path.rmdir()  # It stays where it holds a clip.

    def _take(self, raw: dict[str, Path]) -> None:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(path.open("wb", buffering=0)) for name, path in raw.items()}
            for count in range(2**62):
                if self._stopped.is_set() or (hop := self._hops.get()) is None:
                    return
                for name, file in files.items():
                    file.write(_stored(name, getattr(hop, name)).tobytes())
                written = sum(file.tell() for file in files.values())
                if count % LOOK_EVERY == 0 and shutil.disk_usage(self.path).free < written + SPARE_BYTES:
                    self._stop("the disk is nearly full")

    def _finish(self, raw: dict[str, Path]) -> None:
        """Make the clip of the rows that every raw file has whole."""
        rows = min(_rows(name, path) for name, path in raw.items())
        if rows == 0:
            return
        parts = {name: np.memmap(path, PARTS[name][1], "r", shape=(rows, PARTS[name][0])) for name, path in raw.items()}
        clip = Clip.create(self.path, rows)
        clip.set(basis=self._basis)
        if self._landmark_basis is not None:
            self._landmark_basis.save(self.path / "basis.safetensors")
        with clip.adding("speaker", "audio.wav", PRODUCER, self._settings) as temporary, wave.open(str(temporary), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            for start in range(0, rows, 1000):
                file.writeframes(parts["samples"][start : start + 1000].tobytes())
        for role, name, values in (("speaker", "expression", parts["expression"]), ("speaker", "valid", parts["seen"][:, 0]),
                                   ("listener", "motion", parts["motion"]), ("listener", "valid", np.ones(rows, bool))):
            clip.write(role, name, values, PRODUCER, self._settings)


def _stored(name: str, values: np.ndarray) -> np.ndarray:
    kind = PARTS[name][1]
    return (np.clip(values, -1, 1) * 32767).round().astype(kind) if name == "samples" else values.astype(kind)


def _rows(name: str, path: Path) -> int:
    width, kind = PARTS[name]
    return path.stat().st_size // (width * np.dtype(kind).itemsize) if path.exists() else 0


def _new_folder(folder: Path) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        path = folder / (name if number == 0 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("a thousand conversations began in one second")
