"""FLAME in plain torch: coefficients and joint rotations -> vertices and landmarks of a head. Batched and differentiable.

Knows nothing of files, cameras or pixels. FLAME's own axes: x to the person's left, y up, z out of the face; metres.
Axes: B heads, V vertices, S shape and E expression coefficients (in standard deviations), J = 5 joints: root, neck, jaw,
left eye, right eye; L landmarks.

Source: Li et al., "Learning a model of facial shape and expression from 4D scans", SIGGRAPH Asia 2017, equations 1 to 5:
    vertices = W(T + B_S(shape) + B_P(pose) + B_E(expression), J, pose, weights)
with W linear blend skinning. Here J is regressed from the head with its expression, as released codes assume (the paper
regresses it from the shape alone; the difference is below a millimetre).
"""

import numpy as np
import torch
from torch import Tensor, nn

from difflistener.errors import UserError
from difflistener.flame_file import NUM_FACIAL, NUM_SHAPE, PARENTS

NUM_JOINTS = 5
NECK, JAW = 1, 2
SMALL = 1e-8
"""Squared angle below which sine and cosine are replaced by their series."""


def rodrigues(axis_angle: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] in radians; exact and differentiable at zero too.

    Rodrigues' formula: I + sin(a)/a K + (1 - cos(a))/a^2 K^2, K the cross product with the vector, a its length.
    """
    square = (axis_angle * axis_angle).sum(-1)
    small = square < SMALL
    # The branch that is not taken must be finite as well, or its gradient is NaN.
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    first = torch.where(small, 1 - square / 6, angle.sin() / angle)[..., None, None]
    second = torch.where(small, 0.5 - square / 24, 2 * ((angle / 2).sin() / angle) ** 2)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device) + first * cross + second * (cross @ cross)


class Flame(nn.Module):
    """The model. Made of the arrays of `assets.load_asset`."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        tensors = {name: torch.as_tensor(np.array(array)) for name, array in arrays.items()}
        regressor = tensors["J_regressor"]
        self.register_buffer("template", tensors["v_template"])  # [V, 3]
        self.register_buffer("directions", tensors["shapedirs"])  # [V, 3, 400]
        self.register_buffer("pose_directions", tensors["posedirs"])  # [V, 3, 36]
        self.register_buffer("weights", tensors["weights"])  # [V, 5]
        self.register_buffer("faces", tensors["faces"])  # [F, 3]
        self.register_buffer("joint_template", regressor @ self.template)  # [5, 3]
        self.register_buffer("joint_directions", torch.einsum("jv,vck->jck", regressor, self.directions))  # [5, 3, 400]

    def rest(self, shape: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices [B, V, 3] and joints [B, 5, 3], unposed, metres, of shape [B or 1, S <= 300] and expression [B, E <= 100]."""
        return (self._add(self.template, self.directions, shape, expression),
                self._add(self.joint_template, self.joint_directions, shape, expression))

    @staticmethod
    def _add(mean: Tensor, directions: Tensor, shape: Tensor, expression: Tensor) -> Tensor:
        if shape.shape[-1] > NUM_SHAPE or expression.shape[-1] > NUM_FACIAL:
            raise ValueError(f"FLAME has {NUM_SHAPE} shape and {NUM_FACIAL} expression coefficients, got "
                             f"{shape.shape[-1]} and {expression.shape[-1]}")
        own = directions[..., : shape.shape[-1]].flatten(0, 1)
        facial = directions[..., NUM_SHAPE : NUM_SHAPE + expression.shape[-1]].flatten(0, 1)
        return mean + (shape @ own.T + expression @ facial.T).unflatten(-1, mean.shape)

    def forward(self, shape: Tensor, expression: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """A posed head.

        Args:
            shape: [B or 1, S], S <= 300, standard deviations.
            expression: [B, E], E <= 100, standard deviations.
            pose: [B, 5, 3], axis-angle in radians of root, neck, jaw, left eye, right eye, each in its parent's axes.

        Returns:
            Vertices [B, V, 3] and posed joints [B, 5, 3], metres. The root turns about its own joint.

        Raises:
            ValueError: more coefficients than FLAME has.
        """
        vertices, joints = self.rest(shape, expression)
        local = rodrigues(pose)
        identity = torch.eye(3, dtype=pose.dtype, device=pose.device)
        corrective = (local[:, 1:] - identity).flatten(1) @ self.pose_directions.flatten(0, 1).T
        vertices = vertices + corrective.unflatten(-1, (-1, 3))
        turns, places = [local[:, 0]], [joints[:, 0]]
        for joint, parent in enumerate(PARENTS[1:], 1):
            turns.append(turns[parent] @ local[:, joint])
            step = joints[:, joint] - joints[:, parent]
            places.append(places[parent] + (turns[parent] @ step[..., None])[..., 0])
        turn, place = torch.stack(turns, 1), torch.stack(places, 1)
        shift = place - (turn @ joints[..., None])[..., 0]
        blended = torch.einsum("vj,bjk->bvk", self.weights, turn.flatten(2)).unflatten(-1, (3, 3))
        skinned = (blended @ vertices[..., None])[..., 0] + torch.einsum("vj,bjk->bvk", self.weights, shift)
        return skinned, place


class FlameLandmarks(nn.Module):
    """Only what the embedded landmarks need of a model: as exact as the whole, far faster.

    `indices` [L] says which of MediaPipe's 478 points each landmark is. Raises `UserError` where the embedding names
    triangles that the model lacks.
    """

    def __init__(self, flame: Flame, embedding: dict[str, np.ndarray]):
        super().__init__()
        if embedding["face_index"].max() >= len(flame.faces):
            raise UserError("The landmark embedding names triangles that this FLAME model lacks.",
                            "Add the embedding and the model as published: difflistener assets add FILE")
        corners = flame.faces[torch.as_tensor(embedding["face_index"])]
        needed, triangles = corners.unique(return_inverse=True)
        self.part = Flame.__new__(Flame)
        nn.Module.__init__(self.part)
        for name, tensor in flame.named_buffers():
            per_vertex = name in ("template", "directions", "pose_directions", "weights")
            self.part.register_buffer(name, tensor[needed] if per_vertex else tensor)
        self.register_buffer("triangles", triangles)  # [L, 3]
        self.register_buffer("barycentric", torch.as_tensor(embedding["barycentric"]).to(flame.template))  # [L, 3]
        self.indices = embedding["indices"]

    def forward(self, shape: Tensor, expression: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks [B, L, 3] and posed joints [B, 5, 3], metres, of what `Flame.forward` takes."""
        vertices, joints = self.part(shape, expression, pose)
        return torch.einsum("blcx,lc->blx", vertices[:, self.triangles], self.barycentric), joints
