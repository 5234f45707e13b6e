"""One function: Gaussians and cameras in, pictures out. gsplat on CUDA, our C++ library on the CPU.

Both follow gsplat 1.5's conventions: 0.3 px^2 added to the 2-D covariance, alpha at most 0.999 and skipped below
1/255, a pixel stops before its transmittance falls to 1e-4; OpenCV cameras (x right, y down, z forward), pixel (i, j)
has its centre at (j + 0.5, i + 0.5). Knows nothing of faces, motion or files.
Axes: B scenes (one camera each), N Gaussians, H, W pixels.
"""

import torch

from difflistener.body.raster import cpu

instruction_set = cpu.instruction_set

NEAR_PLANE = 0.01


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
    if absgrad is not None and tuple(absgrad.shape) != (batch, count):
        raise ValueError(f"absgrad has shape {tuple(absgrad.shape)}, expected {(batch, count)}")
    if count == 0:
        nothing = means.new_zeros(batch, height, width, 1) + sum(tensor.sum() for tensor in tensors.values())
        return nothing.expand(-1, -1, -1, 3), nothing
    if means.is_cuda:
        return _on_cuda(*tensors.values(), w2c, K, width, height, absgrad)
    return cpu.rasterize(*tensors.values(), w2c, K, width, height, absgrad)


def _on_cuda(means, quats, scales, opacities, colors, w2c, K, width, height, absgrad):
    from difflistener.errors import require

    gsplat = require("gsplat")
    batch, count = len(w2c), means.shape[1]
    rgb, alpha, info = gsplat.rasterization(
        means.expand(batch, count, 3), quats.expand(batch, count, 4), scales.expand(batch, count, 3),
        opacities.expand(batch, count), colors.expand(batch, count, 3), w2c[:, None], K[:, None], width, height,
        near_plane=NEAR_PLANE, packed=False, absgrad=absgrad is not None,
    )
    if absgrad is not None:
        rgb, alpha = _Record.apply(rgb, alpha, info, absgrad)
    return rgb[:, 0], alpha[:, 0]


class _Record(torch.autograd.Function):
    """Passes gsplat's pictures on; once a backward pass is over, adds what it left in `means2d.absgrad` to a buffer.

    A hook on `means2d` would do the same but hold its own tensor, and so the graph, for ever if backward never ran.
    """

    @staticmethod
    def forward(ctx, rgb, alpha, info, absgrad):
        ctx.info, ctx.absgrad = info, absgrad
        return rgb.view_as(rgb), alpha.view_as(alpha)

    @staticmethod
    def backward(ctx, grad_rgb, grad_alpha):
        def add():
            norm = ctx.info["means2d"].absgrad.norm(dim=-1)
            ctx.absgrad.add_(norm.reshape(ctx.absgrad.shape))

        torch.autograd.Variable._execution_engine.queue_callback(add)
        return grad_rgb, grad_alpha, None, None
