"""A person's head as 3D Gaussians: 56 motion numbers a frame in, pictures out.

Everything is rendered, neck and torso too, over one still background plate, because a generated listener has no
filmed torso to paste. Knows nothing of speakers, brains or video files.
Axes: B frames, N Gaussians, D = 56 motion; camera space in inter-ocular distances (OpenCV axes).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from difflistener.body.deformation import LinearDeformation
from difflistener.body.geometry import matrix_from_axis_angle, multiply, quaternion_from_axis_angle
from difflistener.body.raster import rasterize
from difflistener.checkpoint import config_from_dict, load_checkpoint, load_tensors_into, save_checkpoint
from difflistener.motion import ROTATION


@dataclass(frozen=True)
class BodyConfig:
    """What a body is made of; saved as config.json."""

    basis: str
    """Id of the expression basis that the motion numbers are in."""
    width: int
    """Picture width in pixels."""
    height: int
    """Picture height in pixels."""
    num_gaussians: int = 20_000
    """How many Gaussians the head has."""
    num_bases: int = 20
    """How many motion bases each Gaussian has (K)."""
    deformation: str = "linear"
    """How motion numbers move the Gaussians."""


class Body(nn.Module):
    """The head. `forward` gives pictures, `follow` the translation and torso of motion that nobody tracked."""

    def __init__(self, config: BodyConfig):
        super().__init__()
        self.config = config
        count = config.num_gaussians
        self.means = nn.Parameter(torch.zeros(count, 3))
        self.log_scales = nn.Parameter(torch.zeros(count, 3))
        self.quats = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(count, 1))
        self.opacity_logits = nn.Parameter(torch.zeros(count))
        self.colors = nn.Parameter(torch.zeros(count, 3))
        self.rigid_logits = nn.Parameter(torch.zeros(count))
        self.deformation = LinearDeformation(count, config.num_bases)
        self.register_buffer("group", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("K", torch.eye(3))
        self.register_buffer("background", torch.zeros(config.height, config.width, 3))
        self.register_buffer("reference_rotation", torch.zeros(3))
        self.register_buffer("reference_translation", torch.tensor([0.0, 0.0, 10.0]))
        self.register_buffer("neck", torch.zeros(2, 3))
        self.register_buffer("torso_map", torch.zeros(4, 3))

    @property
    def device(self) -> torch.device:
        return self.means.device

    def forward(
        self, motion: torch.Tensor, translation: torch.Tensor | None = None, torso: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Render motion.

        Args:
            motion: [B, 56], unnormalised, in the body's basis.
            translation: tracked head position [B, 3] in camera space; None follows from the rotation.
            torso: tracked torso motion [B, 3]: shift right and down in picture widths, turn in radians.

        Returns:
            Pictures [B, H, W, 3] over the background, about 0..1, and coverage [B, H, W, 1].
        """
        if translation is None or torso is None:
            followed_translation, followed_torso = self.follow(motion[:, ROTATION])
            translation = followed_translation if translation is None else translation
            torso = followed_torso if torso is None else torso
        means, quats, opacities, colors = self.pose(motion, translation, torso)
        batch = len(motion)
        rgb, alpha = rasterize(
            means, quats, self.log_scales.exp()[None], opacities, colors,
            torch.eye(4, device=self.device).expand(batch, 4, 4), self.K.expand(batch, 3, 3),
            self.config.width, self.config.height,
        )
        return rgb + (1 - alpha) * self.background, alpha

    def pose(self, motion, translation, torso):
        """Camera-space means [B, N, 3], quaternions [B, N, 4], opacities [B, N] and colours [B, N, 3]."""
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
        return means, quats, torch.sigmoid(self.opacity_logits + fade), self.colors + tint

    def torso_transform(self, torso: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Camera-space shift [B, 3] and turn about the optical axis [B, 3, 3] of torso numbers [B, 3].

        A shift in picture widths becomes a shift at the depth of the reference head.
        """
        zero = torch.zeros_like(torso[:, 0])
        depth = self.reference_translation[2]
        shift = torch.stack([torso[:, 0] / self.K[0, 0], torso[:, 1] / self.K[1, 1], zero], -1)
        turn = matrix_from_axis_angle(torch.stack([zero, zero, torso[:, 2]], -1))
        return shift * self.config.width * depth, turn

    def follow(self, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Translation [B, 3] and torso motion [B, 3] that go with a head rotation [B, 3].

        The head turns about a fitted neck pivot; the torso follows the rotation linearly.
        """
        pivot_camera, pivot_head = self.neck
        translation = pivot_camera - matrix_from_axis_angle(rotation) @ pivot_head
        torso = rotation @ self.torso_map[:3] + self.torso_map[3]
        return translation, torso

    @torch.no_grad()
    def fit_follow(self, rotation: torch.Tensor, translation: torch.Tensor, torso: torch.Tensor) -> None:
        """Fit the neck pivot and the torso's answer to tracked motion [T, 3] each, by ridge regression."""
        matrices = matrix_from_axis_angle(rotation).double()
        eye = torch.eye(3, dtype=torch.float64, device=rotation.device).expand_as(matrices)
        rows = torch.cat([eye, -matrices], 2).reshape(-1, 6)
        prior = torch.tensor([0, 0, 0, 0, 1.0, 0.2], dtype=torch.float64, device=rotation.device)
        residual = translation.double().reshape(-1) - rows @ prior
        stiffness = 1e-3 * len(rotation) * torch.diag(torch.tensor([0, 0, 0, 1.0, 1, 1], dtype=torch.float64, device=rotation.device))
        solution = prior + torch.linalg.solve(rows.T @ rows + stiffness, rows.T @ residual)
        self.neck.copy_(solution.reshape(2, 3))
        centre = rotation.mean(0)
        turned = (rotation - centre).double()
        gram = turned.T @ turned + 1e-3 * len(rotation) * torch.eye(3, dtype=torch.float64, device=rotation.device)
        slope = torch.linalg.solve(gram, turned.T @ (torso - torso.mean(0)).double()).float()
        self.torso_map.copy_(torch.cat([slope, (torso.mean(0) - centre @ slope)[None]]))

    @torch.no_grad()
    def render(self, motion: torch.Tensor, translation=None, torso=None) -> torch.Tensor:
        """Pictures [B, H, W, 3] uint8 on the CPU; arguments as in `forward`."""
        pictures, _ = self(motion, translation, torso)
        return (pictures.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu()

    def save_pretrained(self, directory: Path, training: dict | None = None, provenance: str = "") -> None:
        """Write the checkpoint folder. `training` is its summary, `provenance` the lines for the model card."""
        save_checkpoint(directory, f"body.{self.config.deformation}", dataclasses.asdict(self.config), self.state_dict(),
                        _card(self.config, training or {}, provenance), training)

    @classmethod
    def from_pretrained(cls, directory: Path, device: str = "cpu") -> "Body":
        """Load a checkpoint folder, ready to render. Raises `UserError` if it is not one of a body."""
        values, tensors = load_checkpoint(directory, "body")
        body = cls(config_from_dict(BodyConfig, values, Path(directory) / "config.json"))
        load_tensors_into(body, tensors, directory)
        return body.to(device).eval().requires_grad_(False)


def _card(config: BodyConfig, training: dict, provenance: str) -> str:
    scores = "\n".join(f"- {name}: {value}" for name, value in training.items()) or "- none recorded"
    return f"""---
library_name: difflistener
tags: [listening-head, gaussian-splatting, head-avatar]
---
# A listening body

The 3D Gaussian head of one person, {config.width}x{config.height} pixels, {config.num_gaussians} Gaussians, driven by
56 motion numbers a frame in the basis `{config.basis}`. A likeness is personal data: use it as that person agreed.

{provenance}

## Training
{scores}
"""
