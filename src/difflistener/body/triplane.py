"""The tri-plane body, our baseline: TalkingGaussian driven by motion numbers and eyes in place of sound.

Two branches of Gaussians in the frame of the head, face and inner mouth, each moved by a small network that reads
features from three planes of learned numbers; between them and the plate a torso (a `LinearBody`), as a generated
listener has no filmed one. Written from the paper, without its code: Li et al., "TalkingGaussian: Structure-Persistent
3D Talking Head Synthesis via Gaussian Splatting", ECCV 2024. Knows nothing of training.
Axes: B frames, N Gaussians, L = 12 levels, D = 56 motion; `HEAD_UNIT` for lengths inside a branch, camera space in
inter-ocular distances (OpenCV axes).

Where it is not the published program:
* The motion numbers, standardised and softly clamped, take the place of the sound; lids and gaze that of the action units.
* Position, scale and rotation move, opacity does not: the program computes a change of opacity and never applies it.
* The mouth's planes rise from 16 to 58 cells; the program asks for 64 to 58, twelve times nearly the same level.
* A colour's direction of view passes no gradient to the position.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from difflistener.body.deformation import Range
from difflistener.body.gaussians import neighbour_distance
from difflistener.body.geometry import matrix_from_axis_angle, multiply, quaternion_from_axis_angle
from difflistener.body.linear import LinearBody
from difflistener.body.model import Body, BodyConfig, Gaussians
from difflistener.motion import NUM_EYES, NUM_MOTION, ROTATION

HEAD_UNIT = 1 / 0.065
"""Inter-ocular distances in the published unit of length, in which a head reaches to about 0.1 and the camera stands
at 0.7: our heads reach to about 1.5. Every learning rate and threshold is the published one in this unit."""
BOUND = 0.15
"""The planes cover -BOUND..BOUND."""
REACH = 0.1
"""The first Gaussians fill the cube -REACH..REACH."""
LEVELS = 12
FEATURES = 3 * LEVELS
COARSEST = 16
FINEST_FACE = 256 * BOUND
FINEST_MOUTH = 384 * BOUND
"""Cells along a side of the coarsest and the finest level."""
HEARD = 32
"""Width of the code that stands for the sound."""
SEEN = 6
"""Width of the code that stands for the action units."""
STEP = 1e-2
"""A network's output of one moves a Gaussian by this."""
MOUTH_STRETCH = (0.2, 1.0, 0.2)
"""What is inside a mouth moves up and down more than to the sides."""
START_OPACITY = 0.1
SMALLEST = 1e-6
"""Least scale, far below a pixel: what is made smaller again and again stays a number."""

DC = math.sqrt(1 / (4 * math.pi))
LINEAR = math.sqrt(3 / (4 * math.pi))
CROSS, POLAR, EQUAL = math.sqrt(15 / math.pi) / 2, math.sqrt(5 / math.pi) / 4, math.sqrt(15 / math.pi) / 4
HARMONICS = {
    (1,): (-LINEAR,), (2,): (LINEAR,), (0,): (-LINEAR,),
    (4,): (CROSS,), (8,): (-CROSS,), (11, 3, 7): (2 * POLAR, -POLAR, -POLAR), (5,): (-CROSS,), (3, 7): (EQUAL, -EQUAL),
}
"""Real spherical harmonics of degree 1 and 2: which of x y z xx xy xz yx yy yz zx zy zz, and how much of each."""
DEGREE_ENDS = (0, 3, 8)
"""How many of them go with each degree."""


@dataclass(frozen=True)
class TriplaneConfig(BodyConfig):
    """What a tri-plane body is made of; saved as config.json."""

    deformation: str = "triplane"
    num_face: int = 2_000
    """How many of the Gaussians are the face and the hair."""
    num_mouth: int = 10_000
    """How many are inside the mouth; the rest is the torso, which the motion bases move."""

    @property
    def num_torso(self) -> int:
        return self.num_gaussians - self.num_face - self.num_mouth


class Drive(NamedTuple):
    """What frames ask of the head."""

    rotation: torch.Tensor  # [B, 3, 3] head to camera
    turn: torch.Tensor  # [B, 4, 4] a row of quaternions times this is turned by the rotation
    translation: torch.Tensor  # [B, 3] inter-ocular distances
    theta: torch.Tensor  # [B, 56] motion, standardised and clamped
    eyes: torch.Tensor  # [B, 4] likewise

    def at(self, index: int) -> "Drive":
        """One frame of them."""
        return Drive(*(values[index : index + 1] for values in self))


class Still(NamedTuple):
    """What a field knows of Gaussians before it is told a frame."""

    first: torch.Tensor  # [N, H] the planes' part of the first layer
    hears: torch.Tensor | None  # [N, 32] how much each channel of the sound counts here; None: all as it is
    sees: torch.Tensor | None  # [N, 6] the same of the eyes; None: not at all


class Offsets(NamedTuple):
    """What a field adds: to positions, and to rotations and scales before their activations."""

    move: torch.Tensor  # [B, N, 3]
    turn: torch.Tensor | float  # [B, N, 4]
    grow: torch.Tensor | float  # [B, N, 3]


class Planes(nn.Module):
    """Features of a point: one number a level from each of the planes xy, yz and xz, bilinear between grid nodes.

    The published grid is a hash table of 2^17 entries, which so few nodes never fill: it is a dense grid, and so is
    this one. All levels lie in one tensor; a level of r cells uses its first r + 1 rows and columns.
    """

    def __init__(self, finest: float):
        super().__init__()
        growth = (finest / COARSEST) ** (1 / (LEVELS - 1))
        self.cells = [math.ceil(COARSEST * growth**level - 1e-6) for level in range(LEVELS)]
        side = self.cells[-1] + 1
        self.grid = nn.Parameter(torch.empty(FEATURES, 1, side, side).uniform_(-1e-4, 1e-4))
        self.register_buffer("share", torch.tensor(self.cells) / self.cells[-1], persistent=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Features [N, 36], level by level of xy, then yz, then xz, of points [N, 3]."""
        inside = (points / BOUND).clamp(-1, 1)
        pairs = torch.stack([inside[:, :2], inside[:, 1:], inside[:, ::2]])
        where = (pairs[:, None] + 1) * self.share[:, None, None] - 1
        return F.grid_sample(self.grid, where.flatten(0, 1)[:, None], align_corners=True)[:, 0, 0].T


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear layers without bias, ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.ReLU()] if layers else []
        layers.append(nn.Linear(inputs, outputs, bias=False))
    return nn.Sequential(*layers)


def _ear() -> nn.Sequential:
    """Motion [B, 56] -> the code [B, 32] that the published networks make of sound."""
    return nn.Sequential(nn.Linear(NUM_MOTION, 64), nn.ReLU(), nn.Linear(64, HEARD))


class MouthField(nn.Module):
    """Moves what is inside the mouth. No eyes, no attention."""

    def __init__(self):
        super().__init__()
        self.planes = Planes(FINEST_MOUTH)
        self.ear = _ear()
        self.layers = _mlp(FEATURES + HEARD, 32, 32, 3)
        self.register_buffer("stretch", STEP * torch.tensor(MOUTH_STRETCH), persistent=False)

    def still(self, points: torch.Tensor) -> Still:
        """What does not depend on the frame, for points [N, 3]."""
        return Still(F.linear(self.planes(points), self.layers[0].weight[:, :FEATURES]), None, None)

    def forward(self, still: Still, drive: Drive) -> Offsets:
        heard = F.linear(self.ear(drive.theta), self.layers[0].weight[:, FEATURES:])
        return Offsets(self.layers[1:](still.first + heard[:, None]) * self.stretch, 0.0, 0.0)


class FaceField(nn.Module):
    """Moves face and hair. Two attentions say where the motion numbers and where the eyes count."""

    def __init__(self):
        super().__init__()
        self.planes = Planes(FINEST_FACE)
        self.ear = _ear()
        self.lids = _mlp(NUM_EYES, 16, SEEN - 1)
        self.hears = _mlp(FEATURES, 32, HEARD)
        self.sees = _mlp(FEATURES, 16, SEEN)
        self.layers = _mlp(FEATURES + HEARD + SEEN, 64, 64, 10)

    def still(self, points: torch.Tensor) -> Still:
        """What does not depend on the frame, for points [N, 3]."""
        features = self.planes(points)
        return Still(F.linear(features, self.layers[0].weight[:, :FEATURES]), self.hears(features), self.sees(features).relu())

    def forward(self, still: Still, drive: Drive) -> Offsets:
        _, for_heard, for_seen = self.layers[0].weight.split([FEATURES, HEARD, SEEN], 1)
        heard = self.ear(drive.theta)
        blink = drive.eyes[:, :2].mean(1, keepdim=True)
        seen = torch.cat([self.lids(drive.eyes), blink], 1)
        first = still.first + F.linear(still.hears * heard[:, None], for_heard) + F.linear(still.sees * seen[:, None], for_seen)
        move, turn, grow = self.layers[1:](first).split([3, 4, 3], -1)
        return Offsets(STEP * move, turn, grow)


class Branch(nn.Module):
    """The Gaussians of one part of the head and the field that moves them."""

    PER_GAUSSIAN = ("means", "raw_scales", "quats", "opacity_logits", "tones", "shades")

    def __init__(self, count: int, field: nn.Module):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(count, 3))
        self.raw_scales = nn.Parameter(torch.zeros(count, 3))
        self.quats = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(count, 1))
        self.opacity_logits = nn.Parameter(torch.zeros(count))
        self.tones = nn.Parameter(torch.zeros(count, 3))
        self.shades = nn.Parameter(torch.zeros(count, DEGREE_ENDS[2], 3))
        self.field = field
        self.degree = 2
        self.baked: Still | None = None
        table = torch.zeros(12, DEGREE_ENDS[2])
        for column, (terms, factors) in enumerate(HARMONICS.items()):
            table[list(terms), column] = torch.tensor(factors)
        self.register_buffer("harmonics", table, persistent=False)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def scales(self) -> torch.Tensor:
        """Standard deviations [N, 3] at rest, in `HEAD_UNIT`."""
        return F.softplus(self.raw_scales)

    @torch.no_grad()
    def scatter(self, generator: torch.Generator) -> None:
        """Start as dark, faint Gaussians all over the cube of a head."""
        self.means.copy_(torch.empty(self.means.shape).uniform_(-REACH, REACH, generator=generator))
        spacing = torch.from_numpy(neighbour_distance(self.means.cpu().numpy())).float().clamp_min(1e-4)
        self.raw_scales.copy_(inverse_softplus(spacing)[:, None].expand(-1, 3))
        self.opacity_logits.fill_(math.log(START_OPACITY / (1 - START_OPACITY)))
        self.tones.copy_((torch.rand(self.tones.shape, generator=generator) / 255 - 0.5) / DC)

    def offsets(self, drive: Drive) -> Offsets:
        return self.field(self.field.still(self.means) if self.baked is None else self.baked, drive)

    def pose(self, drive: Drive, offsets: Offsets | None) -> Gaussians:
        """Gaussians in camera space; without offsets they go with the head and keep still in it."""
        move, turn, grow = offsets or (0.0, 0.0, 0.0)
        means = (self.means + move) * HEAD_UNIT @ drive.rotation.transpose(1, 2) + drive.translation[:, None]
        quats = (self.quats + turn) @ drive.turn
        scales = F.softplus(self.raw_scales + grow).expand(len(means), -1, -1) * HEAD_UNIT
        opacities = torch.sigmoid(self.opacity_logits).expand(len(means), -1)
        return Gaussians(means, quats, scales, opacities, self._colors(F.normalize(means.detach(), dim=-1) @ drive.rotation))

    def _colors(self, view: torch.Tensor) -> torch.Tensor:
        """Colours [B, N, 3] seen along unit vectors of the head frame [B, N, 3]."""
        colors = DC * self.tones + 0.5
        used = DEGREE_ENDS[self.degree]
        if used:
            terms = torch.cat([view, (view[..., None] * view[..., None, :]).flatten(-2)], -1)
            colors = colors + ((terms @ self.harmonics[:, :used])[..., None] * self.shades[:, :used]).sum(-2)
        return colors.clamp_min(0).expand(len(view), -1, -1)

    @torch.no_grad()
    def bake(self, on: bool) -> None:
        """Keep what does not depend on the frame, or forget it."""
        self.baked = self.field.still(self.means) if on else None

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.bake(self.baked is not None)
        return self


class TriplaneBody(Body):
    """The baseline body. `eval()` bakes what does not depend on the frame; change no parameter from then to `train()`."""

    config_class = TriplaneConfig
    compact = tuple(f"torso.{name}" for name in LinearBody.compact)

    def __init__(self, config: TriplaneConfig):
        super().__init__(config)
        # The torso is posed by its own class and drawn here, so its plate has no rows.
        self.torso = LinearBody(BodyConfig(config.basis, config.width, 0, config.num_torso, config.num_bases))
        self.mouth = Branch(config.num_mouth, MouthField())
        self.face = Branch(config.num_face, FaceField())
        self.motion_range = Range(NUM_MOTION)
        self.eye_range = Range(NUM_EYES)

    def forward(self, motion, translation=None, torso=None, eyes=None):
        """Render motion; see `Body.forward`. Torso, mouth and face are drawn one over the other:
        C_f + (1 - a_f) (C_m + (1 - a_m) (C_t + (1 - a_t) plate))."""
        translation, torso, eyes = self.fill(motion, translation, torso, eyes)
        rgb, alpha = self.draw(self.torso.gaussians(motion, translation, torso, eyes))
        pictures, covered = self.over(rgb + (1 - alpha) * self.background, self.drive(motion, translation, eyes))
        return pictures, 1 - (1 - alpha) * (1 - covered)

    def over(self, behind: torch.Tensor, drive: Drive) -> tuple[torch.Tensor, torch.Tensor]:
        """Mouth and face over pictures [B, H, W, 3], and their coverage [B, H, W, 1].

        `behind` is the body's own torso, or, only to compare with the published program, the filmed one.
        """
        left = torch.ones_like(behind[..., :1])
        for branch in (self.mouth, self.face):
            rgb, alpha = self.draw(branch.pose(drive, branch.offsets(drive)))
            behind, left = rgb + (1 - alpha) * behind, (1 - alpha) * left
        return behind, 1 - left

    def drive(self, motion: torch.Tensor, translation: torch.Tensor, eyes: torch.Tensor) -> Drive:
        """What motion [B, 56], translation [B, 3] and eyes [B, 4] ask of the head."""
        quaternion = quaternion_from_axis_angle(motion[:, ROTATION])
        turn = multiply(quaternion[:, None], torch.eye(4, device=self.device)[None])
        rotation = matrix_from_axis_angle(motion[:, ROTATION])
        return Drive(rotation, turn, translation, self.motion_range(motion), self.eye_range(eyes))

    def gaussians(self, motion, translation, torso, eyes) -> Gaussians:
        """All Gaussians posed: torso, mouth, face. One picture of them all sorts by depth, where `forward` goes by layers."""
        drive = self.drive(motion, translation, eyes)
        parts = [self.torso.gaussians(motion, translation, torso, eyes)]
        parts += [branch.pose(drive, branch.offsets(drive)) for branch in (self.mouth, self.face)]
        whole = [[values.expand(len(motion), *values.shape[1:]) for values in part] for part in parts]
        return Gaussians(*(torch.cat(values, 1) for values in zip(*whole)))

    def train(self, mode: bool = True) -> "TriplaneBody":
        super().train(mode)
        for branch in (self.mouth, self.face):
            branch.bake(not mode)
        return self


def inverse_softplus(values: torch.Tensor) -> torch.Tensor:
    """x with softplus(x) = values, but for values below `SMALLEST`."""
    values = values.clamp_min(SMALLEST)
    return values + torch.log(-torch.expm1(-values))
