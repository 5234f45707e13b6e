"""Landmarks + head track -> FLAME: one shape, and for each frame expression, jaw, neck and head pose, all frames at once.

The camera and the path of the head are those of the landmark tracker; what the fit adds to that path is asked to be
smooth, so the tracker's fine motion stays. Knows nothing of pictures or files.

Axes: T frames, L embedded landmarks. A head point X (FLAME's own axes turned about x by 180 degrees, so that they are OpenCV's;
inter-ocular distances) stands at R X + t in camera axes; R is the turn of the head, root and neck together. Of these only R
shows in a face, so the neck by itself is what its small pose correctives say, held by its prior. Jaw and neck stay in FLAME's
axes. Eyeballs are not fitted: no embedded landmark lies on them; they follow the gaze that the irises show.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from difflistener.flame import JAW, NECK, NUM_JOINTS, FlameLandmarks, rodrigues
from difflistener.flame_file import NUM_SHAPE as FIRST_FACIAL
from difflistener.motion import FLIP, NUM_EXPRESSION, fill_gaps, unwrap_rotation
from difflistener.prepare.bundle import rotation_matrices
from difflistener.prepare.expression import NOISE
from difflistener.prepare.pose import LANDMARK_SCALE, HeadTrack, smooth_centres

NUM_SHAPE = 100
"""Shape coefficients, of FLAME's 300: more do not show in some hundred landmarks."""
WIDTHS = {"expression": NUM_EXPRESSION, "jaw": 3, "neck": 3, "turn": 3, "shift": 3}
"""What moves, and how many numbers a frame each is."""
UNITS = {"expression": 1.0, "jaw": 0.15, "neck": 0.1, "turn": 0.02, "shift": 0.02}
"""Size of what moves: the standard deviation of its prior (expression: FLAME's; jaw, neck: radians), or for what is added to the
tracked path just a scale (radians, inter-ocular distances)."""
WITH_PRIOR = ("expression", "jaw", "neck")
ACCELERATION = {"expression": 1.0, "jaw": 0.5, "neck": 0.5, "turn": 0.25, "shift": 0.25}
"""Standard deviation of the second difference in time, in units of `UNITS`."""
SCHEDULE = ((4.0, 5), (1.0, 15))
"""Robust scale over `LANDMARK_SCALE`, and most steps with it."""
DAMPING = 100.0
"""What is first added to the curvature's diagonal, in units of a prior's."""
MAX_GAZE = 0.6
"""Farthest that eyes turn, radians: what irises say beyond is a blink."""
ENOUGH = 5e-4
"""A step that lowers the energy by less than this part of it is the last."""
MAX_TURNS, PRECISION = 15, 0.1
"""Of conjugate gradients: most turns, and what part of the residual may be left."""
BLOCK = 500
"""Frames whose landmarks are in memory at once."""


@dataclass(frozen=True)
class FlameTrack:
    """A head as FLAME over T frames; frames that were not valid are interpolated."""

    shape: np.ndarray  # [100]
    expression: np.ndarray  # [T, 50]
    jaw: np.ndarray  # [T, 3] axis-angle, radians, FLAME's axes
    neck: np.ndarray  # [T, 3] likewise
    rotation: np.ndarray  # [T, 3] axis-angle, radians, head to camera, OpenCV axes
    translation: np.ndarray  # [T, 3] inter-ocular distances, of the point `origin` of the head
    template: np.ndarray  # [478, 3] the tracker's neutral face, turned into the axes of `rotation`
    scale: float  # inter-ocular distances in a FLAME metre
    origin: np.ndarray  # [3] inter-ocular distances, in the flipped axes
    reprojection_px: np.ndarray  # [T] mean distance of landmarks, NaN where not valid


def fit_flame(model: FlameLandmarks, landmarks: np.ndarray, valid: np.ndarray, track: HeadTrack,
              gaze: np.ndarray) -> FlameTrack:
    """Fit FLAME to tracked landmarks.

    Least is: the distance of landmarks in pixels (Geman-McClure), the squared coefficients in standard deviations, and the
    squared acceleration of everything that moves, never across a gap or a cut. By Levenberg-Marquardt, all frames together.

    Args:
        landmarks: [T, 478, 2 or 3] px; rows that are not `valid` [T] are ignored.
        track: camera and path of the head, as `pose.fit_head` or `flow.refine_with_flow` gives them.
        gaze: [T, 2] yaw and pitch of both eyes, radians, as `face_points.gaze` reads them.
    """
    good = np.flatnonzero(valid)
    problem = _Problem(model, landmarks[good], track, good, gaze[good], smooth_centres(valid, track.cuts)[good])
    for widening, steps in SCHEDULE:
        problem.minimise(widening, steps)
    return problem.result(valid, track)


class _Problem:
    """The energy on the valid frames, and where it stands: `own` [1, 100] and `moving` [T, 62], both in units of `UNITS`."""

    def __init__(self, model: FlameLandmarks, landmarks: np.ndarray, track: HeadTrack, good: np.ndarray, gaze: np.ndarray,
                 centres: np.ndarray):
        self.model, self.good = model, good
        self.count = len(good)
        self.seen = torch.as_tensor(landmarks[:, model.indices, :2], dtype=torch.float32)
        self.camera = track.camera
        self.noise_px = NOISE * track.pixels_per_unit
        self.centres = torch.as_tensor(np.flatnonzero(centres))
        # Gaze turns with the signs of OpenCV's axes, about y and x.
        gaze = np.clip(gaze, -MAX_GAZE, MAX_GAZE)
        self.eyes = torch.as_tensor(FLIP * np.column_stack([gaze[:, 1], gaze[:, 0], 0 * gaze[:, 0]]), dtype=torch.float32)
        turn, self.scale, shift = self._start(track.template)
        tracked = rotation_matrices(track.rotation[good])
        self.start_turn = torch.as_tensor(tracked @ turn, dtype=torch.float32)
        self.start_shift = torch.as_tensor(tracked @ shift + track.translation[good], dtype=torch.float32)
        self.own, self.moving = torch.zeros(1, NUM_SHAPE), torch.zeros(self.count, sum(WIDTHS.values()))
        self.known = torch.cat([torch.full((width,), float(name in WITH_PRIOR)) for name, width in WIDTHS.items()])
        self.deviation = torch.cat([torch.full((width,), ACCELERATION[name]) for name, width in WIDTHS.items()])

    def _start(self, template: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """Rotation, scale and shift that take the mean FLAME head, flipped, to the tracker's template."""
        with torch.no_grad():
            rest = self.model(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, NUM_JOINTS, 3))[0][0].double().numpy() * FLIP
        wanted = template[self.model.indices]
        middle, wanted_middle = rest.mean(0), wanted.mean(0)
        turn = Rotation.align_vectors(wanted - wanted_middle, rest - middle)[0].as_matrix()
        turned = (rest - middle) @ turn.T
        scale = float(((wanted - wanted_middle) * turned).sum() / (turned**2).sum())
        return turn, scale, wanted_middle - scale * turn @ middle

    def place(self, moving: Tensor, frames) -> tuple[Tensor, Tensor]:
        """Turn [B, 3, 3] and position [B, 3] of the head in camera axes."""
        part = _split(moving)
        return self.start_turn[frames] @ rodrigues(part["turn"]), self.start_shift[frames] + part["shift"]

    def project(self, own: Tensor, moving: Tensor, frames) -> Tensor:
        """Pixels [B, L, 2] of the landmarks of some frames, `moving` [B, 62] being theirs."""
        turn, shift = self.place(moving, frames)
        return self._picture(self._upright(own, moving, frames) @ turn.transpose(1, 2) + shift[:, None])

    def _upright(self, own: Tensor, moving: Tensor, frames) -> Tensor:
        """Landmarks [B, L, 3] in the head frame. The root undoes the neck, so that only the neck's correctives act."""
        part, eyes = _split(moving), self.eyes[frames]
        pose = torch.stack([-part["neck"], part["neck"], part["jaw"], eyes, eyes], 1)
        points, joints = self.model(own, part["expression"], pose)
        rest = self.model.part.rest(own, part["expression"])[1]
        return (points - (joints - rest)[:, NECK, None]) * points.new_tensor(FLIP) * self.scale

    def _picture(self, placed: Tensor) -> Tensor:
        return self.camera.focal * placed[..., :2] / placed[..., 2:] + placed.new_tensor([self.camera.cx, self.camera.cy])

    def minimise(self, widening: float, steps: int) -> None:
        """Go down by Levenberg-Marquardt: exact gradient, curvature without the model's lesser terms."""
        energy, damping = self._energy(self.own, self.moving, widening), DAMPING
        for _ in range(steps):
            change = self._step(widening, damping)
            there = self.own + change[0], self.moving + change[1]
            lower = self._energy(*there, widening)
            gained = energy - lower
            if gained > 0:
                (self.own, self.moving), energy = there, lower
            damping *= 0.3 if gained > 0 else 5
            if 0 < gained < ENOUGH * energy:
                return

    @torch.no_grad()
    def _energy(self, own: Tensor, moving: Tensor, widening: float) -> float:
        misfit = sum(float(self._misfit(own, moving, frames, widening)) for frames in self._blocks())
        return misfit + float(self._priors(own, moving))

    def _blocks(self) -> list[slice]:
        return [slice(start, start + BLOCK) for start in range(0, self.count, BLOCK)]

    def _gradient(self, widening: float) -> tuple[Tensor, Tensor]:
        own, moving = self.own.clone().requires_grad_(), self.moving.clone().requires_grad_()
        self._priors(own, moving).backward()
        for frames in self._blocks():
            self._misfit(own, moving, frames, widening).backward()
        return own.grad, moving.grad

    def _step(self, widening: float, damping: float) -> tuple[Tensor, Tensor]:
        """The change of `own` and `moving` that Levenberg-Marquardt proposes, by conjugate gradients.

        But for the smoothness the matrix is an arrow: one block [62, 62] a frame, each tied to the shape. Its inverse, by the
        shape's Schur complement, is the preconditioner.
        """
        gradient = self._gradient(widening)
        blocks, across, corner = [], [], (1 + damping) * torch.eye(NUM_SHAPE)
        with torch.no_grad():
            for frames in self._blocks():
                by_shape, by_moving = self._slopes(frames, widening)
                blocks.append(by_moving.mT @ by_moving + torch.diag(self.known + damping))
                across.append(by_moving.mT @ by_shape)
                corner = corner + by_shape.flatten(0, 1).T @ by_shape.flatten(0, 1)
            block, across = torch.cat(blocks), torch.cat(across)
            inverse = torch.linalg.inv(block + torch.diag(2 / self.deviation**2))
            tie = inverse @ across
            schur = torch.linalg.inv(corner - torch.einsum("tma,tmb->ab", across, tie))

            def multiply(own: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
                k = self.centres
                bend = (moving[k - 1] - 2 * moving[k] + moving[k + 1]) / self.deviation**2
                smooth = torch.zeros_like(moving)
                for frames, part in ((k - 1, bend), (k, -2 * bend), (k + 1, bend)):
                    smooth.index_add_(0, frames, part)
                return (own @ corner + torch.einsum("tma,tm->a", across, moving)[None],
                        (block @ moving[..., None])[..., 0] + across @ own[0] + smooth)

            def nearly_divide(own: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
                own = (own - torch.einsum("tma,tm->a", tie, moving)[None]) @ schur
                return own, (inverse @ moving[..., None])[..., 0] - tie @ own[0]

            return _conjugate_gradients(multiply, nearly_divide, [-part for part in gradient])

    def _slopes(self, frames: slice, widening: float) -> tuple[Tensor, Tensor]:
        """How landmarks [T, 2 L], in units of their noise and as far as they are believed, change with the shape
        [T, 2 L, 100] and with what moves [T, 2 L, 62]."""
        moving, part = self.moving[frames], self.model.part
        turn, shift = self.place(moving, frames)
        points = self._upright(self.own, moving, frames)
        placed = points @ turn.transpose(1, 2) + shift[:, None]
        depth, zero = placed[..., 2], torch.zeros_like(placed[..., 2])
        camera = torch.stack([torch.stack([1 / depth, zero, -placed[..., 0] / depth**2], -1),
                              torch.stack([zero, 1 / depth, -placed[..., 1] / depth**2], -1)], -2)
        camera = camera * self.camera.focal / self.noise_px
        square = ((self._picture(placed) - self.seen[frames]) / self.noise_px).square().sum(-1)
        camera = camera / (1 + square / self._limit(widening))[..., None, None]
        by_head = camera @ turn[:, None]
        by_flame = by_head * by_head.new_tensor(FLIP) * self.scale
        share = self.model.barycentric * part.weights[self.model.triangles][..., JAW]
        used = [*range(NUM_SHAPE), *range(FIRST_FACIAL, FIRST_FACIAL + NUM_EXPRESSION)]
        directions = part.directions[..., used][self.model.triangles]
        with_jaw = torch.einsum("lc,lcxk->lxk", share, directions)
        still = torch.einsum("lc,lcxk->lxk", self.model.barycentric, directions) - with_jaw
        # A small turn of a joint changes its rotation matrix by the cross product.
        corrective = torch.einsum("lc,lcxk->lxk", self.model.barycentric, part.pose_directions[self.model.triangles])
        generator = _cross(torch.eye(3)).flatten(1).T.neg()
        neck, jaw_corrective = corrective[..., :9] @ generator, corrective[..., 9:18] @ generator
        lever = torch.einsum("lc,lcx->lx", share, part.template[self.model.triangles] - part.joint_template[JAW])
        jaw = rodrigues(_split(moving)["jaw"])
        by_jaw = torch.einsum("tlix,txy->tliy", by_flame, jaw)
        by_code = torch.einsum("tlix,lxk->tlik", by_flame, still) + torch.einsum("tlix,lxk->tlik", by_jaw, with_jaw)
        swing = _cross((jaw[:, None] @ lever[..., None])[..., 0]) + jaw_corrective
        slopes = {"expression": by_code[..., NUM_SHAPE:], "jaw": by_flame @ swing, "neck": by_flame @ neck,
                  "turn": by_head @ _cross(points), "shift": camera}
        by_moving = torch.cat([UNITS[name] * slopes[name] for name in WIDTHS], -1)
        return by_code[..., :NUM_SHAPE].flatten(1, 2), by_moving.flatten(1, 2)

    def _misfit(self, own: Tensor, moving: Tensor, frames: slice, widening: float) -> Tensor:
        square = ((self.project(own, moving[frames], frames) - self.seen[frames]) / self.noise_px).square().sum(-1)
        return 0.5 * (square / (1 + square / self._limit(widening))).sum()

    @staticmethod
    def _limit(widening: float) -> float:
        return (widening * LANDMARK_SCALE / NOISE) ** 2

    def _priors(self, own: Tensor, moving: Tensor) -> Tensor:
        k = self.centres
        acceleration = (moving[k - 1] - 2 * moving[k] + moving[k + 1]) / self.deviation
        return 0.5 * (own.square().sum() + (self.known * moving).square().sum() + acceleration.square().sum())

    @torch.no_grad()
    def result(self, valid: np.ndarray, track: HeadTrack) -> FlameTrack:
        own, moving = self.own, self.moving
        turn, shift = (part.double().numpy() for part in self.place(moving, slice(None)))
        tracked = rotation_matrices(track.rotation[self.good])
        # The tracker's origin (between the ears) and template in FLAME's axes: the constants that fit all frames best.
        origin = np.einsum("tji,tj->ti", turn, track.translation[self.good] - shift).mean(0)
        between = Rotation.from_matrix(tracked.transpose(0, 2, 1) @ turn).mean().as_matrix()
        error = np.full(len(valid), np.nan)
        for block in self._blocks():
            miss = self.project(own, moving[block], block) - self.seen[block]
            error[self.good[block]] = miss.norm(dim=-1).mean(1).numpy()
        rotation = _whole(Rotation.from_matrix(turn).as_rotvec(), valid, is_rotation=True)
        part = {name: value.double().numpy() for name, value in _split(moving).items()}
        per_frame = {name: _whole(part[name], valid, is_rotation=name != "expression") for name in ("expression", "jaw", "neck")}
        return FlameTrack(shape=own[0].double().numpy(), rotation=unwrap_rotation(rotation),
                          translation=_whole(shift + turn @ origin, valid), template=track.template @ between,
                          scale=self.scale, origin=origin, reprojection_px=error, **per_frame)


def _split(moving: Tensor) -> dict[str, Tensor]:
    """What moves, by name, in its own units, of [B, 62] in units of `UNITS`."""
    return {name: UNITS[name] * part for name, part in zip(WIDTHS, moving.split(list(WIDTHS.values()), 1))}


def _conjugate_gradients(multiply, nearly_divide, wanted: list[Tensor]) -> list[Tensor]:
    """x with multiply(x) = wanted, x and wanted in two parts (Hestenes & Stiefel 1952, preconditioned)."""
    def dot(a, b) -> float:
        return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b))

    solution = [torch.zeros_like(part) for part in wanted]
    left, near = wanted, nearly_divide(*wanted)
    direction, power = near, dot(wanted, near)
    least = PRECISION**2 * power
    for _ in range(MAX_TURNS):
        if power <= least:
            break
        applied = multiply(*direction)
        length = power / dot(direction, applied)
        solution = [x + length * d for x, d in zip(solution, direction)]
        left = [x - length * a for x, a in zip(left, applied)]
        near = nearly_divide(*left)
        before, power = power, dot(left, near)
        direction = [x + power / before * d for x, d in zip(near, direction)]
    return solution


def _cross(vectors: Tensor) -> Tensor:
    """Matrices [..., 3, 3] of how vectors [..., 3] change with a small turn: the cross product from the right."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], -1).unflatten(-1, (3, 3))


def _whole(values: np.ndarray, valid: np.ndarray, is_rotation: bool = False) -> np.ndarray:
    full = np.zeros((len(valid), values.shape[1]))
    full[valid] = values
    return fill_gaps(full, valid, is_rotation)
