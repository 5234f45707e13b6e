"""The linear body: one set of Gaussians, moved by offsets that are linear in a few mixtures of the motion numbers.

Each Gaussian goes partly with the head and partly with the torso, by a learned weight. Knows nothing of training.
Axes: B frames, N Gaussians, D = 56 motion; camera space in inter-ocular distances (OpenCV axes).
"""

import torch
import torch.nn.functional as F
from torch import nn

from difflistener.body.deformation import LinearDeformation, Range
from difflistener.body.geometry import matrix_from_quaternion, multiplier, multiply, quaternion_from_axis_angle
from difflistener.body.model import Body, BodyConfig, Gaussians
from difflistener.motion import ROTATION


class LinearBody(Body):
    """The default body."""

    compact = ("deformation.position", "deformation.opacity", "deformation.color")

    def __init__(self, config: BodyConfig):
        super().__init__(config)
        count = config.num_gaussians
        self.means = nn.Parameter(torch.zeros(count, 3))
        self.log_scales = nn.Parameter(torch.zeros(count, 3))
        self.quats = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(count, 1))
        self.opacity_logits = nn.Parameter(torch.zeros(count))
        self.colors = nn.Parameter(torch.zeros(count, 3))
        self.rigid_logits = nn.Parameter(torch.zeros(count))
        self.deformation = LinearDeformation(count, config.num_bases)
        self.register_buffer("group", torch.zeros(count, dtype=torch.int64))

    @property
    def motion_range(self) -> Range:
        """What motion training showed."""
        return self.deformation.motion_range

    def gaussians(self, motion, translation, torso, eyes) -> Gaussians:
        """Posed Gaussians; the eyelids and the gaze are in the expression codes, `eyes` is not used."""
        move, fade, tint = self.deformation(motion)
        local = self.means + move

        turns = [motion[:, ROTATION], F.pad(torso[:, 2:], (2, 0)), self.reference_rotation.expand(len(motion), 3)]
        head, roll, shoulder = quaternion_from_axis_angle(torch.stack(turns, 1)).unbind(1)
        shoulder = multiply(roll, shoulder)
        is_far = (head * shoulder).sum(-1, keepdim=True) < 0
        shift, turn = self.torso_transform(torso)
        # Torso and head side by side: a Gaussian is turned by both, and goes with each as far as its weight says.
        both = torch.stack([torch.where(is_far, -shoulder, shoulder), head], 1)
        places = torch.stack([turn @ self.reference_translation + shift, translation], 1)
        rotations = matrix_from_quaternion(both).flatten(1, 2).transpose(1, 2)
        rigid = torch.sigmoid(self.rigid_logits)[:, None]
        means = torch.lerp(*torch.baddbmm(places.flatten(1)[:, None], local, rotations).chunk(2, -1), rigid)
        quats = torch.lerp(*(self.quats @ multiplier(both).transpose(1, 2).flatten(2)).chunk(2, -1), rigid)
        return Gaussians(means, quats, self.log_scales.exp()[None], torch.sigmoid(self.opacity_logits + fade), self.colors + tint)
