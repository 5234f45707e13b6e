"""Rotations in torch. Quaternions are wxyz; axis-angle is in radians. Axes: any leading axes, last axis 3 or 4.

Products are written as matrix products with small tables of signs: on a GPU a handful of kernels where one per term
would be fifty, and bodies are bound by the number of kernels.
"""

import functools

import torch

SIGNS = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, -1, -1, 1], [1, 1, -1, -1]])
"""The product of units i and j is SIGNS[i, j] times unit i xor j."""


def quaternion_from_axis_angle(axis_angle: torch.Tensor) -> torch.Tensor:
    """Unit quaternions [..., 4] of axis-angle vectors [..., 3]; smooth at zero."""
    half = axis_angle.norm(dim=-1, keepdim=True) / 2
    sinc = torch.sinc(half / torch.pi) / 2
    return torch.cat([torch.cos(half), axis_angle * sinc], -1)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Hamilton product [..., 4]: first turn by `right`, then by `left`."""
    return _pairs(left, right) @ _tables(left.device, left.dtype)[0].flatten(0, 1)


def multiplier(left: torch.Tensor) -> torch.Tensor:
    """Matrices [..., 4, 4] with which rows of quaternions, multiplied from the right, become `left` [..., 4] times them."""
    return (left @ _tables(left.device, left.dtype)[0].flatten(1)).unflatten(-1, (4, 4))


def matrix_from_quaternion(quaternion: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]."""
    table = _tables(quaternion.device, quaternion.dtype)[1]
    return (_pairs(quaternion, quaternion) @ table.flatten(0, 1)).unflatten(-1, (3, 3))


def matrix_from_axis_angle(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3]."""
    return matrix_from_quaternion(quaternion_from_axis_angle(axis_angle))


def _pairs(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Every number of one quaternion times every number of the other [..., 16]."""
    return (left[..., :, None] * right[..., None, :]).flatten(-2)


@functools.cache
def _tables(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of units [4, 4, 4], and for q v q* the matrix that turns v, [4, 4, 9], by pairs of numbers of q."""
    product = torch.zeros(4, 4, 4)
    i, j = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    product[i, j, i ^ j] = SIGNS
    conjugate = torch.tensor([1.0, -1, -1, -1])
    turned = torch.einsum("ivm,mjr,j->ijrv", product, product, conjugate)[:, :, 1:, 1:]
    return product.to(device, dtype), turned.flatten(2).to(device, dtype)
