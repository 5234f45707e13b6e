"""A clip's frames on the device, one at a time: picture, labels, where the lips are, what the frame asks of the head.

On a GPU all pictures lie there as uint8; on a CPU they are read from the files. Knows nothing of losses.
Axes: T frames, H, W pixels at the training size; landmarks [T, 478, 3] in pixels of the clip's video.
"""

import numpy as np
import torch

from difflistener.body.data import BodyData
from difflistener.body.triplane import TriplaneBody
from difflistener.prepare.face_points import LIPS


class Film:
    """The clip on the device, one frame at a time."""

    def __init__(self, data: BodyData, labels: np.ndarray, body: TriplaneBody, camera: dict, device: str):
        self.frames, self.labels, self.device = data.frames, labels, device
        if device == "cuda":
            self.frames, self.labels = data.frames.to(device), labels.to(device)
        motion, translation, _, eyes = data.inputs(slice(None), device)
        self.drive = body.drive(motion, translation, eyes)
        height, width = data.size
        points = data.landmarks[:, LIPS, :2] * [width / camera["width"], height / camera["height"]]
        self.lips = np.stack([np.floor(points.min(1)), np.ceil(points.max(1))], 1)  # [T, 2, 2] first and last x and y
        self.lips = self.lips.clip(0, [width, height]).astype(int)

    def picture(self, index: int) -> torch.Tensor:
        """[1, H, W, 3] 0..1."""
        return self._on_device(self.frames, index).float() / 255

    def label(self, index: int) -> torch.Tensor:
        """[1, H, W, 1] uint8, see MASK_LABELS."""
        return self._on_device(self.labels, index)[..., None]

    def about_lips(self, index: int, least: int = 0) -> tuple[slice, slice]:
        """Rows and columns of the rectangle about the lips; it is grown to `least` pixels a side, within the picture."""
        (left, top), (right, bottom) = self.lips[index]
        height, width = self.frames.shape[1:3]
        return _grown(top, bottom, least, height), _grown(left, right, least, width)

    def _on_device(self, array, index: int) -> torch.Tensor:
        return array[index : index + 1] if self.device == "cuda" else torch.from_numpy(np.array(array[index : index + 1]))


def _grown(first: int, end: int, least: int, size: int) -> slice:
    """first..end, grown to both sides to `least` within 0..size."""
    length = min(max(end - first, least), size)
    first = min(max((first + end - length) // 2, 0), size - length)
    return slice(first, first + length)
