"""A clip's listener as training data of a body: pictures at the training size, motion, silhouettes.

Knows nothing of Gaussians. Pictures lie on disk and are read as they are asked for, so memory does not grow with the
clip's length.
Axes: T frames, H, W at the training size.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from difflistener.basis import LandmarkBasis
from difflistener.body.gaussians import Reference
from difflistener.body.model import Follow
from difflistener.clip import MASK_LABELS, Clip, read_masks, replacing
from difflistener.errors import UserError
from difflistener.media import read_frames
from difflistener.motion import NUM_MOTION
from difflistener.progress import progress

SILHOUETTE_MARGIN = 5 / 512
"""How far outside the silhouette Gaussians may reach, as a share of the picture's longer side: what reaches farther learns
the wall's colour and shows as a ghost when the head turns."""


NEEDED = ("video.mp4", "mask.npz", "background.png", "camera.json", "motion.npy", "valid.npy", "translation.npy", "torso.npy",
          "eyes.npy", "landmarks.npy")


class Pictures:
    """Rows of a .npy file, read when they are indexed. A memory map would count as memory of this process."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        assert np.lib.format.read_magic(self._file) == (1, 0)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        """One row, or the rows that a slice or a list of indices names."""
        if isinstance(index, (int, np.integer)):
            return self._read(index)
        rows = np.arange(len(self))[index]
        if len(rows) == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return np.stack([self._read(row) for row in rows])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def to(self, device: str) -> torch.Tensor:
        """All rows on a device, [T, ...]."""
        there = torch.empty(self.shape, dtype=torch.from_numpy(np.empty(0, self.dtype)).dtype, device=device)
        for start in range(0, len(self), 64):
            there[start : start + 64] = torch.from_numpy(self[start : start + 64])
        return there

    def _read(self, row: int) -> np.ndarray:
        row = range(len(self))[row]
        content = os.pread(self._file.fileno(), self._row, self._start + int(row) * self._row)
        return np.frombuffer(bytearray(content), self.dtype).reshape(self.shape[1:])


@dataclass(frozen=True)
class BodyData:
    frames: Pictures  # [T, H, W, 3] uint8
    outside: Pictures  # [T, H, W] bool: true well outside the person
    motion: torch.Tensor  # [T, 56]
    translation: torch.Tensor  # [T, 3]
    torso: torch.Tensor  # [T, 3]
    eyes: torch.Tensor  # [T, 4]
    landmarks: np.ndarray  # [T, 478, 3] pixels of the clip's video
    valid: np.ndarray  # [T] bool
    train: np.ndarray  # indices of frames to learn from
    test: np.ndarray  # indices of frames held out
    background: torch.Tensor  # [H, W, 3] 0..1
    K: np.ndarray  # [3, 3] pixels at the training size
    template: np.ndarray  # [478, 3]
    basis: LandmarkBasis
    follow: Follow

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.frames.shape[1], self.frames.shape[2]

    def picture(self, index) -> torch.Tensor:
        """Frames [B, H, W, 3], 0..1."""
        return torch.from_numpy(self.frames[index].astype(np.float32) / 255)

    def inputs(self, index, device: str) -> tuple[torch.Tensor, ...]:
        """Motion, translation, torso and eyes of some frames, as a body takes them."""
        return tuple(tracked[index].to(device) for tracked in (self.motion, self.translation, self.torso, self.eyes))

    def reference(self, rotation_matrix: np.ndarray, index: int, labels: np.ndarray) -> Reference:
        return Reference(self.frames[index].astype(np.float32) / 255, labels, rotation_matrix,
                         self.translation[index].numpy(), self.K)


def check_clip(clip: Clip) -> None:
    """Raise `UserError` where a clip's listener cannot become a body: a file is missing, or too few frames are tracked."""
    for name in NEEDED:
        clip.file("listener", name)
    LandmarkBasis.load(clip.path)
    train, test = _split(clip)
    if len(train) < NUM_MOTION or len(test) == 0:
        raise UserError(f"The clip {clip.path} has {len(train)} tracked frames to learn from and {len(test)} held out.",
                        "Use a clip of at least 3 s in which the listener's face is seen.")


def _split(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the tracked frames to learn from and of those held out."""
    indices = np.flatnonzero(clip.read("listener", "valid"))
    held_out = clip.is_test()[indices]
    return indices[~held_out], indices[held_out]


def load_body_data(clip: Clip, resolution: int | None, cache: Path) -> tuple[BodyData, Pictures]:
    """Read a clip's listener; pictures are scaled so that the longer side is `resolution` (never enlarged).

    Args:
        cache: folder for the scaled pictures; reused if they stand there already.

    Returns:
        The data and the label images [T, H, W] uint8.
    """
    camera = clip.read_json("listener", "camera.json")
    width, height = camera["width"], camera["height"]
    scale = min(1.0, (resolution or max(width, height)) / max(width, height))
    size = (round(height * scale / 2) * 2, round(width * scale / 2) * 2)
    frames, labels, outside = _cached_pictures(clip, size, cache)
    scale_x, scale_y = size[1] / width, size[0] / height
    K = np.array([[camera["focal"] * scale_x, 0, camera["cx"] * scale_x], [0, camera["focal"] * scale_y, camera["cy"] * scale_y], [0, 0, 1]])
    motion = clip.motion()
    train, test = _split(clip)
    torso = np.array(clip.read("listener", "torso"))
    basis = LandmarkBasis.load(clip.path)
    return BodyData(
        frames, outside, torch.from_numpy(motion.values), torch.from_numpy(motion.translation), torch.from_numpy(torso),
        torch.from_numpy(motion.eyes),
        np.array(clip.read("listener", "landmarks")), motion.valid, train, test,
        _background(clip, size), K, np.array(camera["template"]), basis,
        Follow(*(torch.tensor(np.asarray(numbers), dtype=torch.float32) for numbers in (camera["neck"], camera["torso_map"], basis.posture_std))),
    ), labels


def _background(clip: Clip, size: tuple[int, int]) -> torch.Tensor:
    from PIL import Image

    plate = np.array(Image.open(clip.file("listener", "background.png")).convert("RGB"), dtype=np.float32) / 255
    return _shrink(torch.from_numpy(plate), size)


def _shrink(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Area-averaged picture [H, W, C]."""
    if tuple(picture.shape[:2]) == size:
        return picture
    return F.interpolate(picture.permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)


def _cached_pictures(clip: Clip, size: tuple[int, int], cache: Path):
    height, width = size
    count = clip.num_frames
    paths = [cache / f"{name}_{width}x{height}.npy" for name in ("frames", "labels", "outside")]
    if not all(path.is_file() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        shapes = [((count, height, width, 3), np.uint8), ((count, height, width), np.uint8), ((count, height, width), np.bool_)]
        with replacing(paths[0]) as a, replacing(paths[1]) as b, replacing(paths[2]) as c, \
                a.open("wb") as frames, b.open("wb") as labels, c.open("wb") as outside:
            for file, (shape, dtype) in zip((frames, labels, outside), shapes):
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            pairs = zip(read_frames(clip.file("listener", "video.mp4")), read_masks(clip.file("listener", "mask.npz")))
            reach = max(1, round(SILHOUETTE_MARGIN * max(size)))
            done = 0
            for (index, (frame, label)), _ in progress(zip(range(count), pairs), "read pictures", total=count):
                frames.write((_shrink(torch.from_numpy(frame.astype(np.float32)), size) + 0.5).byte().numpy().tobytes())
                label = _nearest(label, size)
                labels.write(label.tobytes())
                person = torch.from_numpy(label != MASK_LABELS["background"]).float()[None, None]
                wide = F.max_pool2d(person, (1, 2 * reach + 1), 1, (0, reach))
                outside.write((F.max_pool2d(wide, (2 * reach + 1, 1), 1, (reach, 0))[0, 0] == 0).numpy().tobytes())
                done = index + 1
            if done < count:
                raise UserError(f"The listener's video.mp4 or mask.npz in {clip.path} ends after {done} of {count} frames.",
                                "Prepare the clip again with --overwrite.")
    return tuple(Pictures(path) for path in paths)


def _nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = (np.arange(size[0]) + 0.5) * label.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * label.shape[1] / size[1]
    return label[rows.astype(int)[:, None], columns.astype(int)]
