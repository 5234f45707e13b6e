"""A person's head as 3D Gaussians: 56 motion numbers a frame in, pictures out. What every kind of body shares.

Everything is rendered, neck and torso too, over one still background plate, because a generated listener has no
filmed torso to paste. Knows nothing of speakers, brains or video files.
Axes: B frames, N Gaussians, D = 56 motion; camera space in inter-ocular distances (OpenCV axes).
"""

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from difflistener.basis import NUM_POSTURE, POSTURE
from difflistener.body.geometry import matrix_from_axis_angle
from difflistener.body.raster import rasterize
from difflistener.checkpoint import config_from_dict, load_checkpoint, load_tensors_into, save_checkpoint
from difflistener.errors import UserError
from difflistener.motion import EXPRESSION, NUM_EXPRESSION, NUM_EYES, ROTATION

DEFORMATIONS = {"linear": "difflistener.body.linear:LinearBody", "triplane": "difflistener.body.triplane:TriplaneBody"}
"""What config.json calls a way to move Gaussians -> its class."""


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


class Gaussians(NamedTuple):
    """Posed Gaussians in camera space."""

    means: torch.Tensor  # [B, N, 3]
    quats: torch.Tensor  # [B, N, 4] wxyz, of any length
    scales: torch.Tensor  # [B or 1, N, 3]
    opacities: torch.Tensor  # [B, N] 0..1
    colors: torch.Tensor  # [B, N, 3] about 0..1


class Follow(NamedTuple):
    """What goes with a head's rotation, as `prepare` found it."""

    neck: torch.Tensor  # [2, 3] the pivot in camera space, and in the head frame
    torso_map: torch.Tensor  # [4, 3] rotation -> torso motion; the last row is the constant
    posture_std: torch.Tensor  # [6] unit of the posture codes; zeros where the basis has none


class Body(nn.Module):
    """The head. `forward` gives pictures, `follow` what goes with motion that nobody tracked.

    A kind of body says in `gaussians` how motion places its Gaussians.
    """

    config_class = BodyConfig

    def __init__(self, config: BodyConfig):
        super().__init__()
        self.config = config
        self.register_buffer("K", torch.eye(3))
        self.register_buffer("background", torch.zeros(config.height, config.width, 3))
        self.register_buffer("reference_rotation", torch.zeros(3))
        self.register_buffer("reference_translation", torch.tensor([0.0, 0.0, 10.0]))
        self.register_buffer("neck", torch.zeros(2, 3))
        self.register_buffer("torso_map", torch.zeros(4, 3))
        self.register_buffer("posture_std", torch.zeros(NUM_POSTURE))
        self.register_buffer("eye_map", torch.zeros(NUM_EXPRESSION + 1, NUM_EYES))

    @property
    def device(self) -> torch.device:
        return self.K.device

    def forward(
        self, motion: torch.Tensor, translation: torch.Tensor | None = None, torso: torch.Tensor | None = None,
        eyes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Render motion.

        Args:
            motion: [B, 56], unnormalised, in the body's basis.
            translation: tracked head position [B, 3] in camera space.
            torso: tracked torso motion [B, 3]: shift right and down in picture widths, turn in radians.
            eyes: tracked [B, 4], see `Motion.eyes`. What is None follows from the motion.

        Returns:
            Pictures [B, H, W, 3] over the background, about 0..1, and coverage [B, H, W, 1].
        """
        rgb, alpha = self.draw(self.gaussians(motion, *self.fill(motion, translation, torso, eyes)))
        return rgb + (1 - alpha) * self.background, alpha

    def fill(self, motion, translation=None, torso=None, eyes=None) -> list[torch.Tensor]:
        """Translation, torso and eyes, with what is None predicted from the motion."""
        given = (translation, torso, eyes)
        if all(values is not None for values in given):
            return list(given)
        return [followed if values is None else values for values, followed in zip(given, self.follow(motion))]

    def gaussians(self, motion, translation, torso, eyes) -> Gaussians:
        """All Gaussians of the body, posed; arguments as in `forward`, none of them None."""
        raise NotImplementedError

    def draw(self, gaussians: Gaussians) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour [B, H, W, 3], premultiplied, and coverage [B, H, W, 1] of posed Gaussians."""
        batch = len(gaussians.means)
        return rasterize(
            *gaussians, torch.eye(4, device=self.device).expand(batch, 4, 4), self.K.expand(batch, 3, 3),
            self.config.width, self.config.height,
        )

    def torso_transform(self, torso: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Camera-space shift [B, 3] and turn about the optical axis [B, 3, 3] of torso numbers [B, 3].

        A shift in picture widths becomes a shift at the depth of the reference head.
        """
        shift = torso[:, :2] * (self.config.width * self.reference_translation[2] / self.K.diagonal()[:2])
        turn = matrix_from_axis_angle(F.pad(torso[:, 2:], (2, 0)))
        return F.pad(shift, (0, 1)), turn

    def follow(self, motion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Translation [B, 3], torso motion [B, 3] and eyes [B, 4] that go with motion [B, 56].

        The head turns about the neck's pivot and the torso follows linearly; the posture codes of a landmark basis add
        what goes beyond that (a FLAME basis has none). Eyes are linear in the expression.
        """
        rotation, expression = motion[:, ROTATION], motion[:, EXPRESSION]
        shift, lean = (expression[:, POSTURE] * self.posture_std).split(3, dim=1)
        pivot_camera, pivot_head = self.neck
        translation = pivot_camera - matrix_from_axis_angle(rotation) @ pivot_head + shift
        torso = rotation @ self.torso_map[:3] + self.torso_map[3] + lean
        eyes = expression @ self.eye_map[:NUM_EXPRESSION] + self.eye_map[NUM_EXPRESSION]
        return translation, torso, eyes

    @torch.no_grad()
    def set_follow(self, follow: Follow, motion: torch.Tensor, eyes: torch.Tensor) -> None:
        """Take over what goes with a rotation, and fit the eyes [T, 4] to motion [T, 56] by ridge regression."""
        for name in ("neck", "torso_map", "posture_std"):
            getattr(self, name).copy_(torch.as_tensor(getattr(follow, name)))
        self.eye_map.copy_(_ridge(motion[:, EXPRESSION], eyes, 1e-2))

    def render(self, motion: torch.Tensor, translation=None, torso=None, eyes=None) -> torch.Tensor:
        """Pictures [B, H, W, 3] uint8 on the CPU; arguments as in `forward`."""
        from difflistener.body.render import Renderer

        return Renderer(self)(motion, translation, torso, eyes).cpu()

    def save_pretrained(self, directory: Path, training: dict | None = None, provenance: str = "") -> None:
        """Write the checkpoint folder. `training` is its summary, `provenance` the lines for the model card."""
        tensors = {name: tensor.half() if name.startswith(self.compact) else tensor for name, tensor in self.state_dict().items()}
        tensors["background"] = (self.background.clamp(0, 1) * 255).round().to(torch.uint8)
        save_checkpoint(directory, f"body.{self.config.deformation}", dataclasses.asdict(self.config), tensors,
                        _card(self.config, training or {}, provenance), training)

    compact: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are stored in half precision."""

    @staticmethod
    def from_pretrained(directory: Path, device: str = "cpu") -> "Body":
        """Load a checkpoint folder, ready to render. Raises `UserError` if it is not one of a body."""
        values, tensors = load_checkpoint(directory, "body")
        where = Path(directory) / "config.json"
        deformation = values.get("deformation")
        if deformation not in DEFORMATIONS:
            raise UserError(f"{where} names the deformation {deformation!r}.", f"Known ones: {', '.join(DEFORMATIONS)}.")
        module, name = DEFORMATIONS[deformation].split(":")
        kind = getattr(importlib.import_module(module), name)
        body = kind(config_from_dict(kind.config_class, values, where))
        if "background" in tensors:
            tensors["background"] = tensors["background"].float() / 255
        load_tensors_into(body, tensors, directory)
        return body.to(device).eval().requires_grad_(False)


def _ridge(inputs: torch.Tensor, outputs: torch.Tensor, strength: float) -> torch.Tensor:
    """Linear map [D + 1, E] from inputs [T, D] to outputs [T, E]; the last row is the constant."""
    centre = inputs.double().mean(0)
    moved = inputs.double() - centre
    gram = moved.T @ moved + strength * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64, device=inputs.device)
    slope = torch.linalg.solve(gram, moved.T @ (outputs - outputs.mean(0)).double())
    return torch.cat([slope, (outputs.double().mean(0) - centre @ slope)[None]]).float()


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
