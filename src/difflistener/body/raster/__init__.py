"""Gaussians and cameras in, pictures out: `rasterize` to learn, `paint` to show. gsplat on CUDA, our C++ library on the CPU.

Both follow gsplat 1.5's conventions: 0.3 px^2 added to the 2-D covariance, alpha at most 0.999 and skipped below
1/255, a pixel stops before its transmittance falls to 1e-4; OpenCV cameras (x right, y down, z forward), pixel (i, j)
has its centre at (j + 0.5, i + 0.5). Knows nothing of faces, motion or files.
Axes: B scenes (one camera each), N Gaussians, H, W pixels.
"""

import torch

from difflistener.body.raster import cpu, cuda

instruction_set = cpu.instruction_set
fixed_room = cuda.fixed_room


def rasterize(
    means: torch.Tensor,  # [B, N, 3]
    quats: torch.Tensor,  # [B, N, 4]
    scales: torch.Tensor,  # [B, N, 3]
    opacities: torch.Tensor,  # [B, N]
    colors: torch.Tensor,  # [B, N, 3]
    w2c: torch.Tensor,  # [B, 4, 4]
    K: torch.Tensor,  # [B, 3, 3]
    width: int,
    height: int,
    absgrad: torch.Tensor | None = None,  # [B, N]
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, H, W, 3], [B, H, W, 1]
    """Render B scenes. Differentiable in the five Gaussian inputs, not in the cameras.

    Args:
        means: centres, world units. Any Gaussian input may have a leading 1 where all scenes share it.
        quats: wxyz, of any length above zero (normalised inside).
        scales: standard deviations along the axes, world units, above zero.
        opacities: 0..1.
        colors: of any range.
        w2c, K: world to camera, and intrinsics in pixels.
        absgrad: where given, the backward pass adds each Gaussian's gradient of its 2-D mean, absolute values summed
            over pixels, as a norm in pixels: what densification asks for.

    Returns:
        Colour, premultiplied (compose with `rgb + (1 - alpha) * background`), and coverage alpha.

    Raises:
        ValueError: shapes that disagree, or a number that is not finite (named, with its place).
    """
    count = _check(means, quats, scales, opacities, colors, w2c, K, width, height)
    if absgrad is not None and tuple(absgrad.shape) != (len(w2c), count):
        raise ValueError(f"absgrad has shape {tuple(absgrad.shape)}, expected {(len(w2c), count)}")
    gaussians = (means, quats, scales, opacities, colors)
    if count == 0:
        nothing = means.new_zeros(len(w2c), height, width, 1) + sum(tensor.sum() for tensor in gaussians)
        return nothing.expand(-1, -1, -1, 3), nothing
    device = cuda if means.is_cuda else cpu
    return device.rasterize(*gaussians, w2c, K, width, height, absgrad)


def paint(means, quats, scales, opacities, colors, w2c, K, width: int, height: int, background: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] uint8 of B scenes over `background` [H, W, 3], 0..1. The rest as in `rasterize`; no gradient."""
    count = _check(means, quats, scales, opacities, colors, w2c, K, width, height)
    if count == 0 or means.is_cuda:
        rgb, alpha = rasterize(means, quats, scales, opacities, colors, w2c, K, width, height)
        return to_bytes(torch.addcmul(rgb, 1 - alpha, background))
    return cpu.paint(means, quats, scales, opacities, colors, w2c, K, width, height, background)


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures of about 0..1 as uint8."""
    return pictures.clamp(0, 1).mul_(255).add_(0.5).to(torch.uint8)


def _check(means, quats, scales, opacities, colors, w2c, K, width, height) -> int:
    """The number of Gaussians. Raises `ValueError` where shapes disagree."""
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    batch = len(w2c)
    count = means.shape[1] if means.ndim == 3 else -1
    rows = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,), "colors": (count, 3)}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) not in {(batch, *rows[name]), (1, *rows[name])}:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {(batch, *rows[name])} or a leading 1")
    if tuple(w2c.shape) != (batch, 4, 4) or tuple(K.shape) != (batch, 3, 3) or batch < 1:
        raise ValueError(f"w2c has shape {tuple(w2c.shape)} and K {tuple(K.shape)}, expected [B, 4, 4] and [B, 3, 3]")
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no pixel")
    return count
