"""The linear body: one set of Gaussians, moved by offsets that are linear in a few mixtures of the motion numbers.

Each Gaussian goes partly with the head and partly with the torso, by a learned weight. Knows nothing of training.
Axes: B frames, N Gaussians, D = 56 motion; camera space in inter-ocular distances (OpenCV axes).
"""

import torch
from torch import nn

from difflistener.body.deformation import LinearDeformation
from difflistener.body.geometry import matrix_from_axis_angle, multiply, quaternion_from_axis_angle
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

    def gaussians(self, motion, translation, torso, eyes) -> Gaussians:
        """Posed Gaussians; the eyelids and the gaze are in the expression codes, `eyes` is not used."""
        move, fade, tint = self.deformation(motion)
        local = self.means + move

        head = matrix_from_axis_angle(motion[:, ROTATION])
        shoulder = matrix_from_axis_angle(self.reference_rotation)
        shift, turn = self.torso_transform(torso)
        torso_rotation = turn @ shoulder
        torso_translation = (turn @ self.reference_translation) + shift
        rigid = torch.sigmoid(self.rigid_logits)
        with_head = local @ head.transpose(1, 2) + translation[:, None]
        with_torso = local @ torso_rotation.transpose(1, 2) + torso_translation[:, None]
        means = torch.lerp(with_torso, with_head, rigid[:, None])

        roll = torch.stack([torch.zeros_like(torso[:, 2]), torch.zeros_like(torso[:, 2]), torso[:, 2]], -1)
        head_quat = quaternion_from_axis_angle(motion[:, ROTATION])
        torso_quat = multiply(quaternion_from_axis_angle(roll), quaternion_from_axis_angle(self.reference_rotation))
        torso_quat = torso_quat * torch.where((head_quat * torso_quat).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        blended = torch.lerp(torso_quat[:, None], head_quat[:, None], rigid[:, None])
        quats = multiply(blended, self.quats)
        return Gaussians(means, quats, self.log_scales.exp()[None], torch.sigmoid(self.opacity_logits + fade), self.colors + tint)
