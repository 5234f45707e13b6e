"""What any body must beat: the mean training frame, the nearest training frame, a 2-D warp of one training frame.

None of them learns. They see the training frames and the motion numbers, never a test picture or its landmarks.
Axes: B frames, P control points, H, W at the size of the data; xy in px, pixel (i, j) has its centre at (j + 0.5, i + 0.5).
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator
from scipy.spatial.transform import Rotation

from difflistener.body.data import BodyData
from difflistener.motion import EXPRESSION, ROTATION
from difflistener.prepare.face_points import BROWS, EYELIDS, FACE_OVAL, IRISES, LIPS, RIGID

ROTATION_WEIGHT = 50.0
"""Weight of a rotation number against one of the fifty codes in the distance of two motions: the pose moves more pixels."""
CONTROLS = np.unique(np.concatenate([FACE_OVAL, LIPS, EYELIDS, IRISES, BROWS, RIGID]))
"""Landmarks that pull the warp."""
BORDER_POINTS = 8
"""Pinned points along each side of the picture."""
SMOOTHING = 1e-3
"""How far the spline may miss its control points, weighed in units of the longer side: within the range of training less
is no nearer to the film and more lets the mouth go."""
GRID_STEP = 4
"""Pixels between the points at which the spline is evaluated; bicubic between them."""


def mean_frame(data: BodyData, train: np.ndarray) -> np.ndarray:
    """Mean [H, W, 3] uint8 of the frames `train` (indices)."""
    total = np.zeros(data.frames.shape[1:], np.float64)
    for index in train:
        total += data.frames[index]
    return (total / len(train) + 0.5).astype(np.uint8)


def motion_distance(motion: torch.Tensor, others: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Squared distance [A, B] of motions [A, 56] and [B, 56] in units of `spread` [56], rotations weighing more."""
    weight = torch.ones(motion.shape[1])
    weight[ROTATION] = ROTATION_WEIGHT
    scale = weight.sqrt() / spread.clamp_min(1e-3)
    return torch.cdist((motion * scale).double(), (others * scale).double()) ** 2


def nearest_frames(motion: torch.Tensor, data: BodyData, train: np.ndarray) -> np.ndarray:
    """Indices [B] of the frames of `train` whose motion is nearest to `motion` [B, 56]."""
    known = data.motion[train]
    return train[motion_distance(motion, known, known.std(0)).argmin(1).numpy()]


def neutral_frame(data: BodyData, train: np.ndarray) -> int:
    """Index of the frame of `train` that is nearest to the median motion: the straightest face."""
    known = data.motion[train]
    return int(train[int(motion_distance(known.median(0).values[None], known, known.std(0)).argmin())])


def project_landmarks(data: BodyData, motion: torch.Tensor, translation: torch.Tensor) -> np.ndarray:
    """Where motion [B, 56] and translation [B, 3] put the landmarks, px [B, 478, 2]."""
    face = data.template + data.basis.decode(motion[:, EXPRESSION].numpy())
    turn = Rotation.from_rotvec(motion[:, ROTATION].numpy()).as_matrix()
    camera = face @ turn.transpose(0, 2, 1) + translation.numpy()[:, None]
    return (camera @ data.K.T)[..., :2] / camera[..., 2:]


class LandmarkWarp:
    """The neutral frame bent by a thin-plate spline so that its landmarks fall where motion puts them, mouth and all.

    The whole picture is bent, its border pinned (Bookstein, "Principal Warps", PAMI 1989). Source and target landmarks
    both come from the motion numbers, so the neutral frame's own motion gives the neutral frame back.
    """

    def __init__(self, data: BodyData, train: np.ndarray):
        self.data = data
        self.index = neutral_frame(data, train)
        self._picture = data.picture([self.index])
        height, width = data.size
        self._border = _border(width, height)
        self._nodes = [np.linspace(0.5, size - 0.5, max(2, -(-size // GRID_STEP))) for size in (height, width)]
        self._pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).astype(np.float32)
        index = slice(self.index, self.index + 1)
        self._source = self._controls(data.motion[index], data.translation[index])[0]

    def render(self, motion: torch.Tensor, translation: torch.Tensor) -> np.ndarray:
        """Pictures [B, H, W, 3] uint8 of motion [B, 56] and translation [B, 3]."""
        return np.concatenate([self.sample(places) for places in self.maps(motion, translation)])

    def maps(self, motion: torch.Tensor, translation: torch.Tensor):
        """Yield, for each frame, where in the neutral frame each pixel comes from: xy px [H, W, 2]."""
        rows, columns = np.meshgrid(*self._nodes, indexing="ij")
        nodes = np.stack([columns.ravel(), rows.ravel()], 1)
        unit = max(self.data.size)
        for target in self._controls(motion, translation):
            # Fitted as a shift: what is interpolated between the nodes is zero wherever the picture is left alone.
            spline = RBFInterpolator(target / unit, self._source - target, smoothing=SMOOTHING, kernel="thin_plate_spline")
            coarse = torch.from_numpy(spline(nodes / unit).reshape(*rows.shape, 2)).float()
            shift = F.interpolate(coarse.permute(2, 0, 1)[None], size=self.data.size, mode="bicubic", align_corners=True)
            yield self._pixels + shift[0].permute(1, 2, 0).numpy()

    def _controls(self, motion, translation) -> np.ndarray:
        points = project_landmarks(self.data, motion, translation)[:, CONTROLS]
        return np.concatenate([points, np.broadcast_to(self._border, (len(points), *self._border.shape))], 1)

    def sample(self, places: np.ndarray) -> np.ndarray:
        """The neutral frame [1, H, W, 3] uint8 looked up at `places` [H, W, 2]."""
        height, width = self.data.size
        # grid_sample wants -1..1 between the outer edges of the corner pixels.
        where = torch.from_numpy(places / np.float32([width, height]) * 2 - 1)[None]
        picture = F.grid_sample(self._picture.permute(0, 3, 1, 2), where, padding_mode="border", align_corners=False)
        return (picture.permute(0, 2, 3, 1) * 255 + 0.5).byte().numpy()


def fold_mask(places: np.ndarray) -> np.ndarray:
    """Pixels [H, W] at which a map [H, W, 2] of source places runs backwards: its Jacobian is not positive."""
    down, across = np.gradient(places, axis=(0, 1))
    return across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0] <= 0


def _border(width: int, height: int) -> np.ndarray:
    """Points around the picture's edge [4 * BORDER_POINTS, 2]."""
    along = np.arange(BORDER_POINTS) / BORDER_POINTS
    across, down, zero, one = along * width, along * height, np.zeros(BORDER_POINTS), np.ones(BORDER_POINTS)
    sides = ((across, zero), (one * width, down), (width - across, one * height), (zero, height - down))
    return np.concatenate([np.stack(side, 1) for side in sides])
