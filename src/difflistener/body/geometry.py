"""Rotations in torch. Quaternions are wxyz; axis-angle is in radians. Axes: any leading axes, last axis 3 or 4."""

import torch


def quaternion_from_axis_angle(axis_angle: torch.Tensor) -> torch.Tensor:
    """Unit quaternions [..., 4] of axis-angle vectors [..., 3]; smooth at zero."""
    half = axis_angle.norm(dim=-1, keepdim=True) / 2
    sinc = torch.sinc(half / torch.pi) / 2
    return torch.cat([torch.cos(half), axis_angle * sinc], -1)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Hamilton product [..., 4]: first turn by `right`, then by `left`."""
    w1, x1, y1, z1 = left.unbind(-1)
    w2, x2, y2, z2 = right.unbind(-1)
    return torch.stack([w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2, w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
                        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2, w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2], -1)


def matrix_from_axis_angle(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3]."""
    w, x, y, z = quaternion_from_axis_angle(axis_angle).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
